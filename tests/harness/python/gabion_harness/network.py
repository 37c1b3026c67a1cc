"""A network for the nodes of a cluster: a namespace each, and one between them, their router, where ways are cut."""

import subprocess


def run(*words, told=""):
    ran = subprocess.run(" ".join(words).split(), input=told, capture_output=True, text=True)
    if ran.returncode != 0:
        raise OSError(f"{' '.join(words)}: {ran.stderr}")


class Network:
    """As root, with `ip` and `nft`. Programs outside reach every node over the router, whatever is cut."""

    def __init__(self, number, nodes):
        """`number`: below 100; networks side by side have different ones."""
        self.name = f"gabion{number}"
        self.prefix = f"10.{100 + number}"
        self.router = f"{self.name}-router"
        self.nodes = nodes

    def make(self):
        # One whose process was killed left it behind.
        self.remove()
        run("ip netns add", self.router)
        run("ip link add", self.name, "type veth peer name outside netns", self.router)
        run("ip addr add", f"{self.prefix}.0.1/24 dev", self.name)
        run("ip link set", self.name, "up")
        self._in_router("ip addr add", f"{self.prefix}.0.254/24 dev outside")
        self._in_router("ip link set outside up")
        self._in_router("tee /proc/sys/net/ipv4/ip_forward", told="1")
        run("ip route add", f"{self.prefix}.0.0/16 via {self.prefix}.0.254")
        for node in self.nodes:
            self._add(node)
        self._in_router("nft add table ip ways")
        self._in_router("nft add chain ip ways cut { type filter hook forward priority 0 ; }")

    def _add(self, node):
        of_node = f"{self.name}-{node}"
        run("ip netns add", of_node)
        self._in_router("ip link add", f"to{node} type veth peer name eth0 netns {of_node}")
        self._in_router("ip addr add", f"{self.prefix}.{node}.254/24 dev to{node}")
        self._in_router("ip link set", f"to{node} up")
        run("ip -n", of_node, "link set lo up")
        run("ip -n", of_node, f"addr add {self.host(node)}/24 dev eth0")
        run("ip -n", of_node, "link set eth0 up")
        run("ip -n", of_node, f"route add default via {self.prefix}.{node}.254")

    def host(self, node):
        return f"{self.prefix}.{node}.1"

    def command(self, node):
        """What is written before a command that runs on a node's machine; its process id is the command's."""
        return ["ip", "netns", "exec", f"{self.name}-{node}"]

    def cut_one_way(self, sender, receiver):
        self._in_router("nft add rule ip ways cut ip saddr", self.host(sender), "ip daddr", self.host(receiver), "drop")

    def mend(self):
        self._in_router("nft flush chain ip ways cut")

    def remove(self):
        """The links go with the namespaces."""
        names = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout.split()
        for name in names:
            if name.startswith(f"{self.name}-"):
                run("ip netns delete", name)

    def _in_router(self, *words, told=""):
        run("ip netns exec", self.router, *words, told=told)
