"""The images that are copied: what they hold, how large they are, how they are made."""

import dataclasses
import os
import random
import shutil
import subprocess

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

NAMES = ["random", "os", "sparse", "huge", "zero"]

# In bytes: of the image, and of the data in it.
FULL = {
    "random": (4 * GIB, 4 * GIB),
    "os": (4 * GIB, 4 * GIB * 2 // 3),
    "sparse": (16 * GIB, 2 * GIB),
    "huge": (TIB, GIB),
    "zero": (4 * GIB, 0),
}
# What five minutes allow on a disk of 0.4 GB/s.
QUICK = {
    "random": (GIB // 2, GIB // 2),
    "os": (GIB // 2, GIB // 3),
    "sparse": (2 * GIB, GIB // 4),
    "huge": (TIB, GIB // 8),
    "zero": (GIB // 2, 0),
}
GUARD = {"random": (GIB, GIB)}


@dataclasses.dataclass(frozen=True)
class Input:
    """An image that has been made."""

    name: str
    path: str
    size: int
    data: int

    @property
    def is_dense(self):
        return self.name == "random"

    @property
    def title(self):
        of = binary(self.size)
        return {
            "random": f"{of} of random data",
            "os": f"OS image of {of}, ext4 filled from /usr, {binary(self.data)} of it data",
            "sparse": f"{of} sparse, {binary(self.data)} of data scattered",
            "huge": f"{of} sparse, {binary(self.data)} of data scattered",
            "zero": f"{of} of allocated zeros",
        }[self.name]

    @property
    def keeps_at_most(self):
        """A result that takes more space has not kept what is sparse."""
        return self.data * 3 // 2 + 64 * MIB


def sizes(mode, scale):
    def scaled(name, size, data):
        data = round(data * scale) // MIB * MIB
        return (size if name == "huge" else round(size * scale) // MIB * MIB, data)

    table = {"full": FULL, "quick": QUICK, "guard": GUARD}[mode]
    return {name: scaled(name, *of) for name, of in table.items()}


def made(name, path, sizes_of, seed):
    """Makes the image, flushed; raises `Missing` where the machine cannot."""
    size, data = sizes_of[name]
    if name == "random":
        fill(path, size, [(0, size)], seed)
    elif name == "os":
        make_os_image(path, size, data)
    elif name == "zero":
        fill(path, size, [(0, size)], None)
    else:
        fill(path, size, scattered(size, data, seed), seed)
    if name == "os":
        data = os.stat(path).st_blocks * 512
    return Input(name, path, size, data)


class Missing(Exception):
    """What this machine lacks."""


def fill(path, size, extents, seed):
    """Noise, or zeros where there is no seed, in those extents; holes elsewhere."""
    noise = random.Random(seed)
    zeros = bytes(16 * MIB)
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, len_bytes in extents:
            file.seek(offset)
            while len_bytes:
                part = min(len_bytes, len(zeros))
                file.write(zeros[:part] if seed is None else noise.randbytes(part))
                len_bytes -= part
        file.flush()
        os.fsync(file.fileno())


def scattered(size, data, seed):
    """Extents of 64 KiB to 4 MiB at random multiples of 4 KiB, `data` bytes in all."""
    chance = random.Random(seed)
    lens = []
    while data:
        lens.append(min(data, chance.randrange(1, 65) * 64 * 1024))
        data -= lens[-1]
    step = max(size // len(lens) // 4, 4 * MIB)
    slots = sorted(chance.sample(range(size // step), len(lens)))
    return [
        (slot * step + chance.randrange(0, step - len_bytes + 1, 4096), len_bytes)
        for slot, len_bytes in zip(slots, lens)
    ]


def make_os_image(path, size, data):
    maker = shutil.which("mkfs.ext4")
    if not maker:
        raise Missing("mkfs.ext4 is not installed (Debian package e2fsprogs)")
    stage = f"{path}.stage"
    try:
        # The file system's own tables and slack take some of the space.
        stage_some_of("/usr", stage, data * 92 // 100)
        with open(path, "wb") as file:
            file.truncate(size)
        command = [maker, "-q", "-F", "-b", "4096", "-d", stage, path]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def stage_some_of(root, stage, len_bytes):
    """Copies files below `root`, in the order of their names, until they are so much."""
    left = len_bytes
    for folder, folders, names in os.walk(root):
        folders.sort()
        to = os.path.join(stage, os.path.relpath(folder, root))
        os.makedirs(to, exist_ok=True)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            takes = (os.path.getsize(path) + 4095) // 4096 * 4096
            if takes <= left and os.access(path, os.R_OK):
                shutil.copyfile(path, os.path.join(to, name))
                left -= takes
        if left < MIB:
            return


def moved(image, path):
    """The same image in another place, its holes kept."""
    subprocess.run(["cp", "--sparse=auto", "--reflink=never", image.path, path], check=True)
    return dataclasses.replace(image, path=path)


def data_extents(path):
    """Offset and end of each part of a file that is not a hole."""
    with open(path, "rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, end


def binary(count):
    for unit, name in [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB")]:
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"
