#!/usr/bin/env python3
"""Proves that the command needs no more memory than it may, whatever the size of the image.

Each scenario runs under a memory cgroup of LIMIT_MIB (default 64) for everything that is charged to
it: its own memory, the page cache, the kernel's. A process that takes more is killed by the kernel;
one that does nothing else is run under the same limit to see that it is. The most anonymous memory
that was seen, sampled every 5 ms, is printed.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab import Ferry, Tally, build, loop, need_root, number, parsed, seed, skip

LIMIT = number("LIMIT_MIB", 64, 64) << 20
# What reads an image and keeps nothing of it needs no more than this, whatever its chunks are.
READER_MIB = 24
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Group:
    """A memory cgroup, of whichever version this machine has."""

    def __init__(self):
        self.v1 = (V1 / "memory.limit_in_bytes").exists()
        if not self.v1 and "memory" not in self.controllers():
            skip("there is no memory cgroup here")
        self.path = (V1 if self.v1 else V2) / f"blockferry-lab-{os.getpid()}"
        try:
            self.path.mkdir()
            limit = "memory.limit_in_bytes" if self.v1 else "memory.max"
            (self.path / limit).write_text(str(LIMIT))
        except OSError as error:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            skip(f"a memory cgroup cannot be made: {error}")

    @staticmethod
    def controllers():
        with contextlib.suppress(OSError):
            return (V2 / "cgroup.subtree_control").read_text().split()
        return []

    def enter(self):
        """Called by a child before it becomes the command."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def field(self, file, name):
        for line in (self.path / file).read_text().splitlines():
            if line.split()[0] == name:
                return int(line.split()[1])
        return 0

    def anonymous(self):
        return self.field("memory.stat", "rss" if self.v1 else "anon")

    def killed(self):
        return self.field("memory.oom_control" if self.v1 else "memory.events", "oom_kill")

    def remove(self):
        for _ in range(100):
            with contextlib.suppress(OSError):
                return self.path.rmdir()
            time.sleep(0.02)


