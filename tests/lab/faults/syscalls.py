#!/usr/bin/env python3
"""Proves that any system call of the real command may fail, or be the last one.

strace lets the n-th call of a kind (of each thread: so it counts) fail with EIO, ENOSPC or EINTR,
once or from then on, or kills the process there; while it copies, resumes, cancels, rolls back for
another process, or recovers. The command must end with an exit code of the contract, and EINTR must
not be noticed at all. Then, without faults, the job is recovered, judged, and brought to its end.
Last come random pairs: a fault in a copy, another one in what is done about it.

PAIRS (default 150, long mode 10 000) of random faults; SEED; LAB_SECONDS. FERRY names another
binary to try.
"""

import collections
import contextlib
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from lab import (
    Client, Deadline, Ferry, Place, Tally, build, complete, make_fs, mounted, need, need_fs,
    need_root, number, parsed, seed, settle, sparse, workspace,
)

DISK = ("EIO", "ENOSPC")
# Which errors each call is made to fail with. Where a call is not interruptible, EINTR is left out.
CALLS = {
    "fsync": (*DISK, "EINTR"),
    "fdatasync": (*DISK, "EINTR"),
    "pwrite64": (*DISK, "EINTR"),
    "fallocate": (*DISK, "EINTR"),
    "ftruncate": (*DISK, "EINTR"),
    "openat2": (*DISK, "EINTR"),
    "renameat": DISK,
    "renameat2": DISK,
    "unlinkat": DISK,
    "mkdirat": DISK,
    "fchmod": ("EIO",),
    "pread64": ("EIO", "EINTR"),
    "flock": ("EINTR",),
}
KILL = "KILL"
# No scenario makes more calls of a kind in one thread than this, but for data.
NTH_MAX = 24
# What the contract knows: done, failed, suspended, rolled back, refused.
EXIT_CODES = (0, 1, 3, 4, 5)
# The loader reads libraries by the calls that we let fail: then the command never began.
LOADER = 127


class Bench:
    """One file system to work on, with a copy that was suspended half way to start from."""

    def __init__(self, lab, number, plain):
        self.lab, self.rng = lab, random.Random(f"{lab.seed} {number}")
        self.mnt, self.log = lab.work / f"mnt-{number}", lab.work / f"strace-{number}"
        self.place = Place(self.mnt / "region", plain)
        self.ferry = Ferry(lab.ferry, self.mnt / "state")
        self.disk, self.half = lab.work / f"disk-{number}", lab.work / f"half-{number}"
        self.tally, self.pairs = Tally(), 0
        self.outcomes, self.calls = collections.Counter(), collections.Counter()

    def clear(self):
        for folder in (self.place.root, self.mnt / "state"):
            shutil.rmtree(folder, ignore_errors=True)
        self.place.root.mkdir()

    def client(self):
        return Client(self.ferry, self.place, self.lab.source)

    def suspend_half_way(self):
        """Makes what `from_half` starts from."""
        self.clear()
        client = self.client()
        process = client.copy("--rate", "512KiB/s")
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        assert client.end(process) == 3 and client.job
        shutil.copytree(self.mnt, self.half, ignore=shutil.ignore_patterns("lost+found"))
        self.job = client.job
        self.stage = self.place.root / (
            f".blockferry-{self.job}" if self.place.plain else f".blockferry/stage/{self.job}"
        )

    def from_half(self, limited=False):
        self.clear()
        shutil.copytree(self.half, self.mnt, dirs_exist_ok=True)
        client = self.client()
        client.job = self.job
        client.mark("started")
        if not limited:
            # A job's limits hold after a resume.
            self.ferry.run("limit", self.place.target, "--rate", "none")
        return client

    def strace(self, call, error, nth, path=None):
        """The words that let the n-th call of each thread fail; nth 3+ means: from the third on."""
        what = f"signal={error}" if error == KILL else f"error={error}"
        words = ["strace", "-qq", "-f", "-o", str(self.log)]
        words += ["-e", f"trace={call}", "-e", f"inject={call}:{what}:when={nth}"]
        return words + (["-P", str(path)] if path else [])

    def injected(self):
        """How many calls the last strace let fail, or how many threads it killed."""
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace")
            return text.count("(INJECTED)") + text.count("killed by SIGKILL")
        return 0


