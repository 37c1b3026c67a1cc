"""A node's disk that misbehaves when it is told to: a small NBD server over the file, and `nbdfuse` makes a file of that again."""

import os
import pathlib
import random
import socket
import struct
import subprocess
import threading
import time

from .waiting import wait

SECTOR = 512
EXPORT_MOST_S = 20

OPTION_MAGIC = 0x49484156454F5054
REPLY_MAGIC = 0x0003E889045565A9
UNSUPPORTED = 0x80000001
EXPORT_NAME = 1
FIXED_NEWSTYLE_NO_ZEROES = 3
HAS_FLAGS_FLUSH_FUA = 13
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
FUA = 1


class Disk:
    """Of a node that does not run. What is written and not flushed may be lost when the power goes, sector by sector, in any order."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.image = self.path.with_name(self.path.name + ".image")
        self.socket = self.path.with_name(self.path.name + ".socket")
        os.rename(self.path, self.image)
        self.path.touch()
        self.size = self.image.stat().st_size
        self.file = os.open(self.image, os.O_RDWR)
        # Units: seconds, for each write and each flush.
        self.slow_s = 0.0
        # What each sector held that was written since the last flush.
        self.unflushed = {}
        self.lock = threading.Lock()
        self.listener = None
        self.nbdfuse = None

    def power_on(self):
        """The node may start when this returns."""
        self.socket.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.socket))
        self.listener.listen()
        threading.Thread(target=self._accept, args=[self.listener], daemon=True).start()
        self.nbdfuse = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "nbdfuse", self.path, f"nbd+unix:///?socket={self.socket}"])
        wait("the disk is exported", EXPORT_MOST_S, lambda: self.path.stat().st_size == self.size)

    def power_off(self):
        """After its node ended."""
        if self.nbdfuse is None:
            return
        self.nbdfuse.kill()
        self.nbdfuse.wait()
        self.nbdfuse = None
        subprocess.run(["umount", "-l", self.path], check=True)
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def cut(self, seed):
        """Power goes, after its node was killed: how many sectors lost what was written and not flushed, and how many kept it."""
        self.power_off()
        chance = random.Random(seed)
        with self.lock:
            lost = [at for at in sorted(self.unflushed) if chance.random() < 0.5]
            for at in lost:
                os.pwrite(self.file, self.unflushed[at], at)
            kept = len(self.unflushed) - len(lost)
            self.unflushed.clear()
        return len(lost), kept

    def close(self):
        self.power_off()
        os.close(self.file)

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection):
        with connection, connection.makefile("rwb") as stream:
            try:
                self._greet(stream)
                while self._answer(stream):
                    stream.flush()
            except (OSError, struct.error):
                # Whoever hangs up is done.
                return

    def _greet(self, stream):
        """The oldest way to name an export is enough: every client falls back to it."""
        stream.write(b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, FIXED_NEWSTYLE_NO_ZEROES))
        stream.flush()
        (flags,) = struct.unpack(">I", stream.read(4))
        while True:
            _, option, length = struct.unpack(">QII", stream.read(16))
            stream.read(length)
            if option == EXPORT_NAME:
                stream.write(struct.pack(">QH", self.size, HAS_FLAGS_FLUSH_FUA) + (b"" if flags & 2 else bytes(124)))
                stream.flush()
                return
            stream.write(struct.pack(">QIII", REPLY_MAGIC, option, UNSUPPORTED, 0))
            stream.flush()

    def _answer(self, stream):
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", stream.read(28))
        if magic != REQUEST_MAGIC or kind == DISCONNECT:
            return False
        said = b""
        if kind == WRITE:
            self._write(offset, stream.read(length), flags & FUA)
        elif kind == READ:
            with self.lock:
                said = os.pread(self.file, length, offset)
        elif kind == FLUSH:
            with self.lock:
                self.unflushed.clear()
        if kind != READ and self.slow_s:
            time.sleep(self.slow_s)
        stream.write(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, cookie) + said)
        return True

    def _write(self, offset, data, durable):
        first = offset - offset % SECTOR
        with self.lock:
            before = os.pread(self.file, offset + len(data) - first, first)
            for at in range(first, offset + len(data), SECTOR):
                if durable:
                    self.unflushed.pop(at, None)
                else:
                    self.unflushed.setdefault(at, before[at - first : at - first + SECTOR])
            os.pwrite(self.file, data, offset)
