"""A volume with a file system on it, mounted here: nbdfuse makes a file of the volume, a loop device makes a disk of the file."""

import pathlib
import subprocess
import tempfile

from .waiting import wait

EXPORT_MOST_S = 20


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Mounted:
    """Through one node; it does not follow when that node dies. Needs root, loop devices and `nbdfuse`."""

    def __init__(self, uri, size, make=None):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="gabion-mounted-"))
        self.file = self.dir / "volume"
        self.path = self.dir / "mnt"
        self.file.touch()
        self.path.mkdir()
        self.loop = None
        self.is_mounted = False
        self.nbdfuse = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "nbdfuse", self.file, uri])
        try:
            wait("the volume is a file", EXPORT_MOST_S, lambda: self.file.stat().st_size == size)
            self.loop = run("losetup", "--find", "--show", "--direct-io=on", str(self.file))
            if make is not None:
                run(f"mkfs.{make}", "-q", self.loop)
            run("mount", self.loop, str(self.path))
            self.is_mounted = True
        except BaseException:
            self.lose()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self.nbdfuse is not None:
            self.lose() if any(failure) else self.unmount()

    def unmount(self):
        """In order: all that was written is on the volume."""
        run("umount", str(self.path))
        self.is_mounted = False
        run("losetup", "--detach", self.loop)
        self.loop = None
        run("umount", str(self.file))
        self.nbdfuse.wait()
        self._forget()

    def lose(self):
        """The machine that has it mounted loses its power: what was not synced is gone."""
        if self.nbdfuse is None:
            return
        self.nbdfuse.kill()
        self.nbdfuse.wait()
        if self.is_mounted:
            run("umount", "--lazy", str(self.path))
        if self.loop is not None:
            run("losetup", "--detach", self.loop)
        run("umount", "--lazy", str(self.file))
        self._forget()

    def _forget(self):
        self.nbdfuse = None
        self.file.unlink()
        self.path.rmdir()
        self.dir.rmdir()
