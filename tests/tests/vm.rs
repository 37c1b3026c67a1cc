//! Virtual machines that know nothing of a cluster: one lives on a volume, in one the kernel's own client mounts one.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::fixture::wait;
use gabion_tests::proxy::Proxy;
use gabion_tests::vm::{Image, Machine, complaints};
use gabion_tests::{Cluster, Shape, needs, run};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MOST: Duration = Duration::from_secs(60);
const COPY_MOST: Duration = Duration::from_secs(180);
/// A node's death, and the machine's way to another.
const GETS_ON_MOST: Duration = Duration::from_secs(60);
const WORK: &str = "/root/work";
/// The machine is to have done so much more before anything else happens.
const SYNCS: u64 = 100;
const COMPILES: u64 = 5;

/// What the machine's programs have said of their work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Work {
    synced: u64,
    /// Units: milliseconds.
    longest_ms: u64,
    compiled: u64,
    went_wrong: bool,
}

impl Work {
    /// A line that the kernel spoke into, or that is not whole yet, says nothing.
    fn read(console: &str) -> Self {
        let mut work = Self::default();
        let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["synced", number, longest] => {
                    work.synced = number.parse().unwrap_or(work.synced);
                    work.longest_ms = longest.parse().unwrap_or(work.longest_ms);
                }
                ["compiled", number] => work.compiled = number.parse().unwrap_or(work.compiled),
                ["wrong", _] | ["failed", _, _] => work.went_wrong = true,
                _ => {}
            }
        }
        work
    }
}

#[test]
fn work_is_read_from_the_console() {
    let console = "boot\r\nsynced 1 3\r\ncompiled 1\r\nsynced 2 40\r\nsynced 3";
    let work = Work { synced: 2, longest_ms: 40, compiled: 1, went_wrong: false };
    assert_eq!(Work::read(console), work);
    assert!(Work::read("wrong 3\n").went_wrong);
    assert!(Work::read("synced 1 3\nfailed 2 5\n").went_wrong);
}

/// The numbered lines that were appended, if they are all there from the first on.
fn appended(log: &str) -> Result<u64, String> {
    for (line, number) in log.lines().zip(1..) {
        if line != format!("{number:08}") {
            return Err(format!("line {number} is {line:?}"));
        }
    }
    Ok(log.lines().count() as u64)
}

#[test]
fn a_line_that_is_missing_is_noticed() {
    assert_eq!(appended("00000001\n00000002\n"), Ok(2));
    assert!(appended("00000001\n00000003\n").is_err());
    assert!(appended("00000001\n\0\0\0\0\0\0\0\0\n").is_err());
}

/// The machine's root, by way of the proxy; it comes again when its connection breaks.
fn root_on(proxy: &Proxy) -> [String; 4] {
    let socket = proxy.socket.display();
    let blockdev = format!(
        "driver=nbd,node-name=root,server.type=unix,server.path={socket},export=root,reconnect-delay=300"
    );
    ["-blockdev".into(), blockdev, "-device".into(), "virtio-blk-pci,drive=root".into()]
}

fn boot_from(image: &Image, proxy: &Proxy) -> Machine {
    let root = root_on(proxy);
    let root: Vec<&str> = root.iter().map(String::as_str).collect();
    let mut machine = Machine::start_with_root(image, &root, &[]);
    println!("booted from the volume in {:?}", machine.wait_booted());
    machine
}

/// Programs that work until the power is gone, each in a unit of its own.
fn start_work(machine: &mut Machine) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm");
    for name in ["append.c", "compile.sh"] {
        let text = std::fs::read_to_string(here.join(name)).unwrap();
        machine.ok(&format!("mkdir -p {WORK}\ncat > {WORK}/{name} <<'END'\n{text}\nEND"), MOST);
    }
    let build = format!("cd {WORK} && tcc -o append append.c && sync");
    machine.ok(&build, MOST);
    let append = format!("systemd-run --quiet {WORK}/append {WORK}/log /dev/ttyS0");
    machine.ok(&append, MOST);
    let compile = format!("systemd-run --quiet --working-directory={WORK} sh {WORK}/compile.sh");
    machine.ok(&compile, MOST);
}

