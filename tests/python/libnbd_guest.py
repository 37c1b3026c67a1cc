"""A guest with nothing but libnbd, which comes again when its connection breaks: writes blocks, remembers what was
acknowledged, and at the end reads all of it.

libnbd_guest.py URI: writes until SIGTERM; then one line of JSON says how it went."""

import json
import random
import signal
import struct
import sys
import time

import nbd

BLOCK = 4096
BLOCKS = 2048
PATIENCE_S = 60


def connect(uri):
    """A new connection, tried again for as long as a guest would wait."""
    began = time.monotonic()
    while True:
        handle = nbd.NBD()
        try:
            handle.connect_uri(uri)
            return handle
        except nbd.Error:
            if time.monotonic() - began > PATIENCE_S:
                raise
            time.sleep(0.05)


def content(block, number):
    return struct.pack("<QQ", block, number) * (BLOCK // 16)


def main(uri):
    handle = connect(uri)
    chance = random.Random(7)
    written = {}
    connections, longest_s, number = 1, 0.0, 0
    ends = []
    signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
    while not ends:
        block = chance.randrange(BLOCKS)
        number += 1
        began = time.monotonic()
        while True:
            try:
                handle.pwrite(content(block, number), block * BLOCK, nbd.CMD_FLAG_FUA)
                break
            except nbd.Error:
                # It may have been done or not: the same again does no harm.
                handle = connect(uri)
                connections += 1
        longest_s = max(longest_s, time.monotonic() - began)
        written[block] = number
        if number % 50 == 0:
            print(number, flush=True)
    wrong = [block for block, number in written.items() if handle.pread(BLOCK, block * BLOCK) != content(block, number)]
    told = {"writes": number, "connections": connections, "longest_ms": round(longest_s * 1000), "wrong": wrong}
    print(json.dumps(told), flush=True)


main(sys.argv[1])
