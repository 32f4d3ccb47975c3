#!/usr/bin/env python3
"""Proves that a file system may be shut down under a copy, with or without its log being flushed.

ext4 and XFS, each cycle afresh: a copy, a resume or a cancel is under way when the shutdown ioctl
takes the file system away. The process meets EIO and is killed; the file system is unmounted and
mounted again, the job is recovered, twice, judged, and brought to its end.

CYCLES (default 40, long mode 5 000) for each file system; SEED; LAB_SECONDS. FERRY names another
binary to try.
"""

import fcntl
import os
import random
import shutil
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from lab import (
    Client, Deadline, Ferry, Place, Tally, build, complete, make_fs, mounted, need_fs, need_root,
    number, seed, settle, sparse, sync_folder, workspace,
)

MIB = {"ext4": 32, "xfs": 320}
SHUTDOWN = 0x8004587D
# Flush everything; flush the log only; flush nothing.
FLAGS = {"default": 0, "logflush": 1, "nologflush": 2}


def shut_down(folder, flag):
    root = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(root, SHUTDOWN, struct.pack("I", FLAGS[flag]))
    finally:
        os.close(root)


def work_until_shut_down(client, rng, flag, mnt):
    """A client at work, and the file system that goes away under it."""
    timer = threading.Timer(rng.uniform(0.0, 1.2), shut_down, [mnt, flag])
    timer.start()
    process = client.copy("--rate", rng.choice(["1MiB/s", "2MiB/s"]))
    what = rng.choice(["copy", "cancel", "resume"])
    if client.job and what != "copy":
        time.sleep(rng.uniform(0.0, 0.5))
        if what == "resume":
            process.kill()
            client.end(process)
            process = client.resume()
        else:
            client.cancel()
    timer.join()
    process.kill()
    client.end(process)
    return what


def cycles(kind, lab):
    rng, work, tally = random.Random(f"{lab.seed} {kind}"), lab.work / kind, Tally()
    work.mkdir()
    base, disk, mnt = work / "base", work / "disk", work / "mnt"
    make_fs(kind, base, MIB[kind])
    counts = {}
    for cycle in range(lab.cycles):
        if lab.deadline.passed():
            break
        shutil.copyfile(base, disk)
        place = Place(mnt / "region", plain=rng.random() < 0.5)
        inside = rng.random() < 0.5
        state = mnt / "state" if inside else work / f"state-{cycle}"
        client = Client(Ferry(lab.ferry, state), place, lab.source)
        flag = rng.choice(list(FLAGS))
        with mounted(disk, mnt, kind):
            place.root.mkdir()
            sync_folder(mnt)
            what = work_until_shut_down(client, rng, flag, mnt)
        with mounted(disk, mnt, kind):
            wrong = settle(client.ferry, place, lab.bytes, client.acks())
            if not wrong:
                wrong, _ = complete(client.ferry, place, lab.source, lab.bytes, rng)
        counts[what] = counts.get(what, 0) + 1
        tally.note(f"{kind} cycle {cycle}, {what}, {flag}, {client.acks()}", wrong)
        shutil.rmtree(work / f"state-{cycle}", ignore_errors=True)
    return kind, counts, tally


class Lab:
    def __init__(self, work):
        self.work, self.ferry, self.seed = work, build(), seed()
        self.cycles, self.deadline = number("CYCLES", 40, 5_000), Deadline()
        self.source = work / "disk.raw"
        sparse(self.source, (4 << 20) + 511, random.Random(self.seed), 6)
        self.bytes = self.source.read_bytes()


def main():
    need_root("to mount")
    need_fs("ext4", "xfs")
    total, parts = Tally(), []
    with workspace() as work:
        lab = Lab(work)
        print(f"shutdown: {lab.cycles} cycles for each file system, SEED={lab.seed}", flush=True)
        # Most of a cycle is waiting: both file systems at once.
        with ThreadPoolExecutor(len(MIB)) as pool:
            for kind, counts, tally in pool.map(lambda kind: cycles(kind, lab), MIB):
                total.add(tally)
                parts.append(f"{kind} {counts}")
    total.finish("shutdown: " + "; ".join(parts))


if __name__ == "__main__":
    main()