#[track_caller]
fn gets_on(machine: &Machine, what: &str) {
    let began = Instant::now();
    let before = Work::read(&machine.console());
    let mut now = before;
    let done = |now: &Work| {
        now.synced >= before.synced + SYNCS && now.compiled >= before.compiled + COMPILES
    };
    wait(&format!("{what}: the machine gets on"), GETS_ON_MOST, || {
        std::thread::sleep(Duration::from_millis(200));
        now = Work::read(&machine.console());
        now.went_wrong || done(&now)
    });
    println!(
        "{what}: got on within {:?}; its longest sync yet {} ms",
        began.elapsed(),
        now.longest_ms
    );
    assert!(!now.went_wrong, "{what}: {}", machine.console());
}

/// The owner dies, the other copy's node dies, the volume goes to another owner.
fn strike(cluster: &mut Cluster, machine: &Machine) {
    let owner = cluster.owner("root").unwrap();
    cluster.kill(owner);
    gets_on(machine, &format!("node {owner}, the owner, was killed"));
    cluster.start_node(owner);
    cluster.wait_healthy("root");
    let owner = cluster.owner("root").unwrap();
    let other = cluster.holders("root").into_iter().find(|node| *node != owner).unwrap();
    cluster.kill(other);
    gets_on(machine, &format!("node {other}, of the other copy, was killed"));
    cluster.start_node(other);
    cluster.wait_healthy("root");
    let owner = cluster.owner("root").unwrap();
    let next = cluster.local.ids().into_iter().find(|node| *node != owner).unwrap();
    cluster.gabion(&["volume", "move", "root", "--to", &next.to_string()]).ok();
    gets_on(machine, &format!("the volume was moved from node {owner} to node {next}"));
}

// promise: acked-survives, flush-means-flush, hold-not-fail
#[test]
fn a_machine_lives_on_a_volume_while_nodes_die() {
    let Some(image) = Image::of_tests() else { return };
    if !needs(&["haproxy", "qemu-img", "nbdcopy", "e2fsck", "debugfs"]) {
        return;
    }
    let mut cluster = Cluster::of(Shape { disk_mib: 1024, ..Shape::default() });
    cluster.set("rebuild.wait", "1s");
    cluster.create("root", 1024);
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(image.root());
    let began = Instant::now();
    run(convert.arg(cluster.tcp(1, "root")), COPY_MOST).ok();
    println!("the root file system is on the volume in {:?}", began.elapsed());

    let proxy = Proxy::before(&cluster);
    let mut machine = boot_from(&image, &proxy);
    start_work(&mut machine);
    gets_on(&machine, "nothing happened");
    strike(&mut cluster, &machine);
    let log = machine.kernel_log();
    assert_eq!(complaints(&log), [""; 0], "{log}");
    let mounts = machine.ok("findmnt -n -o OPTIONS /", MOST);
    assert!(mounts.starts_with("rw"), "{mounts}");

    // Its power goes; what it had synced is there when it comes again.
    let synced = Work::read(&machine.console());
    drop(machine);
    assert!(!synced.went_wrong);
    println!("{synced:?}");
    let mut machine = boot_from(&image, &proxy);
    let found = appended(&machine.ok(&format!("cat {WORK}/log"), MOST));
    assert!(found.clone().is_ok_and(|lines| lines >= synced.synced), "{found:?}, {synced:?}");
    let log = machine.kernel_log();
    assert_eq!(complaints(&log), [""; 0], "{log}");
    machine.power_off();
    is_sound(&cluster, synced.synced);
}

/// What lies on the volume, as programs of file systems see it.
fn is_sound(cluster: &Cluster, synced: u64) {
    let copy = cluster.dir.join("copy");
    let mut nbdcopy = Command::new("nbdcopy");
    run(nbdcopy.arg(cluster.tcp(1, "root")).arg(&copy), COPY_MOST).ok();
    let check = |copy: &Path| {
        let mut fsck = Command::new("e2fsck");
        run(fsck.args(["-f", "-n"]).arg(copy), MOST)
    };
    let found = check(&copy);
    assert!(found.status.success(), "{}\n{}", found.out, found.err);
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", &format!("cat {WORK}/log")]).arg(&copy);
    let found = appended(&run(&mut debugfs, MOST).ok()).unwrap();
    assert!(found >= synced, "{found} of {synced}");
    // Who finds nothing wrong can find something: with a group's descriptors lost.
    let file = std::fs::File::options().write(true).open(&copy).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 4096).unwrap();
    assert!(!check(&copy).status.success());
}

