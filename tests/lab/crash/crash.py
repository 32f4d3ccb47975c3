#!/usr/bin/env python3
"""Proves that power may fail at any moment of a copy, a resume, a cancel or a recovery.

The real command works on ext4 and XFS on a device that logs its writes. Then each state that a
power cut may have left is built: every flush epoch, with every prefix, single omissions, single
survivors and random subsets of its writes, file data torn at sectors. Each is mounted, recovered by
the real command, twice, and judged; in a share of them the job is brought to its end. Some
recoveries are recorded themselves, and cut off in the same way.

STATES (default 1000, long mode 20 000) for each file system; SEED; LAB_SECONDS. FERRY names another
binary to try.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from blocklog import BLOCK, Recorder, subsets, torn
from lab import (
    Acks, Client, Deadline, EncryptedPlace, Ferry, Place, Tally, build, clone, complete, dense,
    make_fs, make_keyring, mounted, need, need_fs, need_fuse, need_root, number, seed, settle,
    sparse, workspace,
)

MIB = {"ext4": 32, "xfs": 320}
# The job is brought to its end as well where an epoch begins, and in every so many other states.
COMPLETE_EVERY = 4
# So many states of each recording are recovered on a logging device, and that is cut off too.
SECOND_CRASHES = 2
SECOND_STATES = 8


class Run(Client):
    """One scenario as it was recorded: the log, and what the client was told at which position."""

    def __init__(self, lab, kind, scenario, number):
        self.lab, self.kind, self.scenario = lab, kind, scenario
        self.name = f"{kind} {scenario.name}"
        folder = lab.work / f"{kind}-{number}-{scenario.name}"
        folder.mkdir()
        # States are mounted where the recording was: jobs know their places by path.
        self.mnt = folder / "mnt"
        self.state = (self.mnt if scenario.index == "inside" else folder) / "state"
        self.recorder = Recorder(lab.base[kind], kind, folder, self.mnt)
        ferry = Ferry(lab.ferry, self.state, lab.keyring)
        if scenario.encrypted:
            place = EncryptedPlace(self.mnt / "region", ferry, folder / "back")
        else:
            place = Place(self.mnt / "region", scenario.plain)
        source_path = lab.sparse if scenario.sparse else lab.dense
        super().__init__(ferry, place, source_path)
        self.source, self.index = lab.bytes[source_path], []

    def position(self):
        return self.recorder.position()

    def record(self):
        with self.recorder.recording():
            ended = threading.Event()
            watcher = threading.Thread(target=self.watch_index, args=[ended])
            watcher.start()
            try:
                self.scenario.act(self)
                if "started" not in self.acks(self.position()):
                    raise RuntimeError(f"{self.name}: no copy was started")
            finally:
                ended.set()
                watcher.join()
        self.epochs = self.recorder.epochs()
        return self

    def watch_index(self, ended):
        """Keeps each version of an index that lies elsewhere, with the position it was seen at."""
        seen = None
        while self.scenario.index == "outside" and not ended.wait(0.0005):
            for path in (self.state / "jobs").glob("?" * 32):
                record = path.read_bytes()
                if record != seen:
                    seen = record
                    self.index.append((self.recorder.position(), path.name, record))

    def restore_index(self, position):
        """The index that lies elsewhere as it was when the power failed, or lost for good."""
        if self.scenario.index == "inside":
            return
        shutil.rmtree(self.state, ignore_errors=True)
        (self.state / "jobs").mkdir(parents=True)
        for at, name, record in self.index:
            if at <= position:
                (self.state / "jobs" / name).write_bytes(record)


class Scenario:
    def __init__(self, name, act, plain=False, sparse=False, index="inside", encrypted=False):
        self.name, self.act = name, act
        self.plain, self.sparse, self.index = plain, sparse, index
        self.encrypted = encrypted


def copies(run):
    run.end(run.copy("--rate", "512KiB/s"))


def resumes_after_kill(run):
    process = run.copy("--rate", "640KiB/s")
    time.sleep(run.lab.rng.uniform(0.8, 1.6))
    process.kill()
    run.end(process)
    run.end(run.resume())


def suspends_and_resumes(run):
    process = run.copy("--rate", "640KiB/s")
    time.sleep(run.lab.rng.uniform(0.5, 1.5))
    process.send_signal(signal.SIGTERM)
    run.end(process)
    run.ferry.run("recover", run.place.region)
    run.end(run.resume())


def is_cancelled(run):
    process = run.copy("--rate", "512KiB/s")
    time.sleep(run.lab.rng.uniform(0.1, 2.2))
    run.cancel()
    run.end(process)


def is_cancelled_without_owner(run):
    process = run.copy("--rate", "640KiB/s")
    time.sleep(run.lab.rng.uniform(0.3, 1.5))
    process.kill()
    run.end(process)
    run.cancel()


def is_cancelled_when_committed(run):
    run.end(run.copy("--rate", "1MiB/s"))
    run.cancel()


def races_commit_with_cancel(run):
    process = run.copy("--rate", "1MiB/s")
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        stage = run.place.root / ".blockferry/stage" / run.job / "image"
        if (stage / "manifest").exists() or not stage.exists():
            break
    run.cancel()
    run.end(process)


def dies_at_the_rename(run):
    inject = run.lab.rng.choice(["signal=KILL", "delay_exit=50000"])
    trace = ["-e", "trace=renameat2", "-e", f"inject=renameat2:{inject}"]
    strace = ["strace", "-qq", "-f", "-o", "/dev/null", *trace]
    process = run.copy("--rate", "1MiB/s", before=strace)
    while process.poll() is None:
        if run.place.visible():
            with contextlib.suppress(OSError):
                with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
                    for child in children.read().split():
                        os.kill(int(child), signal.SIGKILL)
            break
    run.end(process)
    run.ferry.run("recover", run.place.region)


SCENARIOS = [
    Scenario("copy", copies),
    Scenario("sparse", copies, plain=True, sparse=True, index="outside"),
    Scenario("resume", resumes_after_kill, index="lost"),
    Scenario("suspend", suspends_and_resumes, plain=True),
    Scenario("cancel", is_cancelled),
    Scenario("orphan-cancel", is_cancelled_without_owner, plain=True, index="outside"),
    Scenario("late-cancel", is_cancelled_when_committed, index="outside"),
    Scenario("race", races_commit_with_cancel),
    Scenario("rename", dies_at_the_rename, index="outside"),
    Scenario("encrypted", resumes_after_kill, encrypted=True),
    Scenario("encrypted-cancel", is_cancelled, encrypted=True),
]


class Lab:
    """What all share: the images to copy, and an empty file system of each kind."""

    def __init__(self, work, ferry, rng):
        self.work, self.ferry, self.rng = work, ferry, rng
        self.keyring = make_keyring(ferry, work / "keyring")
        self.dense, self.sparse = work / "dense.raw", work / "sparse.raw"
        dense(self.dense, (3 << 19) + 4711, rng)
        sparse(self.sparse, (9 << 20) + 511, rng, 6)
        self.bytes, self.blocks, self.base, self.counts = {}, {}, {}, {}
        for path in (self.dense, self.sparse):
            data = self.bytes[path] = path.read_bytes()
            self.blocks[path] = {data[at:at + BLOCK] for at in range(0, len(data), BLOCK)}
            self.blocks[path].discard(bytes(BLOCK))
        for kind, mib in MIB.items():
            self.base[kind] = work / f"{kind}.base"
            make_fs(kind, self.base[kind], mib)
            with mounted(self.base[kind], work / "once", kind):
                (work / "once" / "region").mkdir()

    def crash(self, kind, states_wanted, tally):
        """Records all scenarios and judges their states, until there are enough."""
        deadline = Deadline(1 / len(MIB))
        began, states, second, completed, round_number = time.monotonic(), 0, 0, 0, 0
        while states < states_wanted and not deadline.passed():
            runs = [Run(self, kind, scenario, round_number) for scenario in SCENARIOS]
            with ThreadPoolExecutor(len(runs)) as pool:
                runs = list(pool.map(Run.record, runs))
            each = max(24, -(-(states_wanted - states) // len(runs)))
            for failures, count, again, ended in judge_all(self, runs, each, deadline):
                for what, problems in failures:
                    tally.note(what, problems)
                tally.passed += count - len(failures)
                states, second, completed = states + count, second + again, completed + ended
            for run in runs:
                shutil.rmtree(run.mnt.parent)
            round_number += 1
        seconds = time.monotonic() - began
        self.counts |= {
            f"{kind}_states": states, f"{kind}_states_in_a_recovery": second,
            f"{kind}_brought_to_the_end": completed,
        }
        return (
            f"{kind} {states} states of {round_number * len(SCENARIOS)} recordings in"
            f" {seconds:.0f} s, {second} of them in a recovery, {completed} brought to the end"
        )


class Worker:
    """Builds and judges the states of recorded runs, in files of its own."""

    def __init__(self, lab, seed):
        self.lab, self.rng = lab, random.Random(seed)
        self.state = lab.work / f"{os.getpid()}.state"
        self.states = self.second = self.completed = 0
        self.failures = []

    def judge_run(self, run, states_max, deadline):
        """Judges at most so many states of a run, of all its epochs."""
        wanted = self.choose(run.epochs, states_max)
        twice = set(self.rng.sample(wanted, min(SECOND_CRASHES, len(wanted))))
        for crash, position in self.build(run, run.recorder.base, run.epochs, wanted, "first"):
            acks = run.acks(position)
            if deadline.passed():
                break
            if crash in twice:
                self.crash_again(run, position, acks, deadline)
                continue
            self.judge_state(run, position, acks, crash, "power lost in")

    def choose(self, epochs, states_max):
        """Pairs of an epoch's number and the writes of it that are left, at most so many.

        The beginnings of epochs come first, that of the last one before all: what a missing sync
        loses is missing there.
        """
        beginnings, others, last = [], [], (len(epochs) - 1, ())
        for number, (_, writes) in enumerate(epochs):
            for chosen in subsets(writes, self.rng, 12):
                # All of an epoch is what the next one begins with.
                if len(chosen) < len(writes) or number == last[0]:
                    (others if chosen else beginnings).append((number, chosen))
        beginnings.remove(last)
        first = self.rng.sample(beginnings, min(states_max - 1, len(beginnings)))
        rest = self.rng.sample(others, min(states_max - 1 - len(first), len(others)))
        return sorted([last, *first, *rest])

    def build(self, run, base, epochs, wanted, name):
        """Builds each wanted state in `self.state`, and yields it with its position in the log."""
        current = self.lab.work / f"{os.getpid()}.{name}"
        clone(base, current)
        applied = 0
        for crash in wanted:
            number, chosen = crash
            for _, writes in epochs[applied:number]:
                apply(current, writes)
            applied = number
            position, writes = epochs[number]
            clone(current, self.state)
            blocks = self.lab.blocks[run.source_path]
            left = [(writes[i][0], torn(writes[i][1], blocks, self.rng)) for i in chosen]
            apply(self.state, left)
            yield crash, position

    def judge_state(self, run, position, acks, crash, what):
        self.states += 1
        wrong = []
        try:
            with mounted(self.state, run.mnt, run.kind):
                run.restore_index(position)
                lost = run.scenario.index == "lost"
                wrong = settle(run.ferry, run.place, run.source, acks, index_lost=lost)
                begins = not crash[1]
                if not wrong and (begins or self.rng.randrange(COMPLETE_EVERY) == 0):
                    self.completed += 1
                    end = run.ferry, run.place, run.source_path, run.source
                    wrong, _ = complete(*end, self.rng)
        except OSError as error:
            wrong.append(str(error))
        if wrong:
            self.failures.append((f"{run.name}, {what} {crash}, {acks}", wrong))

    def crash_again(self, run, position, acks, deadline):
        """Records the recovery from that state, loses power in it as well, and judges that."""
        folder = self.lab.work / f"again-{os.getpid()}"
        base = self.lab.work / f"{os.getpid()}.base"
        clone(self.state, base)
        recorder = Recorder(base, run.kind, folder, run.mnt)
        answers = []
        with recorder.recording():
            run.restore_index(position)
            _, said = run.ferry.run("recover", run.place.region)
            for found in said.get("recovered", []):
                told = {"committed": ["committed"], "rolled_back": ["decided", "clean"]}
                answers.append((recorder.position(), told.get(found["settled"], [])))
        epochs = recorder.epochs()
        wanted = self.choose(epochs, SECOND_STATES)
        for crash, again in self.build(run, base, epochs, wanted, "second"):
            if deadline.passed():
                break
            told = [name for at, names in answers if at <= again for name in names]
            # Cancelled by recover: somebody had asked for it, or nobody was ever told of the job.
            known = Acks(acks.job, acks.names | set(told))
            self.second += 1
            self.judge_state(run, position, known, crash, "power lost in a recovery in")


@contextlib.contextmanager
def reflinks(work):
    """A folder on a file system that clones files in no time."""
    make_fs("xfs", work / "reflinks.xfs", 4096)
    with mounted(work / "reflinks.xfs", work / "reflinks", "xfs"):
        yield work / "reflinks"


def apply(path, writes):
    with open(path, "r+b") as file:
        for offset, payload in writes:
            file.seek(offset)
            file.write(payload)


def judge_all(lab, runs, states_each, deadline):
    """Judges the runs in as many processes as there are cores."""
    context = multiprocessing.get_context("fork")
    queue, results = context.SimpleQueue(), context.SimpleQueue()
    workers = len(os.sched_getaffinity(0))
    for number in [*range(len(runs)), *[None] * workers]:
        queue.put(number)

    def work(seed):
        worker = Worker(lab, seed)
        try:
            while (number := queue.get()) is not None:
                worker.judge_run(runs[number], states_each, deadline)
        except BaseException as error:
            worker.failures.append(("the lab itself", [repr(error)]))
            raise
        finally:
            results.put((worker.failures, worker.states, worker.second, worker.completed))

    processes = [
        context.Process(target=work, args=[lab.rng.randrange(1 << 30)]) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    told = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return told


def main():
    need_root("to mount")
    need_fs("ext4", "xfs")
    need_fuse()
    need("strace", "strace")
    states_wanted, chosen = number("STATES", 1_000, 20_000), seed()
    tally = Tally()
    print(f"crash: {states_wanted} states for each file system, SEED={chosen}", flush=True)
    ferry = build()
    with workspace() as outer, reflinks(outer) as work:
        lab = Lab(work, ferry, random.Random(chosen))
        summary = [lab.crash(kind, states_wanted, tally) for kind in MIB]
    tally.finish("crash: " + "; ".join(summary), **lab.counts)


if __name__ == "__main__":
    main()
