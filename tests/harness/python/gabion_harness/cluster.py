"""`gabion up` in a temporary directory, and what goes wrong there."""

import fcntl
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import urllib.request

import grpc

from .disk import Disk
from .mounted import Mounted
from .stubs import cluster_pb2, cluster_pb2_grpc, volumes_pb2, volumes_pb2_grpc
from .waiting import HarnessError, wait

# As Gabion's own tests take them: clusters side by side have ports of their own.
PORTS = pathlib.Path(tempfile.gettempdir()) / "gabion-tests-ports"
SLOTS = 40
FIRST_OFFSET = 2000
APART = 300
# Node 1 has the next one.
BASES = {"api": 7400, "peer": 7500, "nbd": 10808, "http": 7600}

CALL_S = 30
VERB_MOST_S = 150
START_MOST_S = 120
MIB = 1 << 20


def take_ports():
    """The number of a range of ports that is ours while the file is open."""
    PORTS.mkdir(exist_ok=True)
    for slot in range(SLOTS):
        lock = open(PORTS / str(slot), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return slot, lock
        except BlockingIOError:
            lock.close()
    raise HarnessError(f"all {SLOTS} ranges of ports are taken")


class Cluster:
    """Nodes are numbered from 1. With `faulty_disks` their disks can be slow, and lose what was not flushed when power is cut."""

    def __init__(self, nodes=3, disk_mib=256, program=None, faulty_disks=False, seed=0):
        self.program = program or os.environ.get("GABION_BIN") or shutil.which("gabion") or "gabion"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="gabion-harness-"))
        self.data = self.dir / "data"
        self.nodes = range(1, nodes + 1)
        self.disk_mib = disk_mib
        self.chance = random.Random(seed)
        self.slot, self._ports = take_ports()
        self.disks = {}
        self.channels = {}
        self.up = None
        try:
            self._prepare()
            if faulty_disks:
                self._make_disks()
                self.disks = {node: Disk(self.data / f"node{node}" / "disk0") for node in self.nodes}
            self.power_on()
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # -- volumes

    def create(self, name, size_mib, copies=2):
        request = volumes_pb2.CreateVolumeRequest(name=name, size_bytes=size_mib * MIB, rf=copies)
        self._volumes().Create(request, timeout=CALL_S)

    def volume(self, name):
        """As proto/ describes it: who owns it, where its copies are, why it is not healthy."""
        return self._volumes().Get(volumes_pb2.GetVolumeRequest(name=name), timeout=CALL_S).volume

    def wait_healthy(self, name, most_s=120):
        def healthy():
            try:
                return self.volume(name).health == volumes_pb2.HEALTH_HEALTHY
            except (grpc.RpcError, HarnessError):
                return False

        wait(f"{name} is healthy", most_s, healthy)

    def set(self, setting, value):
        request = cluster_pb2.SetSettingRequest(name=setting, value=value)
        self._call(cluster_pb2_grpc.ClusterStub).SetSetting(request, timeout=CALL_S)

    def uri(self, name, node=1):
        """For any NBD client."""
        return f"nbd+unix:///{name}?socket={self.data}/node{node}/nbd.sock"

    def mount(self, name, node=1, make=None):
        """Mounted here; `make="ext4"` makes a file system first."""
        return Mounted(self.uri(name, node), self.volume(name).size_bytes, make)

    # -- what goes wrong

    def kill(self, node):
        self._signal(node, "KILL")

    def start(self, node):
        self._run(node)
        wait(f"node {node} serves", START_MOST_S, lambda: self._serves(node))

    def freeze(self, node):
        self._signal(node, "STOP")

    def thaw(self, node):
        self._signal(node, "CONT")

    def slow_disk(self, node, seconds):
        """From now on each write and each flush of it takes so much longer; 0 ends that."""
        self._disk(node).slow_s = seconds

    def rot(self, name, offset):
        """One bit of one copy of the block at this byte of the volume turns over; the node that has that copy."""
        copies = json.loads(self.verb("--json", "volume", "locate", name, str(offset)))["copies"]
        copy = self.chance.choice(copies)
        node = int(copy["node"])
        path = self.disks[node].image if node in self.disks else pathlib.Path(copy["path"])
        with open(path, "r+b") as disk:
            disk.seek(copy["byte_offset"])
            byte = disk.read(1)[0]
            disk.seek(copy["byte_offset"])
            disk.write(bytes([byte ^ 1]))
            os.fsync(disk)
        return node

    def cut_power(self):
        """Of all machines at the same moment: sectors that lost what was written and not flushed, and those that kept it."""
        disks = [self._disk(node) for node in self.nodes]
        self._kill_all()
        cut = [disk.cut(self.chance.getrandbits(64)) for disk in disks]
        return sum(lost for lost, _ in cut), sum(kept for _, kept in cut)

    def power_on(self):
        for disk in self.disks.values():
            disk.power_on()
        self._run_all()

    def stop(self):
        """All of it is removed."""
        self._end()
        for disk in self.disks.values():
            disk.close()
        shutil.rmtree(self.dir)
        self._ports.close()

    def verb(self, *verb):
        """Any verb of the command line, for what has no method here."""
        command = [self.program, "--cluster", ",".join(self._apis()), *verb]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=VERB_MOST_S)
        if ran.returncode != 0:
            raise HarnessError(f"gabion {' '.join(verb)}: {ran.stderr}")
        return ran.stdout

    # -- how

    def _prepare(self):
        """Before there is anything."""

    def _make_disks(self):
        """Of nodes that do not run."""
        self._run_all()
        self._end()

    def _run_all(self):
        command = [self.program, "--json", "up", "--dir", self.data, "--nodes", str(len(self.nodes))]
        command += ["--disk-size", f"{self.disk_mib}MiB", "--base-port-offset", str(self._port(0, 0)), "--segment-size", "32MiB"]
        log = open(self.dir / "up.log", "ab")
        # It does not outlive the thread that uses it.
        command = ["setpriv", "--pdeathsig", "INT", *command]
        self.up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        log.close()
        self._wait_serve(lambda: None if self.up.poll() is None else self.dir / "up.log")

    def _wait_serve(self, ended):
        """All of them. `ended`: the log of who is not there any more, if there is one."""

        def serve():
            log = ended()
            if log is not None:
                raise HarnessError(f"it ended: {log.read_text()}")
            return all(self._serves(node) for node in self.nodes)

        wait("the cluster serves", START_MOST_S, serve)

    def _run(self, node):
        self.verb("node", "start", str(node), "--dir", str(self.data))

    def _signal(self, node, name):
        self.verb("node", "kill", str(node), "--dir", str(self.data), "--signal", name)

    def _kill_all(self):
        # Those that it started end with it.
        self.up.kill()
        self.up.wait()
        for node in self.nodes:
            pid = self._pid(node)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        wait("no node runs", CALL_S, lambda: not any(self._pid(node) for node in self.nodes))

    def _end(self):
        """In order."""
        if self.up is not None:
            self.up.send_signal(signal.SIGINT)
            self.up.wait(START_MOST_S)

    def _disk(self, node):
        if node not in self.disks:
            raise HarnessError("this cluster's disks do as they should: Cluster(faulty_disks=True)")
        return self.disks[node]

    def _pid(self, node):
        """None: it does not run; what is left of a process that nobody has waited for runs no more."""
        home = self.data / f"node{node}"
        try:
            pid = int((home / "pid").read_text())
            proc = pathlib.Path(f"/proc/{pid}")
            ours = os.fsencode(home / "config.toml") in (proc / "cmdline").read_bytes().split(b"\0")
            dead = (proc / "stat").read_text().rsplit(") ", 1)[1][0] in "ZX"
            return pid if ours and not dead else None
        except (OSError, ValueError):
            return None

    def _serves(self, node):
        try:
            with urllib.request.urlopen(f"http://{self._address('http', node)}/readyz", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _apis(self):
        return [self._address("api", node) for node in self.nodes]

    def _address(self, what, node):
        return f"{self._host(node)}:{self._port(BASES[what], node)}"

    def _host(self, node):
        return "127.0.0.1"

    def _port(self, base, node):
        return base + node + FIRST_OFFSET + self.slot * APART

    def _volumes(self):
        return self._call(volumes_pb2_grpc.VolumesStub)

    def _call(self, stub):
        """Of a node that serves: each knows all."""
        serving = [node for node in self.nodes if self._serves(node)]
        if not serving:
            raise HarnessError("no node serves")
        address = self._apis()[serving[0] - 1]
        if address not in self.channels:
            self.channels[address] = grpc.insecure_channel(address)
        return stub(self.channels[address])
