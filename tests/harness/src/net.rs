//! A network of machines on this one: a network namespace each, and the test in the middle as their
//! router, where ways are cut. All of it is in namespaces of the test's own, and ends with it.

use crate::command::{left_out, needs, run};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Set for the test that runs inside.
const INSIDE: &str = "GABION_TESTS_INSIDE_NET";
const SETUP: Duration = Duration::from_secs(20);
const MOST: Duration = Duration::from_secs(600);

/// Three machines, 1 to 3.
pub struct Net(());

impl Net {
    /// Runs the named test again in namespaces of its own; there it is given the network. None: it ran,
    /// or is left out here.
    #[track_caller]
    pub fn of_test(test: &str) -> Option<Self> {
        if std::env::var_os(INSIDE).is_some() {
            return Some(Self::make());
        }
        let mut command = in_namespaces(&std::env::current_exe().expect("this test"))?;
        command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
        let ran = run(&mut command, MOST);
        println!("{}{}", ran.out, ran.err);
        assert!(ran.status.success(), "{}", ran.status);
        assert!(ran.out.contains("1 passed"), "no test is named {test}");
        None
    }

    fn make() -> Self {
        let ip = |arguments: &str| {
            let mut command = Command::new("ip");
            run(command.args(arguments.split_whitespace()), SETUP).ok();
        };
        for node in 1..=3 {
            ip(&format!("netns add m{node}"));
            ip(&format!("link add to{node} type veth peer name eth0 netns m{node}"));
            ip(&format!("addr add 10.77.{node}.254/24 dev to{node}"));
            ip(&format!("link set to{node} up"));
            ip(&format!("-n m{node} link set lo up"));
            ip(&format!("-n m{node} addr add {}/24 dev eth0", Self::host(node)));
            ip(&format!("-n m{node} link set eth0 up"));
            ip(&format!("-n m{node} route add default via 10.77.{node}.254"));
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("it is our namespace");
        nft("add table ip lab");
        nft("add chain ip lab ways { type filter hook forward priority 0 ; }");
        Self(())
    }

    #[must_use]
    pub fn host(node: u16) -> String {
        format!("10.77.{node}.1")
    }

    /// A program on one of the machines; its process id is that of what was started.
    #[must_use]
    pub fn command(node: u16, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("m{node}")]).arg(program);
        command
    }

    /// Nothing comes through from one machine to the other; the way back is another way.
    pub fn cut_one_way(&self, from: u16, to: u16) {
        let (from, to) = (Self::host(from), Self::host(to));
        nft(&format!("add rule ip lab ways ip saddr {from} ip daddr {to} drop"));
    }

    pub fn cut(&self, one: u16, other: u16) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Of all that goes between the machines so much is lost. Units: percent.
    pub fn lose(&self, percent: u32) {
        nft(&format!("add rule ip lab ways numgen random mod 100 < {percent} drop"));
    }

    pub fn heal(&self) {
        nft("flush chain ip lab ways");
    }
}

/// A program that makes and cuts networks, in namespaces that end with it. None: it is left out here.
#[track_caller]
pub fn in_namespaces(program: &Path) -> Option<Command> {
    if !needs(&["ip", "nft", "unshare"]) {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        left_out("network namespaces need root");
        return None;
    }
    // The names of the machines' namespaces are files there, and gone with the mount.
    let script = "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up \
                  && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]);
    command.args(["sh", "-c", script]).arg(program);
    Some(command)
}

fn nft(rule: &str) {
    run(Command::new("nft").args(rule.split_whitespace()), SETUP).ok();
}
