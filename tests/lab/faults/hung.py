#!/usr/bin/env python3
"""Proves that a disk which hangs cannot keep a cancel from being decided, and leaves nothing.

The source is a FUSE file whose server is stopped, so that reads of it never end; or the process
that runs the job is stopped. A cancel from another process is decided within a second all the same,
and clean once all goes on, or the owner is killed. The destination lies on a FUSE file in the same
way: no journal can be written there, so the decision waits for the disk, and nothing is told
before; then all ends clean.

ROUNDS (default 3, long mode 50) of each; SEED; LAB_SECONDS. FERRY names another binary to try.
"""

import contextlib
import os
import random
import signal
import subprocess
import time

from lab import (
    Client, Deadline, Ferry, Place, Tally, build, complete, dense, exported, loop, make_fs, mount,
    need_fs, need_fuse, need_root, number, parsed, seed, settle, unmount, workspace,
)

# What a cancel may take until it is decided, where the journal can be written.
DECIDED_SECONDS_MAX = 1.0
# How long the destination's disk does not answer.
STOPPED_SECONDS = 2.0


@contextlib.contextmanager
def stopped(server):
    server.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send_signal(signal.SIGCONT)


def until(true, seconds):
    """How long it took until that was true; `None` when it was not in time."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if true():
            return time.monotonic() - began
        time.sleep(0.005)
    return None


def is_decided(client):
    """Whether the cancel is on record: only then may it be told."""
    _, said = client.ferry.run("show", client.job)
    return said.get("state") in ("cancelling", "rollback_pending", "rolled_back")


def source_hangs(lab, turn, rng):
    """Reads of the source never end."""
    export = lab.work / "export"
    blockdev = f"driver=file,node-name=top,filename={lab.source},read-only=on"
    with exported(export, len(lab.bytes), blockdev, writable=False) as server:
        return cancel_in_time(lab, turn, rng, export, server)


def owner_hangs(lab, turn, rng):
    """The process that runs the job is stopped itself."""
    return cancel_in_time(lab, turn, rng, lab.source, None)


def cancel_in_time(lab, turn, rng, source, server):
    """Cancels a copy while `server`, or else its owner, is stopped; the destination answers."""
    place = Place(lab.work / f"region-{turn}-{server is None}", plain=turn % 2 == 1)
    place.root.mkdir()
    client, wrong = Client(Ferry(lab.ferry, lab.work / "state"), place, source), []
    owner = client.copy("--rate", "1MiB/s")
    time.sleep(rng.uniform(0.2, 0.6))
    with stopped(server or owner):
        time.sleep(0.3)
        client.mark("asked")
        words = ["cancel", client.job, "--json"]
        cancel = client.ferry.start(*words, stdout=subprocess.PIPE)
        took = until(lambda: is_decided(client), 10)
        lab.decided_seconds.append(took)
        if took is None or took > DECIDED_SECONDS_MAX:
            wrong.append(f"decided after {took} s")
        if place.visible():
            wrong.append("something is visible")
        if turn % 3 == 2:
            # Nobody waits any longer: the owner is killed, and the cancel cleans up.
            owner.kill()
        elif lab.patient and turn % 3 == 1:
            # It waits its 30 seconds, and says what it knows.
            out, _ = cancel.communicate()
            if not parsed(out).get("decided") or parsed(out).get("clean"):
                wrong.append(f"without an answer: {out}")
            cancel = client.ferry.start(*words, stdout=subprocess.PIPE)
    out, _ = cancel.communicate()
    if cancel.returncode != 0 or not parsed(out).get("clean"):
        wrong.append(f"cancel: exit code {cancel.returncode}, {out}")
    client.note_cancel(parsed(out))
    client.end(owner)
    return wrong + settle(client.ferry, place, lab.bytes, client.acks())


def destination_hangs(lab, turn, rng):
    """Writes to the destination never end; nor can the decision be written there."""
    disk, export, mnt = lab.work / "disk", lab.work / "export", lab.work / "mnt"
    make_fs("ext4", disk, 32)
    mnt.mkdir(exist_ok=True)
    place = Place(mnt / "region", plain=turn % 2 == 1)
    client = Client(Ferry(lab.ferry, lab.work / "state"), place, lab.source)
    blockdev = f"driver=file,node-name=top,filename={disk}"
    with exported(export, disk.stat().st_size, blockdev) as server, loop(export) as device:
        mount(device, mnt, "ext4")
        try:
            place.root.mkdir()
            wrong = cancel_while_stopped(lab, client, server, rng)
            wrong += settle(client.ferry, place, lab.bytes, client.acks())
            return wrong + complete(client.ferry, place, lab.source, lab.bytes, rng)[0]
        finally:
            unmount(mnt)


def cancel_while_stopped(lab, client, server, rng):
    wrong = []
    owner = client.copy("--rate", "1MiB/s")
    time.sleep(rng.uniform(0.2, 0.6))
    with stopped(server):
        client.mark("asked")
        words = ["cancel", client.job, "--json"]
        cancel = client.ferry.start(*words, stdout=subprocess.PIPE)
        time.sleep(STOPPED_SECONDS)
        told_early = cancel.poll() is not None
    answered = time.monotonic()
    out, _ = cancel.communicate()
    lab.waited_seconds.append(time.monotonic() - answered)
    if told_early and parsed(out).get("decided"):
        wrong.append("it was told as decided while nothing could be written")
    if cancel.returncode != 0 or not parsed(out).get("clean"):
        wrong.append(f"cancel: exit code {cancel.returncode}, {out}")
    client.note_cancel(parsed(out))
    client.end(owner)
    return wrong


class Lab:
    def __init__(self, work):
        self.work, self.ferry, self.seed = work, build(), seed()
        # In the long mode one cancel waits out the 30 seconds for a disk that does not answer.
        self.patient = bool(os.environ.get("LAB_LONG"))
        self.source = work / "disk.raw"
        dense(self.source, (2 << 20) + 512, random.Random(self.seed))
        self.bytes = self.source.read_bytes()
        self.decided_seconds, self.waited_seconds = [], []


def main():
    need_root("to mount")
    need_fs("ext4")
    need_fuse()
    rounds, deadline, tally = number("ROUNDS", 3, 50), Deadline(), Tally()
    with workspace() as work:
        lab = Lab(work)
        print(f"hung: {rounds} rounds of each, SEED={lab.seed}", flush=True)
        rng = random.Random(lab.seed)
        for turn in range(rounds):
            if deadline.passed():
                break
            for hang in (source_hangs, owner_hangs, destination_hangs):
                tally.note(f"{hang.__name__}, round {turn}", hang(lab, turn, rng))
    decided = [round(took, 3) for took in lab.decided_seconds if took is not None]
    waited = [round(took, 3) for took in lab.waited_seconds]
    tally.finish(
        f"hung: source or owner: decided after {decided} s; destination: clean {waited} s after"
        " its disk answered again"
    )


if __name__ == "__main__":
    main()