class Lab:
    def __init__(self, work, group):
        self.work, self.group, self.tally = work, group, Tally()
        self.ferry = Ferry(build(), work / "state")
        self.root = work / "region"
        self.root.mkdir()
        self.worst = 0

    def run(self, *words, **started):
        """Runs the command under the limit: its exit code, what it said, its most memory."""
        return self.end(self.start(*words, **started))

    def start(self, *words, before=()):
        pipe = subprocess.PIPE
        enter = self.group.enter
        return self.ferry.start(*words, "--json", before=before, stdout=pipe, preexec_fn=enter)

    def end(self, process):
        most = 0
        while process.poll() is None:
            most = max(most, self.group.anonymous())
            time.sleep(0.005)
        self.worst = max(self.worst, most)
        return process.returncode, parsed(process.stdout.read()), most

    def expect(self, name, told, code, at_most_mib=LIMIT >> 20, **fields):
        got, said, most = told
        wrong = [] if got == code else [f"exit code {got}, not {code}: {json.dumps(said)}"]
        wrong += [f"{key} is {said.get(key)}" for key in fields if said.get(key) != fields[key]]
        if most > at_most_mib << 20:
            wrong.append(f"{most / (1 << 20):.1f} MiB is more than {at_most_mib}")
        if self.group.killed():
            wrong.append(f"the kernel killed {self.group.killed()} processes")
        print(f"{name}: {most / (1 << 20):.1f} MiB anonymous", flush=True)
        self.tally.note(name, wrong)

    def copies(self, rng):
        dense = self.work / "dense.raw"
        with open(dense, "wb") as file:
            for _ in range(64):
                file.write(rng.randbytes(8 << 20))
        self.copied("dense 512 MiB", dense, "dense")
        self.copied("dense, verified in full", dense, "verified", "--verify", "full")
        self.copied("dense, a sample verified", dense, "sampled", "--verify", "sample:5%")
        self.copied("dense, 64 KiB chunks", dense, "small", "--chunk-size", "64KiB")
        self.copied("dense, 64 MiB chunks", dense, "large", "--chunk-size", "64MiB")
        told = self.run("copy", dense, self.work / "plain.raw", "--verify", "full")
        self.expect("dense, to a plain file", told, 0, outcome="committed")
        told = self.run("copy", f"dir://{self.root}/dense", f"dir://{self.root}/again")
        self.expect("dense, of a region", told, 0, outcome="committed")
        self.device(dense)
        for name, size in (("4 GiB", 4 << 30), ("1 TiB", 1 << 40)):
            image = self.work / f"sparse-{size}.raw"
            with open(image, "wb") as file:
                file.truncate(size)
                for piece in range(64):
                    file.seek(size * piece // 64 // 4096 * 4096)
                    file.write(rng.randbytes(2 << 20))
            self.copied(f"sparse {name}", image, f"sparse-{size}")
        return dense

    def device(self, dense):
        backing = self.work / "device"
        with open(backing, "wb") as file:
            file.truncate(dense.stat().st_size)
        with loop(backing) as device:
            told = self.run("copy", dense, device, "--destructive", "--verify", "full")
            self.expect("dense, to a block device", told, 0, outcome="committed")
        backing.unlink()

    def copied(self, name, source, image, *words):
        told = self.run("copy", source, f"dir://{self.root}/{image}", *words)
        self.expect(name, told, 0, outcome="committed")

    def ends(self, dense):
        target = f"dir://{self.root}/half"
        slow = ["copy", dense, target, "--rate", "200MiB/s"]
        process = self.start(*slow)
        self.wait_for_stage()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        told = self.end(process)
        self.expect("suspended", told, 3, outcome="suspended")
        job = told[1].get("job")
        self.ferry.run("limit", job, "--region", f"dir://{self.root}", "--rate", "none")
        told = self.run("resume", job, "--region", f"dir://{self.root}")
        self.expect("resumed", told, 0, outcome="committed")
        if not told[1].get("resumed_bytes"):
            self.tally.note("resumed", ["nothing was resumed"])
        process = self.start("copy", dense, f"dir://{self.root}/never", "--rate", "50MiB/s")
        self.wait_for_stage()
        cancel = self.run("cancel", f"dir://{self.root}/never")
        self.expect("cancel", cancel, 0, answer="cancelled", clean=True)
        self.expect("cancelled", self.end(process), 4, outcome="rolled_back")
        reads = {"digest": f"dir://{self.root}/dense", "digest of a file": dense}
        for name, image in reads.items():
            self.expect(name, self.run("digest", image), 0, READER_MIB)
        for image in ("dense", "small", "large"):
            told = self.run("verify", f"dir://{self.root}/{image}")
            self.expect(f"verify {image}", told, 0, READER_MIB)
        # A quarter of a million chunks have their digests in memory, twice.
        told = self.run("verify", f"dir://{self.root}/sparse-{1 << 40}")
        self.expect("verify sparse 1 TiB", told, 0)
        told = self.run("recover", f"dir://{self.root}")
        self.expect("recover", told, 0, READER_MIB)

    def wait_for_stage(self):
        until = time.monotonic() + 30
        while not list(self.root.glob(".blockferry/stage/*/journal")):
            if time.monotonic() > until:
                sys.exit("no stage appears")
            time.sleep(0.01)

    def hungry(self):
        """A process that takes what it may not is killed: else nothing was proved above."""
        hog = [sys.executable, "-c", f"bytearray({LIMIT} + (32 << 20))"]
        process = subprocess.Popen(hog, preexec_fn=self.group.enter)
        died = process.wait() == -signal.SIGKILL and self.group.killed() == 1
        self.tally.note("hungry", [] if died else ["a hungry process lives under this limit"])


def main():
    need_root("to limit memory")
    group = Group()
    # Not on tmpfs: its pages would count as memory that cannot be given back.
    work = Path(tempfile.mkdtemp(prefix="ferry-memory-", dir="/var/tmp"))
    try:
        lab = Lab(work, group)
        number = seed()
        print(f"limit {LIMIT >> 20} MiB, cgroup v{1 if group.v1 else 2}, SEED={number}", flush=True)
        lab.ends(lab.copies(random.Random(number)))
        lab.hungry()
    finally:
        shutil.rmtree(work)
        group.remove()
    lab.tally.finish(f"memory: at most {lab.worst / (1 << 20):.1f} MiB anonymous")


main()
