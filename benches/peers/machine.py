"""What a reader must know of the machine that the figures come from; no names of it."""

import os
import platform
import re


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
