//! Disk files of real nodes behind programs that others wrote: what nbdkit's `error` filter and QEMU's `throttle` do to a
//! disk, they do here, and `nbdfuse` makes a file of it again.

use crate::command::Started;
use crate::fixture::wait;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(20);

/// A disk file that a program exports. The node must have ended before it is dropped.
pub struct ExportedDisk {
    path: PathBuf,
    /// Reads fail while it is there.
    trigger: PathBuf,
    /// In the order in which they end.
    programs: Vec<Started>,
}

impl ExportedDisk {
    /// By nbdkit's `error` filter: so many reads in a hundred fail while that is asked for.
    #[track_caller]
    pub fn failing_reads(path: &Path, percent: u32) -> Self {
        Self::take(path, |image, socket, trigger| {
            let mut command = Command::new("nbdkit");
            command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
            command.args(["--filter=error", "file"]).arg(image);
            command.args(["error-pread=EIO", &format!("error-pread-rate={percent}%")]);
            command.arg(format!("error-pread-file={}", trigger.display()));
            command
        })
    }

    /// By QEMU's `throttle`: no more than so many writes a second.
    #[track_caller]
    pub fn throttled(path: &Path, writes_a_second: u32) -> Self {
        Self::take(path, |image, socket, _| {
            let mut command = Command::new("qemu-storage-daemon");
            let limits = format!(
                r#"{{"qom-type":"throttle-group","id":"limits","limits":{{"iops-write":{writes_a_second}}}}}"#
            );
            command.args(["--object", &limits, "--blockdev"]);
            command.arg(format!("driver=file,node-name=image,filename={}", image.display()));
            command.args([
                "--blockdev",
                "driver=throttle,node-name=disk,throttle-group=limits,file=image",
            ]);
            command
                .arg("--nbd-server")
                .arg(format!("addr.type=unix,addr.path={}", socket.display()));
            command.args(["--export", "type=nbd,id=disk,node-name=disk,name=,writable=on"]);
            command
        })
    }

    #[track_caller]
    fn take(path: &Path, exporter: impl FnOnce(&Path, &Path, &Path) -> Command) -> Self {
        let beside = |ending: &str| path.with_extension(ending);
        let (image, socket, trigger) = (beside("image"), beside("socket"), beside("trigger"));
        fs::rename(path, &image).expect("a disk file can be renamed");
        File::create(path).expect("a file to mount on can be made");
        let bytes = fs::metadata(&image).expect("it was there").len();
        let mut exporter = Started::start(&mut exporter(&image, &socket, &trigger));
        wait("it listens", MOST, || socket.exists() || !exporter.running());
        assert!(exporter.running(), "the exporter ended: {}", exporter.complained());
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let mut nbdfuse = Started::start(Command::new("nbdfuse").arg(path).arg(uri));
        let is_there = || fs::metadata(path).is_ok_and(|found| found.len() == bytes);
        wait("the disk is exported", MOST, || is_there() || !nbdfuse.running());
        assert!(is_there(), "nbdfuse ended: {}", nbdfuse.complained());
        Self { path: path.to_owned(), trigger, programs: vec![nbdfuse, exporter] }
    }

    /// Whether reads fail from now on.
    #[track_caller]
    pub fn fail_reads(&self, fail: bool) {
        if fail {
            File::create(&self.trigger).expect("a file can be made");
        } else {
            fs::remove_file(&self.trigger).expect("it was made");
        }
    }
}

impl Drop for ExportedDisk {
    fn drop(&mut self) {
        self.programs.clear();
        drop(crate::run(Command::new("umount").arg("-l").arg(&self.path), MOST));
    }
}
