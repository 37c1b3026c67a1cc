"""Each thing that can go wrong, once, under a file on a volume."""

import json
import os
import time

from gabion_harness import Cluster

DATA = os.urandom(8 << 20)


def seconds(what):
    began = time.monotonic()
    what()
    return time.monotonic() - began


def main():
    with Cluster(nodes=3, disk_mib=256, faulty_disks=True) as cluster:
        cluster.set("rebuild.wait", "1s")
        cluster.create("vm1", size_mib=64)
        with cluster.mount("vm1", make="ext4") as mounted:

            def write():
                with open(mounted.path / "file", "wb") as file:
                    file.write(DATA)
                    os.fsync(file.fileno())

            write()
            cluster.kill(2)
            write()
            cluster.start(2)
            cluster.wait_healthy("vm1")
            cluster.freeze(3)
            write()
            cluster.thaw(3)
            cluster.wait_healthy("vm1")

            owner = cluster.volume("vm1").owner.node
            cluster.slow_disk(owner, 0.1)
            assert seconds(write) > 0.2
            cluster.slow_disk(owner, 0)
        cluster.wait_healthy("vm1")

        # The file system's superblock lies there.
        node = cluster.rot("vm1", 0)
        found = json.loads(cluster.verb("--json", "volume", "scrub", "vm1", "--deep", "--wait"))["found"]
        assert found["bad_blocks"] == 1 and found["lost_blocks"] == 0, (node, found)
        with cluster.mount("vm1", node=2) as mounted:
            assert (mounted.path / "file").read_bytes() == DATA
    print("all is well")


main()