# What is done under a fault. Each returns the client, the exit code and the answer.


def copy(bench, strace):
    bench.clear()
    client = bench.client()
    words = ["copy", client.source_path, client.place.target, "--chunk-size", "64KiB"]
    return client, *bench.ferry.run(*words, before=strace)


def resume(bench, strace):
    client = bench.from_half()
    return client, *bench.ferry.run("resume", client.job, before=strace)


def cancel(bench, strace):
    client = bench.from_half()
    return client, *client.cancel(before=strace)


def roll_back(bench, strace):
    """The owner of a job rolls it back under a fault: another process has cancelled it."""
    client = bench.from_half(limited=True)
    owner = bench.ferry.start("resume", client.job, "--json", before=strace, stdout=-1)
    time.sleep(0.2)
    client.cancel()
    try:
        out, _ = owner.communicate(timeout=60)
    except Exception:
        owner.kill()
        return client, "hung", {}
    return client, owner.returncode, parsed(out)


def recover_a_cancel(bench, strace):
    """A cancel was decided, and its process killed before it had cleaned up."""
    client = bench.from_half()
    client.mark("asked")
    code, _ = bench.ferry.run("cancel", client.job, before=bench.strace("ftruncate", KILL, 1))
    assert code != 0 and bench.injected()
    client.mark("decided")
    return client, *bench.ferry.run("recover", client.place.region, before=strace)


def recover_a_commit(bench, strace):
    """The image was published, and the process killed before it had removed the stage."""
    client = bench.from_half()
    kill = bench.strace("unlinkat", KILL, 1, bench.stage)
    code, _ = bench.ferry.run("resume", client.job, before=kill)
    assert code != 0 and bench.injected() and bench.place.visible()
    client.mark("committed")
    return client, *bench.ferry.run("recover", client.place.region, before=strace)


SCENARIOS = (copy, resume, cancel, recover_a_cancel, recover_a_commit)


def heed(client, act, code, said):
    """What the answer tells the client, and so what must hold from now on."""
    if act in (copy, resume, roll_back):
        if said.get("job") and act is copy:
            client.job = said["job"]
            client.mark("started")
        outcome = said.get("outcome")
        if outcome == "committed":
            client.mark("committed")
        if outcome == "rolled_back":
            client.mark("decided")
    if act is cancel:
        client.note_cancel(said)


def judge(bench, act, fault, client, code, said):
    """Judges the answer to a fault, and then, without faults, what is left."""
    heed(client, act, code, said)
    wrong, kind = [], (said.get("error") or {}).get("kind")
    killed = code == -9
    if not killed and code not in EXIT_CODES:
        wrong.append(f"exit code {code}, {said}")
    if fault[1] == "EINTR" and code != (4 if act is roll_back else 0):
        wrong.append(f"EINTR was noticed: exit code {code}, {said}")
    if code == 0 and act in (copy, resume) and fault[0] == "fdatasync" and fault[1] in DISK:
        wrong.append("a sync has failed, and it was committed all the same")
    if code == 0 and act in (copy, resume) and not bench.place.visible():
        wrong.append("it says that it has committed, but nothing is visible")
    # A single fault of a start does not keep it from cleaning up after itself.
    refused = act is copy and code == 1 and client.job is None
    if refused and bench.injected() == 1 and bench.place.staged():
        wrong.append(f"the start was refused, but there is {bench.place.staged()}")
    wrong += bench.place.wrong(bench.lab.bytes)
    wrong += settle(bench.ferry, bench.place, bench.lab.bytes, client.acks())
    if not wrong:
        wrong, _ = complete(bench.ferry, bench.place, bench.lab.source, bench.lab.bytes, bench.rng)
    bench.outcomes["killed" if killed else kind or "done"] += 1
    bench.tally.note(f"{act.__name__} with {fault}, {client.acks()}", wrong)


