"""Whole copies by the library, without a process start: the bench `copy` of this crate."""

import glob
import json
import os
import subprocess

import inputs
import measure

MIB = 1024


def measured(options, disk):
    """Median seconds by the name of the bench."""
    if options.mode != "full":
        raise inputs.Missing("only the full run has it")
    measure.note("cargo bench --bench copy")
    began = measure.time.time()
    environment = os.environ | {"BLOCKFERRY_BENCH_MIB": str(MIB)}
    command = ["cargo", "bench", "--locked", "--all-features", "--bench", "copy"]
    folder = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise inputs.Missing(f"cargo bench failed: {last}")
    return {"mib": MIB, "median_s": dict(estimates(options.below, began))}


def estimates(target, began):
    """What was written since: names are the folders between `criterion` and `new`."""
    root = os.path.join(target, "criterion")
    for path in sorted(glob.glob(f"{root}/**/new/estimates.json", recursive=True)):
        if os.path.getmtime(path) >= began:
            name = os.path.relpath(os.path.dirname(os.path.dirname(path)), root)
            with open(path) as file:
                yield name, json.load(file)["median"]["point_estimate"] / 1e9
