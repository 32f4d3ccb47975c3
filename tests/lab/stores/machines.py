#!/usr/bin/env python3
"""Proves that a copy to a store may be stopped or killed at any moment, and gone on with elsewhere.

The owner of a copy is stopped by SIGSTOP until another machine, which shares nothing with it but
the store, has taken the job over, has committed or cancelled it; then it goes on. It must stop by
itself, and damage nothing. Or the copy, and then each resume of it, is killed, each on another
machine than the one before, until it is left to commit. At the end the image is read back and
compared; after `recover --apply` without a grace there is what the head names and nothing else, and
boto3 looks whether that is so.

    machines.py BINARY FOLDER STORE ENDPOINT WORDS FENCING

FOLDER holds `disk.raw`, which is copied; WORDS is what follows a location; FENCING is what `probe`
has told. Where that is `none`, heads lie in a state folder, and all this is done by processes of
one machine.

ROUNDS of each of three kinds of stop (default 2, long mode 30); KILLS (default 4, long mode 60), at
most four of them in one copy; SEED; LAB_SECONDS, a third of which is for one store.
"""

import contextlib
import filecmp
import random
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config
from lab import Deadline, Ferry, Tally, number, parsed, seed

BUCKET = "lab-bucket"
CHUNK = 1 << 20
# All mostly wait, for the silence by which others know that an owner is dead.
SIDE_BY_SIDE = 6
KILLS_A_COPY = 4
# What anything may take: more than the silence, and what a slow store and a busy host add to it.
PATIENCE_SECONDS = 120
SWEEP_SECONDS_MAX = 30
# How a copy may end: exit code, outcome, kind of error.
COMMITTED, ROLLED_BACK = (0, "committed", None), (4, "rolled_back", None)
FENCED = (5, "failed", "fenced")


