//! The Debian package and the scripts of `packaging/`, on three virtual machines with systemd: what Vagrant does, and
//! who has plain machines.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion_tests::fixture::{temp_dir, wait};
use gabion_tests::vm::{Image, Machine, complaints};
use gabion_tests::{needs, run};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The tool that makes it may have to be built first.
const PACKAGE_MOST: Duration = Duration::from_secs(600);
const MOST: Duration = Duration::from_secs(90);
const SCRIPT_MOST: Duration = Duration::from_secs(240);
/// The unit's patience with a process that hangs is 30 s; then it is killed and started again.
const WATCHDOG_MOST: Duration = Duration::from_secs(90);
/// Units: bytes.
const DISK: u64 = 1 << 30;
/// Of the machine that joins, on its root. Units: bytes.
const DISK_FILE: u64 = 128 << 20;
const SCRIPTS: &str = "/root/packaging/provision";

/// Where the machines are in each other's network.
fn address(number: usize) -> String {
    format!("10.77.0.{number}")
}

/// The `.deb` of the binary under test, and the scripts, on a disk that holds a tar.
struct Delivery {
    dir: PathBuf,
    tar: PathBuf,
}

impl Delivery {
    fn pack() -> Self {
        let dir = temp_dir("delivery");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut build = Command::new(root.join("packaging/build"));
        let said = run(build.arg("--no-build"), PACKAGE_MOST).ok();
        fs::copy(said.lines().last().unwrap(), dir.join("gabion.deb")).unwrap();
        let tar = dir.join("delivery.tar");
        let mut pack = Command::new("tar");
        pack.arg("-cf").arg(&tar).arg("-C").arg(&dir).arg("gabion.deb");
        run(pack.arg("-C").arg(root).arg("packaging"), MOST).ok();
        Self { dir, tar }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Three machines side by side; they share a network that is on this machine's loopback alone.
struct Three {
    machines: Vec<Machine>,
}

impl Three {
    fn boot(image: &Image, delivery: &Delivery) -> Self {
        let began = Instant::now();
        let port = free_udp_port();
        let start = |number: usize| {
            let disk = delivery.dir.join(format!("disk{number}"));
            File::create(&disk).unwrap().set_len(DISK).unwrap();
            let data = format!("file={},format=raw,if=virtio", disk.display());
            let tar = format!("file={},format=raw,if=virtio,readonly=on", delivery.tar.display());
            let net = format!("socket,id=net,mcast=230.77.0.1:{port},localaddr=127.0.0.1");
            let card = format!("virtio-net-pci,netdev=net,mac=52:54:00:77:00:0{number}");
            let options = ["-drive", &data, "-drive", &tar, "-netdev", &net, "-device", &card];
            // Three are more than the processors here.
            Machine::start(image, &[&["-smp", "1"], &options[..]].concat())
        };
        let mut three = Self { machines: (1..=3).map(start).collect() };
        three.on_all(|number, machine| {
            machine.wait_booted();
            let address = address(number);
            typed(
                machine,
                &format!(
                    "hostname m{number}; card=$(basename /sys/class/net/en*) && ip link set $card up \
                     && ip addr add {address}/24 dev $card && tar -xf /dev/vdc -C /root"
                ),
            );
        });
        println!("three machines run after {:?}", began.elapsed());
        three
    }

    /// On each, side by side.
    fn on_all(&mut self, act: impl Fn(usize, &mut Machine) + Sync) {
        let act = &act;
        std::thread::scope(|scope| {
            for (number, machine) in (1..).zip(&mut self.machines) {
                scope.spawn(move || act(number, machine));
            }
        });
    }

    fn on(&mut self, number: usize) -> &mut Machine {
        &mut self.machines[number - 1]
    }

    #[track_caller]
    fn ok(&mut self, number: usize, line: &str) -> String {
        typed(self.on(number), line)
    }

    #[track_caller]
    fn wait_healthy(&mut self) {
        self.ok(1, "gabion volume wait vm1 --healthy --timeout 120s");
    }

    fn unit(&mut self, number: usize, property: &str) -> String {
        let said = self.ok(number, &format!("systemctl show gabion -p {property} --value"));
        said.trim().to_owned()
    }
}

/// As root types it there, after a login.
#[track_caller]
fn typed(machine: &mut Machine, line: &str) -> String {
    let profile = "/etc/profile.d/gabion.sh";
    machine.ok(&format!("[ ! -e {profile} ] || . {profile}\n{line}"), SCRIPT_MOST)
}

fn free_udp_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// The package alone: a user, a unit that is enabled and has nothing to run.
fn install_on_all(three: &mut Three) {
    three.on_all(|_, machine| {
        let said = typed(machine, &format!("sh {SCRIPTS}/install /root/gabion.deb"));
        assert!(said.lines().last().unwrap().starts_with("gabion "), "{said}");
    });
    for number in 1..=3 {
        assert!(three.ok(number, "id gabion").contains("(disk)"));
        assert_eq!(three.ok(number, "systemctl is-enabled gabion").trim(), "enabled");
        assert_eq!(three.unit(number, "ActiveState"), "inactive");
        let modes = three.ok(number, "stat -c '%A %U %G' /etc/gabion /var/lib/gabion");
        assert_eq!(modes, "drwxr-x--- root gabion\ndrwx------ gabion gabion\n");
    }
}

/// By the scripts that Vagrant runs; what was made is kept when they run again.
fn form_cluster(three: &mut Three) {
    let nodes = (1..=3).map(|number| format!("--node m{number}={}", address(number)));
    let nodes: Vec<String> = nodes.collect();
    three.ok(1, &format!("gabion cluster init --file /root/cluster.toml {}", nodes.join(" ")));
    let shared = three.ok(1, "cat /root/cluster.toml");
    for number in 1..=3 {
        three.ok(number, &format!("cat > /root/cluster.toml <<'END'\n{shared}\nEND"));
        let node = format!(
            "sh {SCRIPTS}/node --number {number} --cluster-file /root/cluster.toml --address {} --disk /dev/vdb",
            address(number)
        );
        let said = three.ok(number, &node);
        assert!(said.contains("formatted") && said.contains("Active: active"), "{said}");
        let again = three.ok(number, &node);
        assert!(again.contains("it runs already"), "{again}");
    }
    let said = three.ok(1, &format!("sh {SCRIPTS}/volume vm1 256MiB 3"));
    assert!(said.contains("healthy") && said.contains("nbd-client -N vm1"), "{said}");
    for number in 1..=3 {
        wait("systemd is told that it serves", MOST, || {
            three.unit(number, "StatusText").starts_with("serves")
        });
        assert_eq!(three.unit(number, "NRestarts"), "0");
    }
}

/// The process is there and does nothing any more.
fn hang(three: &mut Three, number: usize) {
    let began = Instant::now();
    let process = three.unit(number, "MainPID");
    three.ok(number, &format!("kill -STOP {process}"));
    wait("systemd starts it again", WATCHDOG_MOST, || {
        std::thread::sleep(Duration::from_secs(1));
        three.unit(number, "NRestarts") == "1" && three.unit(number, "ActiveState") == "active"
    });
    assert_ne!(three.unit(number, "MainPID"), process);
    println!("a node that hung runs again after {:?}", began.elapsed());
    three.wait_healthy();
}

fn upgrade(three: &mut Three, number: usize) {
    let before = three.unit(number, "MainPID");
    let said = three.ok(number, &format!("sh {SCRIPTS}/install /root/gabion.deb"));
    assert_ne!(three.unit(number, "MainPID"), before, "{said}");
    let log = three.ok(number, "journalctl -u gabion -o cat");
    assert!(log.contains("told to stop"), "{log}");
    three.wait_healthy();
    // What was stopped by hand is not started by an upgrade.
    three.ok(number, "systemctl stop gabion");
    three.ok(number, &format!("sh {SCRIPTS}/install /root/gabion.deb"));
    assert_eq!(three.unit(number, "ActiveState"), "inactive");
    three.ok(number, "systemctl start gabion");
    three.wait_healthy();
}

fn purge_and_come_back(three: &mut Three, number: usize) {
    let identity = three.ok(number, "sha256sum /var/lib/gabion/identity.toml /etc/gabion/*");
    let said = three.ok(number, "apt-get purge -y gabion");
    assert!(said.contains("/var/lib/gabion holds data of a node and stays"), "{said}");
    let left = three.ok(
        number,
        "find / -xdev -name '*gabion*' -not -path '/root/*' -not -path '/proc/*' | sort",
    );
    assert_eq!(left, "/etc/gabion\n/var/lib/gabion\n");
    assert!(!three.on(number).run("pgrep -x gabion", MOST).status.success());
    assert_eq!(three.ok(number, "sha256sum /var/lib/gabion/identity.toml /etc/gabion/*"), identity);

    three.ok(number, &format!("sh {SCRIPTS}/install /root/gabion.deb"));
    assert_eq!(three.unit(number, "ActiveState"), "active");
    three.wait_healthy();
}

fn purge_with_data(three: &mut Three, number: usize) {
    three.ok(number, "GABION_PURGE_DATA=yes apt-get purge -y gabion");
    let left =
        three.ok(number, "find / -xdev -name '*gabion*' -not -path '/root/*' -not -path '/proc/*'");
    assert_eq!(left, "");
    assert!(!three.on(number).run("getent passwd gabion", MOST).status.success());
}

/// The machine that has nothing any more joins by a token, as another node.
fn join_anew(three: &mut Three, number: usize) {
    let began = Instant::now();
    wait("the node is given up", MOST, || {
        three
            .on(1)
            .run(". /etc/profile.d/gabion.sh; gabion node remove m3 --force", MOST)
            .status
            .success()
    });
    three.ok(number, &format!("sh {SCRIPTS}/install /root/gabion.deb"));
    let join = |token: &str| {
        let members = format!("{},{}", address(1), address(2));
        format!(
            "sh {SCRIPTS}/node --join {members} --token '{token}' --address {} \
             --disk-file /var/lib/gabion/disk0:{DISK_FILE}",
            address(number)
        )
    };
    let refused = three.on(number).run(&join("gabion"), SCRIPT_MOST);
    assert!(
        !refused.status.success() && refused.out.contains("that is no token"),
        "{}",
        refused.out
    );
    assert_eq!(three.unit(number, "ActiveState"), "inactive");

    let token = three.ok(1, "gabion cluster token | head -n 1");
    let said = three.ok(number, &join(token.trim()));
    assert!(said.contains("it is node 4 of cluster") && said.contains("Active: active"), "{said}");
    // It needs no token any more.
    let again = three.ok(number, &join(""));
    assert!(again.contains("it runs already"), "{again}");
    three.ok(number, "systemctl stop gabion");
    let again = three.ok(number, &join(""));
    assert!(
        again.contains("is this node's already") && again.contains("Active: active"),
        "{again}"
    );
    wait("it serves", MOST, || three.unit(number, "StatusText").starts_with("serves"));
    let nodes = three.ok(number, "gabion node list");
    assert_eq!(nodes.matches(" up ").count(), 3, "{nodes}");
    three.wait_healthy();
    println!("a machine with nothing on it serves after {:?}", began.elapsed());
}

// promise: acked-survives
#[test]
fn the_package_makes_three_machines_a_cluster() {
    let Some(image) = Image::of_tests() else { return };
    if !needs(&["dpkg-deb", "tar"]) {
        return;
    }
    let delivery = Delivery::pack();
    let mut three = Three::boot(&image, &delivery);
    let began = Instant::now();
    install_on_all(&mut three);
    form_cluster(&mut three);
    println!("from three machines to a healthy volume: {:?}", began.elapsed());

    // As the script says what is next.
    three.ok(
        1,
        "modprobe nbd && nbd-client -N vm1 127.0.0.1 /dev/nbd0 && mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt \
         && dd if=/dev/urandom of=/mnt/file bs=1M count=40 conv=fsync && sha256sum /mnt/file > /root/sum",
    );
    hang(&mut three, 2);
    upgrade(&mut three, 3);
    purge_and_come_back(&mut three, 2);
    three.ok(1, "echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sum && umount /mnt && e2fsck -fn /dev/nbd0");
    let log = three.on(1).kernel_log();
    assert_eq!(complaints(&log), [""; 0], "{log}");
    purge_with_data(&mut three, 3);
    join_anew(&mut three, 3);
    println!("all of it: {:?}", began.elapsed());
}
