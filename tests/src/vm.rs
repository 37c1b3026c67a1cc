//! Virtual machines with Debian in them: QEMU, with the kernel's help where /dev/kvm works and without it elsewhere. A
//! test types into a root shell on their second serial port; what the kernel says comes out of the first.

use gabion_harness::command::{Ran, Started, left_out, needs, run};
use gabion_harness::fixture::{temp_dir, wait};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Packages come over the network.
const IMAGE_MOST: Duration = Duration::from_secs(800);
/// Without the kernel's help, beside other machines.
const BOOT_MOST: Duration = Duration::from_secs(240);
const OFF_MOST: Duration = Duration::from_secs(120);
const PROBE_MOST: Duration = Duration::from_secs(10);
/// The shell says it when it is there.
const LISTENING: &str = "== listening ==\n";

/// What machines boot.
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// Made anew when `vm/image` has changed, kept in the target directory. None: the test is left out, as everywhere
    /// but in `tests/run --vm`.
    #[track_caller]
    pub fn of_tests() -> Option<Self> {
        if std::env::var_os("GABION_TESTS_VM").is_none() {
            left_out("virtual machines: tests/run --vm");
            return None;
        }
        let programs = ["mmdebstrap", "qemu-system-x86_64", "mkfs.ext4"];
        if !needs(&programs) {
            return None;
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| here.join("../target"), PathBuf::from);
        let dir = std::path::absolute(target.join("vm")).expect("a path");
        run(Command::new(here.join("vm/image")).arg(&dir), IMAGE_MOST).ok();
        Some(Self { dir })
    }

    /// A file system with Debian's root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }
}

