#!/usr/bin/env python3
"""Proves that a full file system costs nothing but time, however little room there is.

A copy meets ENOSPC at another place on each tmpfs and ext4: in the first folder, the journal, the
data, the manifest. Nothing is visible. Then, with not a byte free, the cancel is clean; or room is
made, and the job is resumed to its end.

ROUNDS (default 24, long mode 500) for each file system; SEED; LAB_SECONDS. FERRY names another
binary to try.
"""

import contextlib
import os
import random

from lab import (
    Client, Deadline, Ferry, Place, Tally, build, complete, make_fs, mount, mounted, need_fs,
    need_root, number, seed, settle, sparse, unmount, workspace,
)

IMAGE_BYTES = (2 << 20) + 411


@contextlib.contextmanager
def small_tmpfs(work, free_bytes):
    mnt = work / "mnt"
    mnt.mkdir(exist_ok=True)
    mount("tmpfs", mnt, "tmpfs", f"size={free_bytes}")
    try:
        yield mnt, lambda: mount("tmpfs", mnt, "tmpfs", "size=64M", again=True)
    finally:
        unmount(mnt)


@contextlib.contextmanager
def small_ext4(work, free_bytes):
    """A file system filled up but for so many bytes."""
    mnt = work / "mnt"
    make_fs("ext4", work / "disk", 16)
    with mounted(work / "disk", mnt, "ext4"):
        filler = mnt / "filler"
        there = os.statvfs(mnt)
        room = there.f_bavail * there.f_frsize - free_bytes
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room))
        yield mnt, filler.unlink


def fill_up(mnt):
    """Takes what is left, to the last byte."""
    with open(mnt / "rest", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(512)):
            pass


def one_round(lab, small, free_bytes, plain, rng):
    with small(lab.work, free_bytes) as (mnt, make_room):
        place = Place(mnt / "region", plain)
        place.root.mkdir()
        # The state folder is short of room too, every other time.
        state = mnt if rng.random() < 0.5 else lab.work
        client = Client(Ferry(lab.ferry, state / "state"), place, lab.source)
        copy = ["copy", lab.source, place.target, "--chunk-size", "64KiB"]
        code, said = client.ferry.run(*copy)
        wrong, client.job = place.wrong(lab.bytes), said.get("job")
        if code == 0:
            return "fitted", wrong
        if code != 1 or said["error"]["kind"] != "no_space":
            wrong.append(f"exit code {code}, {said}")
        if place.visible():
            wrong.append("the copy has failed, but something is visible")
        if client.job is None and place.leftovers():
            wrong.append(f"the start was refused, but there is {place.leftovers()}")
        if client.job and rng.random() < 0.5:
            fill_up(mnt)
            code, said = client.cancel()
            if code != 0 or not said.get("clean"):
                wrong.append(f"cancel without room: exit code {code}, {said}")
            return "cancelled", wrong + settle(client.ferry, place, lab.bytes, client.acks())
        make_room()
        wrong += settle(client.ferry, place, lab.bytes, client.acks())
        wrong += complete(client.ferry, place, lab.source, lab.bytes, rng)[0]
        return "completed" if client.job else "started anew", wrong


class Lab:
    def __init__(self, work):
        self.work, self.ferry, self.seed = work, build(), seed()
        self.source = work / "disk.raw"
        sparse(self.source, IMAGE_BYTES, random.Random(self.seed), 8)
        self.bytes = self.source.read_bytes()


def main():
    need_root("to mount")
    need_fs("ext4")
    rounds, tally, counts = number("ROUNDS", 24, 500), Tally(), {}
    with workspace() as work:
        lab = Lab(work)
        print(f"space: {rounds} rounds for each file system, SEED={lab.seed}", flush=True)
        for small in (small_tmpfs, small_ext4):
            deadline = Deadline(0.5)
            rng = random.Random(f"{lab.seed} {small.__name__}")
            for turn in range(rounds):
                if deadline.passed():
                    break
                # From nothing at all to a little more than what is needed.
                free_bytes = 4096 + turn * (IMAGE_BYTES * 5 // 4) // rounds + rng.randrange(65536)
                how, wrong = one_round(lab, small, free_bytes, rng.random() < 0.5, rng)
                name = f"{small.__name__} {how}"
                counts[name] = counts.get(name, 0) + 1
                tally.note(f"{name}, {free_bytes} bytes free", wrong)
    tally.finish(f"space: {counts}")


if __name__ == "__main__":
    main()
