"""How fast a cancel is, and what a kill costs: at random moments, and at half."""

import json
import os
import random
import statistics
import subprocess
import time

import contestants
import inputs
import measure


def measured(options, disk):
    image = inputs.made("random", disk.source, options.sizes, options.seed)
    try:
        resumes = resumed(options, disk, image)
        cancels = cancelled(options, disk, image, resumes["undisturbed_s"])
    finally:
        os.unlink(disk.source)
    return {"size": image.size, "cancel": cancels, "resume": resumes}


def resumed(options, disk, image):
    """Undisturbed copies and such that are killed at half and resumed, in turns."""
    whole, broken = [], []
    for number in range(options.resumes):
        whole.append(one_copy(options, disk, image)["wall_s"])
        broken.append(killed_at_half(options, disk, image))
        measure.note(
            f"kill {number + 1}: {whole[-1]:.2f} s undisturbed, {broken[-1]['total_s']:.2f} s in "
            f"two, {broken[-1]['redone_bytes'] / inputs.MIB:.0f} MiB redone"
        )
    return {
        "undisturbed_s": statistics.median(whole),
        "total_s": statistics.median(one["total_s"] for one in broken),
        "redone_bytes": statistics.median(one["redone_bytes"] for one in broken),
        "undisturbed": whole,
        "broken": broken,
    }


def one_copy(options, disk, image, more=()):
    ferry = contestants.ferry(options, image.path, disk.destination)
    disk.freshen()
    ferry.prepare()
    measure.settle(options, image, "hot")
    taken = measure.timed(options, disk, ferry, more)
    if taken["code"] != (measure.KILLED if more else 0):
        raise measure.Differs(f"a copy ended with exit code {taken['code']}: {taken['stderr']}")
    return taken


def killed_at_half(options, disk, image):
    """What the first run wrote is what its calls wrote; the journal is a rounding error in it."""
    first = one_copy(options, disk, image, ["--kill-at", str(image.size // 2)])
    verb = ["resume", only_job(options, disk), "--progress", "none"]
    ferry = contestants.ferry(options, image.path, disk.destination)
    command = [options.blockferry, *verb, *state_of(disk), "--json"]
    second = measure.timed(
        options, disk, contestants.Contestant("resume", command, ferry.result, kind="ferry")
    )
    if second["code"] != 0:
        raise measure.Differs(f"resume: exit code {second['code']}: {second['stderr']}")
    measure.check(image, ferry, whole=True)
    told = json.loads(second["stdout"])
    return {
        "first_s": first["wall_s"],
        "second_s": second["wall_s"],
        "total_s": first["wall_s"] + second["wall_s"],
        "written_before_bytes": first["call_written_bytes"],
        "resumed_bytes": told["resumed_bytes"],
        "redone_bytes": max(0, first["call_written_bytes"] - told["resumed_bytes"]),
    }


def state_of(disk):
    return ["--state-dir", os.path.join(disk.destination, "state")]


def only_job(options, disk):
    command = [options.blockferry, "jobs", *state_of(disk), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["jobs"][0]["job"]


def cancelled(options, disk, image, undisturbed_s):
    """Cancels from another process at uniformly random moments of a copy."""
    chance = random.Random(options.seed)
    answers = [
        one_cancel(options, disk, image, chance.uniform(0.05, 0.9) * undisturbed_s)
        for _ in range(options.cancels)
    ]
    return summed_up(answers)


def summed_up(answers):
    good = [one for one in answers if one["answer"] == "cancelled" and one["clean"]]
    late = sum(one["answer"] == "already_committed" for one in answers)
    early = sum(one["answer"] == "not_found" for one in answers)
    measure.note(f"{len(answers)} cancels: {len(good)} in time, {late} too late")
    if not good:
        raise measure.Differs(f"no cancel was in time: {answers}")
    # Of the call: as the engine saw it. Of the process: with its start and its end.
    decided = [one["decided_ms"] for one in good]
    clean = [one["clean_ms"] - one["decided_ms"] for one in good]
    ends = [one["process_ms"] - one["clean_ms"] for one in good]
    return {
        "asked": len(answers),
        "in_time": len(good),
        "too_late": late,
        "too_early": early,
        "otherwise": len(answers) - len(good) - late - early,
        "decided_ms": spread(decided),
        "clean_after_decided_ms": spread(clean),
        "decided_with_process_ms": spread([a + b for a, b in zip(decided, ends)]),
        "clean_with_process_ms": spread([one["process_ms"] for one in good]),
        "samples": answers,
    }


def one_cancel(options, disk, image, moment_s):
    ferry = contestants.ferry(options, image.path, disk.destination)
    disk.freshen()
    ferry.prepare()
    measure.read_data(image.path)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    copy = subprocess.Popen(ferry.command, **quiet)
    try:
        time.sleep(moment_s)
        began = time.monotonic()
        command = [options.blockferry, "cancel", ferry.command[3], *state_of(disk), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        process_ms = (time.monotonic() - began) * 1e3
        code = copy.wait(timeout=60)
    finally:
        copy.kill()
        copy.wait()
    told = json.loads(done.stdout) | {"process_ms": process_ms, "moment_s": moment_s}
    left = remains(os.path.dirname(os.path.dirname(ferry.result)))
    if told["answer"] == "cancelled" and told["clean"] and (left or code != 4):
        raise measure.Differs(f"a clean cancel left {left}; the copy ended with exit code {code}")
    return told


def remains(region):
    return [name for _, _, names in os.walk(region) for name in names]


def spread(values):
    ordered = sorted(values)
    at = min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)
    return {"p50": statistics.median(ordered), "p99": ordered[at], "max": ordered[-1]}