/// One that runs; without power when dropped.
pub struct Machine {
    qemu: Started,
    shell: UnixStream,
    /// What the shell said and nobody has taken yet.
    said: Vec<u8>,
    lines: u64,
    dir: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = self.console();
            let tail: Vec<&str> = console.lines().rev().take(40).collect();
            eprintln!("---- a machine's console, the last line first:\n{}", tail.join("\n"));
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Machine {
    /// Begins to boot. Its root is the image, and what it writes there is forgotten with it.
    #[track_caller]
    pub fn start(image: &Image, options: &[&str]) -> Self {
        let root = image.root().display().to_string();
        let drive = format!("file={root},format=raw,if=virtio,snapshot=on");
        Self::start_with_root(image, &["-drive", &drive], options)
    }

    /// Begins to boot, from a first disk that `root` describes.
    #[track_caller]
    pub fn start_with_root(image: &Image, root: &[&str], options: &[&str]) -> Self {
        let dir = temp_dir("vm");
        let socket = dir.join("shell");
        let mut qemu = qemu(image, "root=/dev/vda rw");
        qemu.args(["-accel", accelerator(image), "-smp", "2", "-m", "512"]);
        qemu.args(["-serial", &format!("file:{}", dir.join("console").display())]);
        qemu.args(["-serial", &format!("unix:{},server=on,wait=off", socket.display())]);
        qemu.args(root).args(options);
        let mut qemu = Started::start(&mut qemu);
        let mut shell = None;
        wait("qemu listens", PROBE_MOST, || {
            shell = UnixStream::connect(&socket).ok();
            shell.is_some() || !qemu.running()
        });
        let Some(shell) = shell else { panic!("qemu ended: {}", qemu.complained()) };
        Self { qemu, shell, said: Vec::new(), lines: 0, dir }
    }

    /// Until one can type.
    #[track_caller]
    pub fn wait_booted(&mut self) -> Duration {
        let began = Instant::now();
        self.hear(LISTENING, BOOT_MOST);
        began.elapsed()
    }

    /// What root types, and what it says.
    #[track_caller]
    pub fn run(&mut self, typed: &str, most: Duration) -> Ran {
        self.lines += 1;
        let line = format!("{{ {typed}\n}} < /dev/null 2>&1; echo \"==$?==\"{}==\n", self.lines);
        self.shell.write_all(line.as_bytes()).expect("qemu runs");
        let heard = self.hear(&format!("=={}==\n", self.lines), most);
        let (out, code) = heard.rsplit_once("==").expect("the end of the line");
        let code: i32 = code.parse().expect("an exit code");
        Ran { status: ExitStatus::from_raw(code << 8), out: out.to_owned(), err: String::new() }
    }

    /// As `run`; fails the test if it failed.
    #[track_caller]
    pub fn ok(&mut self, typed: &str, most: Duration) -> String {
        let ran = self.run(typed, most);
        assert!(ran.status.success(), "`{typed}`: {}\n{}", ran.status, ran.out);
        ran.out
    }

    /// What the kernel and programs have said on the console until now.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[track_caller]
    pub fn kernel_log(&mut self) -> String {
        self.ok("dmesg", Duration::from_secs(60))
    }

    /// Shuts down in order; done when its power is off.
    #[track_caller]
    pub fn power_off(mut self) {
        self.shell.write_all(b"systemctl poweroff\n").expect("qemu runs");
        wait("it is off", OFF_MOST, || !self.qemu.running());
    }

    #[track_caller]
    fn hear(&mut self, end: &str, most: Duration) -> String {
        let until = Instant::now() + most;
        loop {
            if let Some(at) = find(&self.said, end.as_bytes()) {
                let rest = self.said.split_off(at + end.len());
                let heard = std::mem::replace(&mut self.said, rest);
                return String::from_utf8_lossy(&heard[..at]).into_owned();
            }
            let left = until.saturating_duration_since(Instant::now());
            let so_far = || String::from_utf8_lossy(&self.said).into_owned();
            assert!(!left.is_zero(), "after {most:?} still no {end:?}: {}", so_far());
            self.shell.set_read_timeout(Some(left)).expect("a time");
            let mut bytes = [0; 4096];
            match self.shell.read(&mut bytes) {
                Ok(0) => panic!("it went off: {}\n{}", so_far(), self.qemu.complained()),
                Ok(length) => self.said.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("qemu does not answer: {error}"),
            }
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Without devices that nobody asked for.
fn qemu(image: &Image, options: &str) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-cpu", "max", "-display", "none", "-nodefaults", "-no-reboot"]);
    qemu.arg("-kernel").arg(image.dir.join("vmlinuz"));
    qemu.arg("-initrd").arg(image.dir.join("initrd"));
    qemu.args(["-append", &format!("{options} console=ttyS0 quiet mitigations=off panic=-1")]);
    qemu
}

/// The kernel's help, if a kernel comes up with it: that /dev/kvm is there says little.
fn accelerator(image: &Image) -> &'static str {
    static FOUND: OnceLock<&str> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut probe = qemu(image, "loglevel=7");
        let mut probe = Started::start(probe.args(["-accel", "kvm", "-serial", "stdio"]));
        let until = Instant::now() + PROBE_MOST;
        while probe.running() && Instant::now() < until {
            if probe.said().contains("Linux version") {
                return "kvm";
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        "tcg"
    })
}

/// What in a kernel's log says that a disk or a file system did not do what it should.
#[must_use]
pub fn complaints(kernel_log: &str) -> Vec<&str> {
    let words = [
        "i/o error",
        "ext4-fs error",
        "ext4-fs warning",
        "remounting filesystem read-only",
        "aborted journal",
        "xfs_force_shutdown",
        "corruption",
        "connection timed out",
        "receive control failed",
        "blocked for more than",
        "kernel panic",
        "oops:",
    ];
    let complains = |line: &&str| {
        let line = line.to_lowercase();
        words.iter().any(|word| line.contains(word))
    };
    kernel_log.lines().filter(complains).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_complains_is_heard() {
        let log = "\
[    1.513914] EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.
[    9.513914] EXT4-fs (vda): re-mounted. Quota mode: none.
[   37.111597] I/O error, dev nbd0, sector 5 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2
[   37.111742] Buffer I/O error on dev nbd0, logical block 5, async page read
[   37.665979] XFS (nbd0): metadata I/O error in \"xfs_btree_read_buf_block\" at daddr 0x20 len 8 error 5
[   40.100000] EXT4-fs error (device vda): ext4_journal_check_start:83: Detected aborted journal
[   40.100001] EXT4-fs (vda): Remounting filesystem read-only
[  250.000000] INFO: task jbd2/vda-8:123 blocked for more than 120 seconds.
";
        assert_eq!(complaints(log), log.lines().skip(2).collect::<Vec<_>>());
    }
}
