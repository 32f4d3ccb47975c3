"""Times blockferry and its peers on the same copy, in turns; started by `run`."""

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile

MIB = 1 << 20


def main():
    options = parsed()
    folder = tempfile.mkdtemp(prefix="blockferry-peers-", dir=os.path.abspath(options.folder or options.below))
    try:
        report(options, compare(options, folder))
    finally:
        shutil.rmtree(folder)


def parsed():
    words = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__)
    words.add_argument("--size", type=size, default=size("2GiB"), help="of the image (2GiB)")
    words.add_argument("--rounds", type=int, default=5, help="samples of each contestant (5)")
    words.add_argument("--folder", help="on the file system to measure (below target/)")
    words.add_argument("--json", help="write every sample to this file")
    words.add_argument("--blockferry", help="the binary to measure")
    for given_by_run in ["--warm", "--timed", "--below"]:
        words.add_argument(given_by_run, help=argparse.SUPPRESS)
    return words.parse_args()


def size(text):
    found = re.fullmatch(r"(\d+)([KMGT]iB)?", text)
    if not found:
        raise argparse.ArgumentTypeError("give a number such as 512MiB or 2GiB")
    return int(found[1]) << {None: 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}[found[2]]


def compare(options, folder):
    """A list of samples by contestant: wall and CPU seconds, peak memory in KiB."""
    source = os.path.join(folder, "source.raw")
    make_random(source, options.size)
    samples = {}
    for round_number in range(options.rounds):
        for name, contestant in contestants(options, folder, source).items():
            destination, command, prepare = contestant
            prepare()
            settle(options, folder, source)
            sample = timed(options, folder, command)
            if round_number == 0:
                subprocess.run(["cmp", source, destination], check=True)
            drop(folder)
            samples.setdefault(name, []).append(sample)
            print(f"round {round_number + 1}, {name}: {sample['wall_s']:.2f} s", file=sys.stderr)
    return samples


def contestants(options, folder, source):
    """Those that are installed: where the bytes end up, the command, what must be there first."""
    place = os.path.join(folder, "to")
    file = os.path.join(place, "copy.raw")
    image = os.path.join(place, "region", "image")
    state = os.path.join(place, "state")

    def sized():
        with open(file, "wb") as made:
            made.truncate(options.size)

    def nothing():
        pass

    region = os.path.dirname(image)
    q = shlex.quote
    ferry = [options.blockferry, "copy", source, f"dir://{image}", "--state-dir", state]
    qemu = "qemu-img convert -n -W -m 16 -t writeback -f raw -O raw".split()
    cp = f"cp --reflink=never --sparse=never {q(source)} {q(file)} && sync {q(file)}"
    all_of_them = {
        "blockferry copy": (
            os.path.join(image, "data"),
            ferry + ["--progress", "none", "--json"],
            lambda: os.makedirs(region),
        ),
        "qemu-img convert -n -W -m 16 -t writeback": (file, qemu + [source, file], sized),
        "cp, then fsync": (file, ["sh", "-c", cp], nothing),
        "dd bs=4M conv=fsync": (
            file,
            ["dd", f"if={source}", f"of={file}", "bs=4M", "conv=fsync", "status=none"],
            nothing,
        ),
        "nbdcopy --flush": (file, ["nbdcopy", "--flush", source, file], sized),
    }

    def made(prepare):
        return lambda: (os.makedirs(place), prepare())

    return {
        name: (destination, command, made(prepare))
        for name, (destination, command, prepare) in all_of_them.items()
        if shutil.which(command[0])
    }


MISSABLE = {"qemu-img": "qemu-utils", "nbdcopy": "libnbd-bin"}


def make_random(path, len_bytes):
    with open(path, "wb") as made:
        left = len_bytes
        while left:
            left -= made.write(os.urandom(min(left, 16 * MIB)))
        os.fsync(made.fileno())


def settle(options, folder, source):
    """Nothing is being written back, the source is in the page cache, and memory is warm."""
    subprocess.run(["sync", "-f", folder], check=True)
    with open(source, "rb") as read:
        while read.read(16 * MIB):
            pass
    # For the copy's pages and as much again; never so much that it pushes the source out.
    wanted = 2 * options.size // MIB + 512
    free = next(int(line.split()[1]) for line in open("/proc/meminfo") if "MemFree" in line)
    subprocess.run([options.warm, str(max(64, min(wanted, free * 8 // 10 // 1024)))], check=True)


def timed(options, folder, command):
    used = os.path.join(folder, "used")
    subprocess.run([options.timed, used, *command], check=True)
    with open(used) as file:
        code, wall_s, cpu_s, peak_rss_kib = file.read().split()
    if code != "0":
        sys.exit(f"exit code {code}: {shlex.join(command)}")
    return {"wall_s": float(wall_s), "cpu_s": float(cpu_s), "peak_rss_kib": int(peak_rss_kib)}


def drop(folder):
    shutil.rmtree(os.path.join(folder, "to"))


def report(options, samples):
    def median(name, what):
        return statistics.median(sample[what] for sample in samples[name])

    base = next((name for name in samples if name.startswith("qemu-img")), None)
    gib = options.size / (1 << 30)
    print(f"{gib:g} GiB of random data, hot, durable; {options.rounds} rounds in turns\n")
    print("| tool | wall, s | min to max | MB/s | CPU, s | peak RSS, MiB | wall / qemu-img |")
    print("|---|---|---|---|---|---|---|")
    for name in samples:
        walls = [sample["wall_s"] for sample in samples[name]]
        wall = statistics.median(walls)
        ratio = f"{wall / median(base, 'wall_s'):.2f}" if base else "–"
        rate, rss = options.size / 1e6 / wall, median(name, "peak_rss_kib") / 1024
        print(
            f"| `{name}` | {wall:.2f} | {min(walls):.2f} to {max(walls):.2f} | {rate:.0f} "
            f"| {median(name, 'cpu_s'):.2f} | {rss:.0f} | {ratio} |"
        )
    for tool, package in MISSABLE.items():
        if not shutil.which(tool):
            print(f"\nLeft out: {tool} is not installed (Debian package {package}).")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"size_bytes": options.size, "samples": samples}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
