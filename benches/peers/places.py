"""Where copies are made: the folder's own file system, a tmpfs, a loop-mounted XFS."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile

import inputs


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder that is the harness's own; `name` is what the options call it."""

    name: str
    folder: str
    kind: str

    @property
    def destination(self):
        return os.path.join(self.folder, "to")

    @property
    def source(self):
        return os.path.join(self.folder, "source.raw")

    def freshen(self):
        """An empty destination, and nothing that is still being written back."""
        shutil.rmtree(self.destination, ignore_errors=True)
        os.makedirs(self.destination)
        subprocess.run(["sync", "-f", self.folder], check=True)


@contextlib.contextmanager
def disk(folder):
    os.makedirs(folder, exist_ok=True)
    own = tempfile.mkdtemp(prefix="blockferry-peers-", dir=folder)
    try:
        yield Place("disk", own, kind_of(own))
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def tmpfs(disk_place):
    """A mount of its own as root, else a folder of /dev/shm."""
    if os.geteuid() == 0:
        with mounted(disk_place, "tmpfs", ["-t", "tmpfs", "-o", "size=90%", "tmpfs"]) as place:
            yield place
        return
    if not os.access("/dev/shm", os.W_OK):
        raise inputs.Missing("there is no /dev/shm, and only root may mount a tmpfs")
    own = tempfile.mkdtemp(prefix="blockferry-peers-", dir="/dev/shm")
    try:
        yield Place("tmpfs", own, kind_of(own))
    finally:
        shutil.rmtree(own, ignore_errors=True)


@contextlib.contextmanager
def xfs(disk_place, size):
    """A file system that shares blocks between files, in a sparse file of that many bytes."""
    if os.geteuid() != 0:
        raise inputs.Missing("only root may mount a file system")
    if not shutil.which("mkfs.xfs"):
        raise inputs.Missing("mkfs.xfs is not installed (Debian package xfsprogs)")
    image = os.path.join(disk_place.folder, "xfs.img")
    with open(image, "wb") as file:
        file.truncate(size)
    try:
        command = ["mkfs.xfs", "-q", "-f", "-m", "reflink=1", image]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with mounted(disk_place, "xfs", ["-t", "xfs", "-o", "loop", image]) as place:
            yield place
    finally:
        os.unlink(image)


@contextlib.contextmanager
def mounted(disk_place, name, words):
    point = os.path.join(disk_place.folder, f"{name}.mount")
    os.makedirs(point)
    done = subprocess.run(["mount", *words, point], capture_output=True, text=True)
    if done.returncode:
        raise inputs.Missing(f"mount failed: {done.stderr.strip()}")
    try:
        yield Place(name, point, kind_of(point))
    finally:
        if subprocess.run(["umount", point]).returncode:
            subprocess.run(["umount", "--lazy", point], check=True)
        os.rmdir(point)


def kind_of(folder):
    """The type of its file system, by the mount table: stat(1) cannot tell ext2 from ext4."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            before, after = line.split(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    done = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True)
    return done.stdout.strip()