/// By the kernel's own client, in a machine that reaches the cluster over the network.
struct Mounted {
    machine: Machine,
}

impl Mounted {
    /// The volume of that name, through that node.
    fn new(image: &Image, cluster: &Cluster, node: u32, volume: &str) -> Self {
        let nic = ["-nic", "user,model=virtio-net-pci"];
        let mut machine = Machine::start(image, &nic);
        machine.wait_booted();
        machine.ok(
            "card=$(basename /sys/class/net/en*) && ip link set $card up && ip addr add 10.0.2.15/24 dev $card \
             && modprobe nbd nbds_max=1",
            MOST,
        );
        let entry = cluster.local.dir.entry(node).unwrap();
        let port = entry.nbd.rsplit(':').next().unwrap();
        // QEMU's network leads from there to this machine's loopback.
        machine.ok(&format!("nbd-client 10.0.2.2 {port} /dev/nbd0 -N {volume} -timeout 120"), MOST);
        Self { machine }
    }

    /// Writes, reads back and verifies, and says so in the end. It goes on in a unit of its own.
    fn start_fio(&mut self, seconds: u32) {
        self.machine.ok(
            &format!(
                "rm -f /run/fio.*; systemd-run --quiet sh -c 'fio --name=v --directory=/mnt \
                 --size=48M --bs=4k-64k --rw=randrw --ioengine=libaio --iodepth=8 --direct=1 \
                 --verify=crc32c --verify_fatal=1 --verify_backlog=64 --time_based --runtime={seconds} \
                 > /run/fio.out 2>&1; echo $? > /run/fio.code'"
            ),
            MOST,
        );
    }

    #[track_caller]
    fn wait_fio(&mut self, most: Duration) {
        let began = Instant::now();
        while !self.machine.run("test -s /run/fio.code", MOST).status.success() {
            assert!(began.elapsed() < most, "fio still runs");
            std::thread::sleep(Duration::from_millis(500));
        }
        let said = self.machine.ok("cat /run/fio.out; cat /run/fio.code", MOST);
        assert!(said.ends_with("\n0\n") && said.contains("err= 0"), "{said}");
    }
}

// promise: acked-survives, hold-not-fail
#[test]
fn the_kernels_own_client_does_not_notice_that_nodes_die() {
    let Some(image) = Image::of_tests() else { return };
    let mut cluster = Cluster::start();
    cluster.set("rebuild.wait", "1s");
    cluster.create("vm1", 320);
    let mut mounted = Mounted::new(&image, &cluster, 3, "vm1");
    for make in ["mkfs.xfs -q -f", "mkfs.ext4 -q -F"] {
        mounted.machine.ok(&format!("{make} /dev/nbd0 && mount /dev/nbd0 /mnt"), MOST);
        mounted.start_fio(20);
        let other = cluster.holders("vm1").into_iter().find(|node| *node != 3).unwrap();
        cluster.kill(other);
        cluster.wait_removed("vm1", other);
        cluster.start_node(other);
        cluster.wait_healthy("vm1");
        // An owner that is not the node that the kernel talks to.
        cluster.gabion(&["volume", "move", "vm1", "--to", &other.to_string()]).ok();
        assert_eq!(cluster.owner("vm1"), Some(other));
        cluster.kill(other);
        cluster.wait_removed("vm1", other);
        cluster.start_node(other);
        cluster.wait_healthy("vm1");
        mounted.wait_fio(Duration::from_secs(120));
        let check = if make.contains("xfs") { "xfs_repair -n" } else { "e2fsck -f -n" };
        mounted.machine.ok(&format!("umount /mnt && {check} /dev/nbd0"), MOST);
        let log = mounted.machine.kernel_log();
        assert_eq!(complaints(&log), [""; 0], "{log}");
    }
    // nbd-client gives its connection to the kernel and is gone, and nobody comes again: then there are errors, and they
    // are seen here.
    cluster.kill(3);
    mounted.machine.run("dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct", MOST);
    let log = mounted.machine.kernel_log();
    assert!(!complaints(&log).is_empty(), "{log}");
}
