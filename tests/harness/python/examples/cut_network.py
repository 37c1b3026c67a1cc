"""The network is cut under a file on a volume: who is with a majority goes on, who is alone is held until it is mended.

Run as root: PYTHONPATH=tests/harness/python GABION_BIN=target/release/gabion python3 tests/harness/python/examples/cut_network.py
"""

import os
import threading
import time

from gabion_harness import Machines

DATA = os.urandom(8 << 20)
HELD_S = 3
MOST_S = 60


def seconds(what):
    began = time.monotonic()
    what()
    return time.monotonic() - began


def main():
    with Machines(nodes=3, disk_mib=256) as machines:
        machines.set("rebuild.wait", "1s")
        machines.create("vm1", size_mib=64)
        with machines.mount("vm1", node=1, make="ext4") as mounted:

            def write():
                with open(mounted.path / "file", "wb") as file:
                    file.write(DATA)
                    os.fsync(file.fileno())

            usual = seconds(write)
            machines.cut(2)
            without = seconds(write)
            machines.mend()
            machines.wait_healthy("vm1")

            machines.cut_one_way(3, 1)
            deaf = seconds(write)
            machines.mend()
            machines.wait_healthy("vm1")

            # The file's own node is the one that is alone.
            machines.cut(1)
            writer = threading.Thread(target=write, daemon=True)
            writer.start()
            writer.join(HELD_S)
            assert writer.is_alive(), "it was acknowledged without a second copy"
            machines.mend()
            writer.join(MOST_S)
            assert not writer.is_alive(), "it is held although the network is well"
            machines.wait_healthy("vm1")
        with machines.mount("vm1", node=2) as mounted:
            assert (mounted.path / "file").read_bytes() == DATA
    print(f"8 MiB, synced: {usual:.1f} s; without node 2 {without:.1f} s; node 3 not heard by node 1 {deaf:.1f} s; held while alone")
    print("all is well")


main()
