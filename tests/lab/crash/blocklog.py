"""A block device that logs what is written to it, and the states that a power cut may leave.

The device is a loop over a FUSE export of qemu-storage-daemon, whose `blklogwrites` driver logs
each write and each flush in the format of dm-log-writes. Writes between two flushes may reach the
disk in any combination; those before a flush that returned are there.
"""

import contextlib
import os
import struct

from lab import clone, exported, loop, mount, unmount

SECTOR = 512
FLUSH, DISCARD = 1, 4
BLOCK = 4096
JOURNAL_MAGIC = b"BFJR"


class Recorder:
    """A mounted file system, every write to which is logged."""

    def __init__(self, base, kind, folder, mnt):
        self.base, self.kind, self.folder, self.mnt = base, kind, folder, mnt
        self.log = folder / "log"

    @contextlib.contextmanager
    def recording(self):
        """Mounts a copy of the base, and logs until the block ends."""
        self.folder.mkdir(exist_ok=True)
        self.mnt.mkdir(exist_ok=True)
        back, export = self.folder / "back", self.folder / "export"
        clone(self.base, back)
        with open(self.log, "wb") as log:
            log.truncate(SECTOR)
        log_writes = "driver=blklogwrites,node-name=top,file=f0,log=l0,log-sector-size=512"
        blockdevs = [
            f"driver=file,node-name=f0,filename={back}",
            f"driver=file,node-name=l0,filename={self.log}",
            f"{log_writes},log-super-update-interval=1",
        ]
        with exported(export, back.stat().st_size, *blockdevs), loop(export) as device:
            mount(device, self.mnt, self.kind)
            try:
                yield
                self.end = self.position()
            finally:
                unmount(self.mnt)
        back.unlink()

    def position(self):
        """How many entries the log has now."""
        with open(self.log, "rb") as log:
            return struct.unpack("<QQQI", log.read(28))[2]

    def epochs(self):
        """The writes between flushes: lists of (offset, bytes), with the position each ends at."""
        epochs, writes = [], []
        with open(self.log, "rb") as log:
            log.seek(SECTOR)
            for position in range(self.end):
                sector, count, flags, _ = struct.unpack("<QQQQ", log.read(32))
                log.seek(SECTOR - 32, os.SEEK_CUR)
                payload = b"" if flags & DISCARD else log.read(count * SECTOR)
                if flags & FLUSH:
                    epochs.append((position, writes))
                    writes = []
                # A discard may be carried out or not; file systems cannot tell, and nor do we.
                if payload:
                    writes.append((sector * SECTOR, payload))
        # What was told last rests on the last flush alone, if nothing was written since.
        epochs.append((self.end, writes))
        self.log.unlink()
        return epochs


def subsets(writes, rng, random_count):
    """Which writes of an epoch a power cut may leave, as sorted tuples of indices.

    All prefixes of a short epoch and some of a long one, each single omission, each single
    survivor, and random ones.
    """
    count = len(writes)
    everything = range(count)
    some = everything if count <= 16 else sorted(rng.sample(everything, 16))
    chosen = {(), tuple(everything)}
    chosen.update(tuple(range(k)) for k in some)
    chosen.update(tuple(i for i in everything if i != k) for k in some)
    chosen.update((k,) for k in some)
    for _ in range(random_count):
        chosen.add(tuple(i for i in everything if rng.random() < 0.5))
    return sorted(chosen)


def torn(payload, file_blocks, rng):
    """The write cut at a sector, if it carries a file's data; a file system's own blocks are not
    torn: ext4 does not survive that either."""
    if len(payload) <= SECTOR or rng.random() > 0.2:
        return payload
    blocks = (payload[at:at + BLOCK] for at in range(0, len(payload), BLOCK))
    for block in blocks:
        records = (block[at:at + 4] for at in range(0, len(block), SECTOR))
        if block not in file_blocks and JOURNAL_MAGIC not in records:
            return payload
    return payload[:rng.randrange(1, len(payload) // SECTOR) * SECTOR]
