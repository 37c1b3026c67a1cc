"""SQLite on a volume: while it commits, all machines lose power, its own too. What it had committed is there afterwards.

Run as root: PYTHONPATH=tests/harness/python GABION_BIN=target/release/gabion python3 tests/harness/python/examples/sqlite_power_cut.py
"""

import sqlite3
import sys
import threading
import time

from gabion_harness import Cluster

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 3
COMMITS = 50


class Writer(threading.Thread):
    """Commits numbers, one after the other, until the disk under it is gone."""

    def __init__(self, path, first):
        super().__init__(daemon=True)
        self.path = path
        self.committed = first

    def run(self):
        database = sqlite3.connect(self.path)
        database.execute("PRAGMA synchronous = FULL")
        try:
            while True:
                database.execute("INSERT INTO numbers VALUES (?, randomblob(3000))", [self.committed + 1])
                database.commit()
                self.committed += 1
        except sqlite3.Error:
            database.close()


def numbers(path):
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found = [number for (number,) in database.execute("SELECT number FROM numbers ORDER BY number")]
    database.close()
    return found


def main():
    with Cluster(nodes=3, disk_mib=256, faulty_disks=True, seed=1) as cluster:
        cluster.create("db", size_mib=64)
        with cluster.mount("db", make="ext4") as mounted:
            database = sqlite3.connect(mounted.path / "db")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY, ballast BLOB)")
            database.close()
        committed = 0
        for round in range(ROUNDS):
            mounted = cluster.mount("db")
            writer = Writer(mounted.path / "db", committed)
            writer.start()
            while writer.committed < committed + COMMITS:
                assert writer.is_alive(), "it failed before anything was cut"
                time.sleep(0.01)
            lost, kept = cluster.cut_power()
            promised = writer.committed
            mounted.lose()
            writer.join()
            cluster.power_on()
            with cluster.mount("db") as mounted:
                found = numbers(mounted.path / "db")
            assert found == list(range(1, len(found) + 1)), found
            assert len(found) >= promised, f"{promised} were committed, {len(found)} are there"
            committed = len(found)
            print(f"round {round}: {promised} committed, {committed} there; of what was not flushed {lost} sectors lost, {kept} kept")
    print("all is well")


main()
