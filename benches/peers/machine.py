"""What a reader must know of the machine and the build that the figures come from; no names."""

import os
import platform
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))


def facts():
    with open("/proc/meminfo") as file:
        kib = int(re.search(r"MemTotal:\s+(\d+)", file.read())[1])
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*:\s*(.*)", file.read())
    kernel = re.match(r"\d+\.\d+", platform.release())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(kib / (1 << 20)),
        "cpu": model[1].strip() if model else platform.machine(),
        "kernel": f"{platform.system()} {kernel[0] if kernel else platform.release()}",
    }


def build(options):
    """Which source, compiler and features; of a binary that was given, only what it says."""
    if os.path.abspath(options.blockferry) != os.path.join(options.below, "release", "blockferry"):
        return f"a binary that was given ({said(options.blockferry, '--version')})"
    commit = said("git", "-C", HERE, "rev-parse", "--short=12", "HEAD")
    changed = said("git", "-C", HERE, "status", "--porcelain", "--untracked-files=no", otherwise="")
    state = " with changes" if changed else ""
    compiler = " ".join(said("rustc", "--version").split()[:2])
    return f"commit {commit}{state}, {compiler}, release, features {options.features}"


def said(*command, otherwise="unknown"):
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    except OSError:
        return otherwise
    return done.stdout.strip() or otherwise
