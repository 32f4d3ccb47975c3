"""Who takes part: blockferry, its peers and the limits; how each is called."""

import dataclasses
import os
import shutil
from typing import Callable

MIB = 1 << 20

FERRY = "blockferry copy"


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to copy. `prepare` makes what must be there first, outside the time."""

    name: str
    command: list[str]
    result: str
    kind: str = "peer"
    fsync: bool = False
    prepare: Callable[[], None] = lambda: None

    @property
    def tool(self):
        return self.name.split()[0]


PACKAGES = {"qemu-img": "qemu-utils", "nbdcopy": "libnbd-bin", "rsync": "rsync", "rclone": "rclone"}


def all_of(options, image, place):
    """Those that can take part, and pairs of who is left out and why."""
    to = place.destination
    file = os.path.join(to, "copy.raw")

    def sized():
        with open(file, "wb") as made:
            made.truncate(image.size)

    peers = dense_peers if image.is_dense else sparse_peers
    found = [ferry(options, image.path, to), *peers(image.path, file, sized)]
    if options.mode == "guard":
        return [one for one in found if one.tool in ("blockferry", "cp")], []
    left_out = [] if image.is_dense else [("rclone", "it writes the holes: it knows no sparseness")]
    for one in found:
        if one.kind == "peer" and not shutil.which(one.tool):
            package = PACKAGES.get(one.tool, "coreutils")
            left_out.append((one.tool, f"it is not installed (Debian package {package})"))
    found = [one for one in found if one.kind != "peer" or shutil.which(one.tool)]
    return found + (limits(options, image, place, file) if image.is_dense else []), left_out


def ferry(options, source, to, name=FERRY):
    region = os.path.join(to, "region")
    words = ["copy", source, f"dir://{region}/image", "--state-dir", os.path.join(to, "state")]
    return Contestant(
        name,
        [options.blockferry, *words, "--progress", "none", "--json"],
        os.path.join(region, "image", "data"),
        kind="ferry",
        prepare=lambda: os.makedirs(region),
    )


def dense_peers(source, file, sized):
    qemu = "qemu-img convert -n -W -m 16 -t writeback -S 0 -f raw -O raw".split()
    return [
        cp("--reflink=never --sparse=never", source, file),
        dd("conv=fsync", source, file),
        peer("qemu-img convert -n -W -m 16 -t writeback -S 0", qemu + [source, file], file, sized),
        peer("nbdcopy --flush -S 0", ["nbdcopy", "--flush", "-S", "0", source, file], file, sized),
        rsync("--inplace --whole-file --fsync", source, file),
        Contestant(
            "rclone copyto --ignore-checksum, then fsync",
            ["rclone", "copyto", "--config=", "--ignore-checksum", source, file],
            file,
            fsync=True,
        ),
    ]


def sparse_peers(source, file, sized):
    qemu = "qemu-img convert -n --target-is-zero -W -m 16 -t writeback -f raw -O raw".split()
    nbdcopy = "nbdcopy --flush --destination-is-zero".split()
    name = "qemu-img convert -n --target-is-zero -W -m 16 -t writeback"
    return [
        cp("--reflink=never --sparse=always", source, file),
        dd("conv=sparse,fsync", source, file),
        peer(name, qemu + [source, file], file, sized),
        peer(" ".join(nbdcopy), nbdcopy + [source, file], file, sized),
        rsync("--sparse --whole-file --fsync", source, file),
    ]


def peer(name, command, result, prepare):
    return Contestant(name, command, result, prepare=prepare)


def cp(how, source, file):
    return Contestant(f"cp {how}, then fsync", ["cp", *how.split(), source, file], file, fsync=True)


def dd(how, source, file):
    block = "bs=256K" if "sparse" in how else "bs=4M"
    words = [f"if={source}", f"of={file}", block, how, "status=none"]
    return Contestant(f"dd {block} {how}", ["dd", *words], file)


def rsync(how, source, file):
    return Contestant(f"rsync {how}", ["rsync", *how.split(), source, file], file)


def limits(options, image, place, file):
    """What the place itself can take: not a peer, for it reads nothing."""
    mib = str(image.size // MIB)
    if place.name == "tmpfs":
        command = [os.path.join(options.tools, "buffered"), file, mib]
        return [Contestant("limit: one buffer written over and over", command, file, "limit")]
    command = [os.path.join(options.tools, "direct"), file, mib, "4"]
    return [Contestant("limit: O_DIRECT, 4 threads, noise, fsync", command, file, "limit")]