def one_fault(bench, series):
    """The n-th call fails, for each n until there is no such call any more."""
    act, call, error = series
    counts = [1, "1+", "2+"] if error in DISK else [1]
    missed = 0
    for nth in [*counts, *range(2, NTH_MAX)]:
        if bench.lab.deadline.passed():
            return
        client, code, said = act(bench, bench.strace(call, error, nth))
        if not bench.injected():
            missed += 1
            # Threads share the calls as they please: once may be chance.
            if missed == 2:
                return
            continue
        if code == LOADER:
            continue
        bench.calls[call] += 1
        judge(bench, act, (call, error, nth), client, code, said)


def pair(bench, _):
    """A fault in a copy, and another one in what is done about it."""

    def fault():
        call = bench.rng.choice(list(CALLS))
        return call, bench.rng.choice([*CALLS[call], KILL]), bench.rng.randrange(1, 6)

    first, second = fault(), fault()
    act = bench.rng.choice((copy, resume))
    client, code, said = act(bench, bench.strace(*first))
    heed(client, act, code, said)
    staged = bench.place.staged()
    client.job = client.job or (staged[0] if staged else None)
    verb = bench.rng.choice(["recover", "resume", "cancel"]) if client.job else "recover"
    strace = bench.strace(*second)
    if verb == "cancel":
        code, said = client.cancel(before=strace)
    else:
        subject = bench.place.region if verb == "recover" else client.job
        code, said = bench.ferry.run(verb, subject, before=strace)
        if verb == "resume":
            heed(client, resume, code, said)
    wrong = [] if code in (*EXIT_CODES, LOADER, -9) else [f"exit code {code}, {said}"]
    wrong += settle(bench.ferry, bench.place, bench.lab.bytes, client.acks())
    if not wrong:
        wrong, _ = complete(bench.ferry, bench.place, bench.lab.source, bench.lab.bytes, bench.rng)
    bench.pairs += 1
    bench.tally.note(f"{act.__name__} with {first}, {verb} with {second}, {client.acks()}", wrong)


class Lab:
    def __init__(self, work):
        self.work, self.ferry, self.seed = work, build(), seed()
        self.deadline, self.pairs = Deadline(), number("PAIRS", 150, 10_000)
        self.source = work / "disk.raw"
        sparse(self.source, (1 << 20) + 411, random.Random(self.seed), 3)
        self.bytes = self.source.read_bytes()

    def work_on_bench(self, number, todo):
        """Takes series off the common list until it is empty."""
        bench = Bench(self, number, plain=number % 2 == 1)
        make_fs("ext4", bench.disk, 64)
        with mounted(bench.disk, bench.mnt, "ext4"):
            bench.suspend_half_way()
            while not self.deadline.passed():
                try:
                    what, series = todo.popleft()
                except IndexError:
                    break
                what(bench, series)
        return bench


def main():
    need_root("to mount")
    need_fs("ext4")
    need("strace", "strace")
    total, outcomes, calls = Tally(), collections.Counter(), collections.Counter()
    with workspace() as work:
        lab = Lab(work)
        print(f"syscalls: {lab.pairs} pairs, SEED={lab.seed}", flush=True)
        todo = collections.deque()
        for call, errors in CALLS.items():
            for act in SCENARIOS:
                todo += [(one_fault, (act, call, error)) for error in (*errors, KILL)]
            if call in ("fsync", "fdatasync", "ftruncate", "unlinkat"):
                todo += [(one_fault, (roll_back, call, error)) for error in ("EIO", KILL)]
        todo += [(pair, None)] * lab.pairs
        # An image of a region and a plain file, each in turn on benches of its own.
        benches = 2 * len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(benches) as pool:
            done = list(pool.map(lambda number: lab.work_on_bench(number, todo), range(benches)))
    for bench in done:
        total.add(bench.tally)
        outcomes += bench.outcomes
        calls += bench.calls
    answers = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    total.finish(
        f"syscalls: {sum(calls.values())} single faults ({dict(calls)}), answered by {answers};"
        f" {sum(bench.pairs for bench in done)} pairs",
        **{f"faults_in_{call}": calls[call] for call in CALLS},
    )


if __name__ == "__main__":
    main()
