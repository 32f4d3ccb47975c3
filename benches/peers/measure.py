"""Takes samples: settles the machine, runs a contestant, checks what it made."""

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import inputs

MIB = 1 << 20
PART = 16 * MIB

BEGAN = time.monotonic()


def elapsed():
    return time.monotonic() - BEGAN


def note(text):
    """Progress, with the time since the start."""
    seconds = round(elapsed())
    print(f"[{seconds // 60:3}:{seconds % 60:02}] {text}", file=sys.stderr, flush=True)


class Differs(Exception):
    """A copy is not what its source is, or blockferry could not make one."""


# By mode: so many rounds are enough once a table took so many seconds.
ENOUGH = {"guard": (3, 35), "quick": (2, 20)}


def in_turns(options, image, place, cache, contestants):
    """Rows in the order of the contestants: each has samples, or why it has none."""
    rows = [{"tool": one.name, "kind": one.kind, "samples": []} for one in contestants]
    began = elapsed()
    for number in range(options.rounds):
        rounds_min, seconds_max = ENOUGH.get(options.mode, (options.rounds, 0))
        if number >= rounds_min and elapsed() - began > seconds_max:
            note("a slow machine: no more rounds")
            break
        for one, row in zip(contestants, rows):
            if "failed" not in row:
                sample(options, image, place, cache, one, row, whole=number == 0)
                told = row.get("failed") or f"{row['samples'][-1]['wall_s']:.2f} s"
                note(f"round {number + 1}, {one.name}: {told}")
    shutil.rmtree(place.destination, ignore_errors=True)
    return rows


def sample(options, image, place, cache, one, row, whole):
    place.freshen()
    one.prepare()
    settle(options, image, cache)
    taken = timed(options, place, one)
    if taken["code"] != 0:
        row["failed"] = why_failed(options, taken, one)
        return
    if one.kind != "limit":
        check(image, one, whole)
        taken["used_bytes"] = os.stat(one.result).st_blocks * 512
    if one.kind == "ferry":
        taken["stalls"] = json.loads(taken["stdout"])["stalls"]
    # What tools say names the folders of this machine.
    del taken["stdout"], taken["stderr"]
    row["samples"].append(taken)


def settle(options, image, cache):
    """The source is in the page cache, or is not; memory for the copy is warm."""
    if cache == "hot":
        read_data(image.path)
    else:
        evict(image.path)
    # For the copy's pages and as much again; never so much that it pushes the source out.
    moved = max(image.data, image.size if image.name == "zero" else 0)
    wanted = 2 * moved // MIB + 512
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if "MemFree" in line)
    mib = max(64, min(wanted, free * 8 // 10 // 1024))
    subprocess.run([os.path.join(options.tools, "warm"), str(mib)], check=True)


def read_data(path):
    with open(path, "rb", buffering=0) as file:
        part = bytearray(PART)
        for start, end in inputs.data_extents(path):
            file.seek(start)
            while start < end:
                start += file.readinto(memoryview(part)[: min(PART, end - start)])


def evict(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(options, place, one, more=()):
    """What the command used; `stdout` and `stderr` as text."""
    used = os.path.join(place.folder, "used.json")
    words = [os.path.join(options.tools, "timed"), used, "--limit", str(options.limit), *more]
    if one.fsync:
        words += ["--fsync", one.result]
    done = subprocess.run([*words, *one.command], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{shlex.join(one.command)}: {done.stderr.strip()}")
    with open(used) as file:
        return json.load(file) | {"stdout": done.stdout, "stderr": done.stderr}


KILLED = 128 + 9


def why_failed(options, taken, one):
    if taken["code"] == KILLED and taken["wall_s"] >= options.limit:
        return f"> {options.limit:g} s"
    told = (taken["stderr"].strip().splitlines() or ["it said nothing"])[-1]
    if one.kind == "ferry":
        raise Differs(f"{one.name}: exit code {taken['code']}: {told} {taken['stdout']}")
    return f"failed with exit code {taken['code']}: {told}"


def check(image, one, whole):
    """Compares with `cmp`; where most is a hole, after the first time only what is data."""
    sparse = image.size > 2 * image.data + inputs.GIB
    if image.name == "huge" or (sparse and not whole):
        if not same_data(image.path, one.result):
            raise Differs(f"{one.name}: the copy of {image.title} differs")
    elif subprocess.run(["cmp", image.path, one.result]).returncode:
        raise Differs(f"{one.name}: the copy of {image.title} differs (cmp)")


def same_data(left, right):
    """Both have the same bytes: compares wherever one of them has data."""
    if os.path.getsize(left) != os.path.getsize(right):
        return False
    with open(left, "rb", buffering=0) as a, open(right, "rb", buffering=0) as b:
        for start, end in [*inputs.data_extents(left), *inputs.data_extents(right)]:
            for offset in range(start, end, PART):
                count = min(PART, end - offset)
                if os.pread(a.fileno(), count, offset) != os.pread(b.fileno(), count, offset):
                    return False
    return True


def median(row, what):
    return statistics.median(sample[what] for sample in row["samples"])


def stalls(row):
    """Median share of each stage, from what blockferry told of each of its copies."""
    told = [sample["stalls"] for sample in row["samples"]]
    return {name: statistics.median(one[name] for one in told) for name in told[0]}
