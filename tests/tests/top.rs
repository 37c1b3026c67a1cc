//! `gabion top`: a line each time for scripts, and a picture on a real terminal.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::writer::{Writer, WriterPlan};
use gabion_tests::command::Started;
use gabion_tests::fixture::{program, temp_dir, wait};
use gabion_tests::{Cluster, needs};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

/// Two megabytes that are written again and again.
fn guest(cluster: &Cluster) -> Writer {
    cluster.create("vm1", 64);
    let plan = cluster.writer_plan("vm1", 2, 1);
    Writer::start(WriterPlan { pace: Duration::from_millis(1), ..plan })
}

#[test]
fn a_line_each_time_says_what_each_volume_does_now() {
    let mut cluster = Cluster::start();
    let writer = guest(&cluster);
    let mut command = cluster.command(&["--json", "top", "--every", "200ms"]);
    let mut top = Started::start(&mut command);
    let newest = |top: &Started| -> Option<Value> {
        let said = top.said();
        let whole = said.rfind('\n')?;
        serde_json::from_str(said[..whole].lines().last()?).ok()
    };
    let volume = |top: &Started| newest(top).map(|line| line["volumes"][0].clone());
    wait("its writes are seen", MOST, || {
        volume(&top).is_some_and(|volume| {
            volume["name"] == "vm1"
                && volume["writes_per_s"].as_f64().is_some_and(|writes| writes > 10.0)
                && volume["write_p99_us"].as_u64().is_some_and(|us| us >= 16)
        })
    });
    cluster.kill(3);
    wait("a dead node is told", MOST, || {
        newest(&top).is_some_and(|line| {
            let nodes = line["nodes"].as_array().unwrap();
            nodes.iter().any(|node| node["id"] == "3" && node["state"] == "silent")
        })
    });
    assert!(top.running(), "{}", top.complained());
    let left = writer.stop();
    assert_eq!(left.wrong, None);
    wait("rest is seen", MOST, || {
        volume(&top).is_some_and(|volume| volume["writes_per_s"].as_f64() == Some(0.0))
    });
}

/// The one that it has.
fn child_of(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}

#[test]
fn it_is_drawn_on_a_terminal_and_ends_by_a_key() {
    if !needs(&["script", "mkfifo"]) {
        return;
    }
    let cluster = Cluster::start();
    let writer = guest(&cluster);
    let dir = temp_dir("top");
    let keys = dir.join("keys");
    assert!(Command::new("mkfifo").arg(&keys).status().unwrap().success());
    let api = cluster.local.api_addresses().join(",");
    let verb = format!("stty rows 30 cols 120; exec {} --cluster {api} top", program().display());
    // Both ends, so that neither waits for the other.
    let mut typing = OpenOptions::new().read(true).write(true).open(&keys).unwrap();
    let line = format!("exec script -qefc '{verb}' /dev/null < {}", keys.display());
    let mut top = Started::start(Command::new("sh").args(["-c", &line]).env("TERM", "xterm"));
    wait("it is drawn", MOST, || {
        let said = top.said();
        assert!(top.running(), "{said}{}", top.complained());
        ["healthy", "node1", "vm1", "busiest"].iter().all(|words| said.contains(words))
    });
    typing.write_all(b"s").unwrap();
    wait("it sorts by name", MOST, || top.said().contains("name)"));
    typing.write_all(b"q").unwrap();
    let ran = top.finish(MOST);
    assert!(ran.status.success(), "{}{}", ran.out, ran.err);
    // The terminal is as it was: the other screen is left, the cursor shown.
    assert!(ran.out.contains("\x1b[?1049l") && ran.out.contains("\x1b[?25h"), "{:?}", ran.out);

    // Its terminal goes away under it: so does it.
    let gone = Started::start(Command::new("sh").args(["-c", &line]).env("TERM", "xterm"));
    wait("it is drawn again", MOST, || gone.said().contains("busiest"));
    let child = child_of(gone.id());
    drop(gone);
    wait("it ended", MOST, || !Path::new(&format!("/proc/{child}")).exists());
    writer.stop();
    fs::remove_dir_all(dir).unwrap();

    let into_a_file = File::create(temp_dir("top").join("out")).unwrap();
    let ran = cluster.command(&["top"]).stdout(into_a_file).output().unwrap();
    assert_eq!(ran.status.code(), Some(5), "{}", String::from_utf8_lossy(&ran.stderr));
}
