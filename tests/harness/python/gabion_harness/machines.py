"""A cluster whose nodes have a network between them that can be cut."""

import signal
import subprocess

from .cluster import BASES, Cluster
from .network import Network

CONFIG = """\
node = {node}
cluster_file = "../cluster.toml"
dir = "{home}"

[listen]
api = "{host}:{api}"
peer = "{host}:{peer}"
nbd = "{host}:{nbd}"
nbd_unix = "{home}/nbd.sock"
http = "{host}:{http}"

[[disks]]
path = "{home}/disk0"
size_bytes = {bytes}
"""


class Machines(Cluster):
    """As `Cluster`, with a network namespace for each node. It needs root, `ip` and `nft`."""

    def __init__(self, **options):
        self.net = None
        self.processes = {}
        super().__init__(**options)

    def cut(self, one, other=None):
        """Nothing comes through between these two, or between one and all others. Programs here still reach both sides."""
        others = [other] if other is not None else [node for node in self.nodes if node != one]
        for node in others:
            self.cut_one_way(one, node)
            self.cut_one_way(node, one)

    def cut_one_way(self, sender, receiver):
        """The way back is another way."""
        self.net.cut_one_way(sender, receiver)

    def mend(self):
        """All ways are back."""
        self.net.mend()

    # -- how

    def _prepare(self):
        self.net = Network(self.slot, self.nodes)
        self.net.make()
        self.data.mkdir()
        ports = {node: {what: self._port(base, node) for what, base in BASES.items()} for node in self.nodes}
        options = []
        for node in self.nodes:
            listens = ",".join(f"{what}={port}" for what, port in ports[node].items())
            options += ["--node", f"node{node}={self._host(node)},{listens}"]
        self.verb("cluster", "init", "--file", str(self.data / "cluster.toml"), "--segment-size", "32MiB", *options)
        for node in self.nodes:
            home = self.data / f"node{node}"
            home.mkdir()
            size = self.disk_mib << 20
            (home / "config.toml").write_text(CONFIG.format(node=node, home=home, host=self._host(node), bytes=size, **ports[node]))
            self.verb("node", "init", "--config", str(home / "config.toml"))

    def _make_disks(self):
        """They are there."""

    def _host(self, node):
        return self.net.host(node)

    def _run_all(self):
        for node in self.nodes:
            self._run(node)
        self._wait_serve(self._ended)

    def _run(self, node):
        home = self.data / f"node{node}"
        log = open(home / "log", "ab")
        # It does not outlive the thread that uses it.
        command = ["setpriv", "--pdeathsig", "KILL", *self.net.command(node)]
        command += [self.program, "node", "run", "--config", str(home / "config.toml")]
        self.processes[node] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        log.close()

    def _signal(self, node, name):
        self.processes[node].send_signal(getattr(signal, f"SIG{name}"))
        if name == "KILL":
            self.processes[node].wait()

    def _ended(self):
        ended = [node for node, process in self.processes.items() if process.poll() is not None]
        return self.data / f"node{ended[0]}" / "log" if ended else None

    def _kill_all(self):
        for node in self.processes:
            self._signal(node, "KILL")

    def _end(self):
        self._kill_all()
        if self.net is not None:
            self.net.remove()