def within(what, true):
    """Asks until that is true."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (answer := true()):
        if time.monotonic() > until:
            raise Wrong(f"not in time: {what}")
        time.sleep(0.02)
    return answer


class Wrong(Exception):
    """What is not as it should be."""


class Lab:
    def __init__(self, binary, folder, store, endpoint, words, fencing):
        self.binary, self.work, self.store = binary, Path(folder), store
        self.one_machine = fencing == "none"
        self.words = words + "&fencing=none" * self.one_machine
        self.source, self.seed, self.tally = self.work / "disk.raw", seed(), Tally()
        self.bytes = self.source.stat().st_size
        path_style = Config(s3={"addressing_style": "path"})
        self.peer = boto3.client("s3", endpoint_url=endpoint, config=path_style)
        self.deadline = Deadline(1 / 3)
        self.stops, self.kills, self.late = 0, 0, 0

    def chunk_bytes(self, number):
        """The length of that chunk, and of its object: noise is not compressed."""
        return min(CHUNK, self.bytes - number * CHUNK)

    def check(self, what, examine, *given):
        if self.deadline.passed():
            return
        try:
            told, problems = examine(self, random.Random(f"{self.seed} {what}"), *given), []
        except Wrong as wrong:
            told, problems = "", [str(wrong)]
        self.tally.note(f"{self.store}: {what}", problems)
        if not problems:
            print(f"ok: {self.store}: {what}: {told}", flush=True)


class Region:
    """A region of one image, and machines that reach it, each with a state folder of its own."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.url = f"s3://{BUCKET}/{name}{lab.words}"
        self.image = f"s3://{BUCKET}/{name}/m-1{lab.words}"

    def on(self, machine):
        state = "one" if self.lab.one_machine else machine
        return Ferry(self.lab.binary, self.lab.work / f"{self.name}-{state}")

    def ask(self, machine, *words, code=0):
        """What a command says that is to end with that exit code."""
        ended, said = self.on(machine).run(*words, timeout=PATIENCE_SECONDS)
        if ended != code:
            raise Wrong(f"{words[0]} on {machine}: exit code {ended} and not {code}, {said}")
        return said

    def copy(self, rate):
        words = ["--rate", rate, "--chunk-size", CHUNK]
        return Copy(self, "a", "copy", self.lab.source, self.image, *words)

    def resume(self, machine, job):
        return Copy(self, machine, "resume", job, "--region", self.url)

    def parts(self):
        """What lies there: the keys and lengths of chunks by their number, and the other keys."""
        chunks, others = {}, []
        pages = self.lab.peer.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=BUCKET, Prefix=f"{self.name}/"):
            for found in page.get("Contents", []):
                key = found["Key"].removeprefix(f"{self.name}/")
                if chunk := re.fullmatch(r"images/m-1/\w{32}\.\w{8}/(\w{8})-\w{64}", key):
                    chunks.setdefault(int(chunk[1], 16), []).append((key, found["Size"]))
                elif not re.fullmatch(r"way|images/m-1/head(\.\w{16})?", key):
                    others.append(key)
        return chunks, others

    def sweep(self, wrong):
        """Removes what came late, on a machine that never heard of the job; how much that was.

        It may come later still, and a store whose clock has whole seconds calls nothing old that is
        younger than one: so again, until there is nothing `wrong` with what lies there.
        """
        late, until = set(), time.monotonic() + SWEEP_SECONDS_MAX
        while True:
            said = self.ask("c", "recover", self.url, "--apply", "--grace-hours", "0")
            if said["recovered"]:
                raise Wrong(f"recover: {said}")
            late |= {found["key"] for found in said["late"]}
            if not (problem := wrong(*self.parts())):
                break
            if time.monotonic() > until:
                raise Wrong(f"{problem}, after {sorted(late)} was swept")
        self.lab.late += len(late)
        return f"{len(late)} that came late swept"

    def is_whole(self):
        """The image is there, equal to its source, and after a sweep there is nothing else."""
        def wrong(chunks, others):
            numbers = sorted(number for number, found in chunks.items() for _ in found)
            if numbers != list(range(-(-self.lab.bytes // CHUNK))):
                return f"of chunks there is {numbers}"
            names = [key.rsplit("/")[-1] for key in others]
            return None if names == ["manifest"] else f"beside head and chunks there is {others}"
        self.reads_back()
        swept = self.sweep(wrong)
        # Nothing that is wanted was swept.
        self.reads_back()
        return f"equal, {swept}"

    def is_gone(self, job):
        """Nothing is visible, and after a sweep there is nothing but the head."""
        self.ask("c", "verify", self.image, code=5)
        jobs = self.ask("c", "jobs", self.url)["jobs"]
        if any(found["job"] == job and found["state"] != "rolled_back" for found in jobs):
            raise Wrong(f"it is listed: {jobs}")
        swept = self.sweep(lambda *found: f"there is {found}" if any(found) else None)
        return f"nothing is left, {swept}"

    def reads_back(self):
        back = self.lab.work / f"{self.name}.back"
        self.ask("c", "verify", self.image)
        self.ask("c", "copy", self.image, back)
        if not filecmp.cmp(self.lab.source, back, shallow=False):
            raise Wrong("what is read back differs from its source")
        back.unlink()


class Copy:
    """A copy, or a resume of it, in the background."""

    def __init__(self, region, machine, *words):
        self.what = f"{words[0]} on {machine}"
        self.told = region.lab.work / f"{region.name}-{machine}.told"
        self.said = region.lab.work / f"{region.name}-{machine}.said"
        with open(self.told, "wb") as told, open(self.said, "wb") as said:
            words = [*words, "--json", "--progress", "json"]
            self.process = region.on(machine).start(*words, stdout=said, stderr=told)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def told_so_far(self):
        lines = self.told.read_bytes().splitlines(keepends=True)
        return [parsed(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]

    def progress(self):
        """What it told last; empty before it has told anything."""
        return (self.told_so_far() or [{}])[-1]

    def wrote(self):
        """How many bytes it had begun to write when it last told so."""
        told = [told["written_bytes"] for told in self.told_so_far() if told["state"] == "copying"]
        return max(told, default=0)

    def reach(self, count):
        """Waits until it has begun to write so many bytes of this run; what it told then."""
        def reached():
            has_ended, told = self.process.poll() is not None, self.progress()
            if told and told["written_bytes"] >= count:
                return told
            if has_ended:
                raise Wrong(f"{self.what} ended too early: {self.said.read_text()}")
            return None
        return within(f"{self.what} writes {count} bytes", reached)

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        within(f"{self.what} stops", lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T")

    def goes_on(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        """Waits for its end: the exit code and what it said."""
        within(f"the end of {self.what}", lambda: self.process.poll() is not None)
        return self.process.returncode, parsed(self.said.read_text())

    def ends(self, *allowed):
        """Waits for an end that has to be one of these, and returns what it said."""
        code, said = self.end()
        found = (code, said.get("outcome"), (said.get("error") or {}).get("kind"))
        if found not in allowed:
            raise Wrong(f"{self.what} ended as {found} and not as {allowed}: {said}")
        return said


@contextlib.contextmanager
def stopped(lab, rng, name):
    """A copy whose owner is stopped at a random moment: its region, the owner, and the job."""
    region = Region(lab, name)
    with region.copy("2MiB/s") as owner:
        owner.reach(rng.randrange(lab.bytes // 4))
        # Progress is told twice a second: anywhere in between.
        time.sleep(rng.uniform(0, 0.5))
        owner.stop()
        lab.stops += 1
        yield region, owner, owner.progress()["job"]


def woken_too_early(lab, rng, turn):
    """The owner goes on while another machine copies: it is fenced, and the other commits."""
    with stopped(lab, rng, f"early-{turn}") as (region, owner, job):
        # Slow enough not to commit before the owner has been heard of, however busy the host is.
        region.ask("b", "limit", region.image, "--rate", "256KiB/s")
        with region.resume("b", job) as taker:
            taker.reach(1)
            owner.goes_on()
            owner.ends(FENCED)
            region.ask("b", "limit", region.image, "--rate", "none")
            taker.ends(COMMITTED)
        # It hears how the job has ended when it asks.
        region.ask("a", "resume", job)
        return f"fenced; {region.is_whole()}"


def woken_too_late(lab, rng, turn):
    """The owner goes on when another machine has committed: it stops, and says so.

    That it is fenced would be true, and so is that the job has committed. What it must not do is go
    on with a copy that nobody will ever see.
    """
    with stopped(lab, rng, f"late-{turn}") as (region, owner, job):
        region.ask("b", "limit", region.image, "--rate", "none")
        with region.resume("b", job) as taker:
            taker.ends(COMMITTED)
        before = owner.wrote()
        owner.goes_on()
        said = owner.ends(FENCED, COMMITTED)
        whole = region.is_whole()
        if owner.wrote() > before + lab.bytes // 2:
            raise Wrong(f"{owner.what} had begun {before} bytes when another committed, and went on"
                        f" to {owner.wrote()}: {said['outcome']}; {whole}")
        return f"{said['outcome']}; {whole}"


def woken_after_cancel(lab, rng, turn):
    """The owner goes on when another machine has cancelled the job, and cleaned up."""
    with stopped(lab, rng, f"cancelled-{turn}") as (region, owner, job):
        said = region.ask("b", "cancel", region.image)
        if (said["answer"], said["decided"], said["clean"]) != ("cancelled", True, True):
            raise Wrong(f"cancel: {said}")
        owner.goes_on()
        owner.ends(ROLLED_BACK)
        return f"rolled back; {region.is_gone(job)}"


def killed(lab, rng, turn, kills):
    """A copy, and each resume of it, is killed; the next one is on the other machine."""
    region, job = Region(lab, f"killed-{turn}"), None
    for kill in range(kills):
        with region.resume("ab"[kill % 2], job) if job else region.copy("1MiB/s") as copy:
            left = copy.reach(0)["remaining_bytes"]
            copy.reach(rng.randrange(max(left // 3, 1)))
            time.sleep(rng.uniform(0, 0.5))
            job = copy.progress()["job"]
            copy.process.kill()
            if copy.process.wait() != -signal.SIGKILL:
                # The host is busy, and the copy was faster.
                copy.ends(COMMITTED)
                return f"committed before kill {kill + 1}; {region.is_whole()}"
        lab.kills += 1
    # None of what is there is sent again. More may be there soon: what was under way.
    there = [number for number, found in region.parts()[0].items()
             if any(size == lab.chunk_bytes(number) for _, size in found)]
    region.ask("c", "limit", region.image, "--rate", "none")
    with region.resume("ab"[kills % 2], job) as copy:
        said = copy.ends(COMMITTED)
    if said["resumed_bytes"] < sum(lab.chunk_bytes(number) for number in there):
        raise Wrong(f"{len(there)} chunks were there, and {said['resumed_bytes']} bytes resumed")
    return f"committed, {said['resumed_bytes'] >> 20} MiB of it by the dead; {region.is_whole()}"


def main():
    lab = Lab(*sys.argv[1:])
    rounds, kills = number("ROUNDS", 2, 30), number("KILLS", 4, 60)
    print(f"machines: {rounds} stops of each kind, {kills} kills, SEED={lab.seed}", flush=True)
    # What takes longest comes first.
    work = []
    for turn, first in enumerate(range(0, kills, KILLS_A_COPY)):
        count = min(KILLS_A_COPY, kills - first)
        work.append((f"copy {turn}, killed {count} times", killed, turn, count))
    for turn in range(rounds):
        for kind in (woken_too_early, woken_too_late, woken_after_cancel):
            work.append((f"stop {turn}, {kind.__name__.replace('_', ' ')}", kind, turn))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(lambda given: lab.check(*given), work))
    lab.tally.finish(
        f"machines: {lab.stops} stops, {lab.kills} kills, {lab.late} objects came late and were"
        " swept", stops=lab.stops, kills=lab.kills,
    )


if __name__ == "__main__":
    main()
