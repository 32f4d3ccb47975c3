"""Times copies between daemons and their peers over the same link, in turns; `run --wire`.

Everything lies on a tmpfs, so that no disk is measured. Each contestant has a serving side, started
anew for every sample, and a side that copies, which is timed from its start to its end; what either
of them used is counted. A far link is a relay that delays and paces (tests/lab/network/relay.py).
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import inputs
import machine
import measure
import places
import report
import sides

HERE = os.path.dirname(os.path.abspath(__file__))
RELAY = os.path.join(HERE, "..", "..", "tests", "lab", "network", "relay.py")
MIB, GIB = 1 << 20, 1 << 30


@dataclasses.dataclass(frozen=True)
class Link:
    """What is between the two sides: a delay each way in seconds, a rate in bits per second."""

    title: str
    delay: float = 0
    rate: float = 0


NONE = Link("loopback")
FAR = Link("80 ms, 1 Gb/s", 0.04, 1e9)
SLOW = Link("10 ms, 100 Mb/s", 0.005, 1e8)
NEAR = Link("10 ms, 1 Gb/s", 0.005, 1e9)

# Table by name: what it is of, over which link, and whose.
TABLES = {
    "loopback": ("random", 4 * GIB, 4 * GIB, NONE, "all"),
    "far": ("random", 2 * GIB, 2 * GIB, FAR, "far"),
    "far-os": ("os", 2 * GIB, 4 * GIB // 3, FAR, "far"),
    "floor-slow": ("random", GIB // 8, GIB // 8, SLOW, "floor"),
    "floor-slow-os": ("os", GIB // 4, GIB // 6, SLOW, "floor"),
    "floor-near": ("random", GIB, GIB, NEAR, "floor"),
    "floor-near-os": ("os", 2 * GIB, 4 * GIB // 3, NEAR, "floor"),
    "floor": ("random", 2 * GIB, 2 * GIB, NONE, "floor"),
    "floor-os": ("os", 2 * GIB, 4 * GIB // 3, NONE, "floor"),
}


# --- Samples


@contextlib.contextmanager
def relayed(port, link):
    """The port at which that port is reached over the link."""
    if not link.rate:
        yield port
        return
    words = ["127.0.0.1:0", f"127.0.0.1:{port}", str(link.delay), str(link.rate / 8)]
    pipe = subprocess.PIPE
    relay = subprocess.Popen([sys.executable, "-B", RELAY, *words], stdin=pipe, stdout=pipe)
    try:
        yield int(relay.stdout.readline().split()[1])
    finally:
        relay.stdin.close()
        relay.wait()
        relay.stdout.close()


def sample(bench, image, link, one, row, whole):
    bench.place.freshen()
    one.prepare()
    measure.settle(bench.options, image, "hot")
    try:
        serving = one.serve()
    except inputs.Missing as why:
        row["failed"] = str(why)
        return
    try:
        with relayed(serving.port, link) as port:
            before = serving.cpu_s()
            command = one.command(port)
            timed = dataclasses.make_dataclass("Timed", ["command", "fsync", "result"])
            taken = measure.timed(bench.options, bench.place, timed(command, False, one.result))
            taken["serving_cpu_s"] = serving.cpu_s() - before
            taken["serving_anonymous_kib"] = serving.peak_kib
    finally:
        serving.close()
    if taken["code"] != 0:
        told = (taken["stderr"].strip().splitlines() or ["it said nothing"])[-1]
        row["failed"] = f"failed with exit code {taken['code']}: {told} {taken['stdout']}"
        return
    if one.result:
        measure.check(image, one, whole)
    if one.kind == "ferry":
        taken["stalls"] = json.loads(taken["stdout"])["stalls"]
    del taken["stdout"], taken["stderr"]
    row["samples"].append(taken)


def one_table(bench, image, link, whose):
    contestants, left_out = bench.contestants(image, whose)
    for name, why in left_out:
        measure.note(f"left out: {name}: {why}")
    rows = [{"tool": one.name, "kind": one.kind, "samples": []} for one in contestants]
    for number in range(bench.options.rounds):
        for one, row in zip(contestants, rows):
            if "failed" not in row:
                sample(bench, image, link, one, row, whole=number == 0)
                told = row.get("failed") or f"{row['samples'][-1]['wall_s']:.2f} s"
                measure.note(f"round {number + 1}, {one.name}: {told}")
    title = f"{image.title}; {link.title}"
    table = {"title": title, "size": image.size, "data": image.data, "rate": link.rate}
    table |= {"is_dense": image.is_dense, "build": machine.build(bench.options)}
    return table | {"rows": rows, "left_out": left_out}


# --- The table


def markdown(result):
    facts, tables = result["machine"], result["tables"]
    builds = dict.fromkeys(table.get("build", "unknown") for table in tables.values())
    head = (
        f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB of memory, "
        f"{facts['kernel']}, tmpfs; {result['date']}; medians of {result['rounds']} rounds in "
        f"turns.\nBuild: {'; '.join(builds) or 'none'}.\nTo repeat: `{result['repeat']}`."
    )
    told = [table_text(tables[name]) for name in TABLES if name in tables]
    missing = [f"Left out: {why}." for why in result["left_out"]]
    return "\n\n".join([head, *told, *missing, NOTES]) + "\n"


NOTES = (
    "Both sides run on this machine and share its cores. CPU is of the copying and of the serving "
    "side, per GiB of data; memory is the most anonymous memory of each. Every result is compared "
    "with its source. `blockferry` hashes every chunk on both sides, keeps a journal and commits "
    "atomically; none of the others does. The delay of a far link is a relay's: no tool is held "
    "back by what its TCP may have under way, only by its own protocol."
)


def table_text(table):
    lines = [
        f"#### {table['title'][0].upper()}{table['title'][1:]}\n",
        "| tool | wall, s | min to max | MiB of data a second | of best peer "
        "| CPU a GiB, s: copying, serving | anonymous, MiB: copying, serving |",
        "|---|---|---|---|---|---|---|",
    ]
    good = [row for row in table["rows"] if row["samples"] and "failed" not in row]
    best = min((wall_of(row) for row in good if row["kind"] == "peer"), default=None)
    lines += [row_text(table, row, best) for row in table["rows"]]
    ferries = [row for row in good if row["kind"] == "ferry"]
    lines += [f"\n{told}" for row in ferries if (told := held_against(table, row, good))]
    for row in ferries:
        shares = sorted(measure.stalls(row).items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        lines.append(f"\nWhat held `{row['tool']}` back: {told}.")
    lines += [f"\nLeft out: `{tool}`: {why}." for tool, why in table["left_out"]]
    return "\n".join(lines)


def wall_of(row):
    return measure.median(row, "wall_s")


def held_against(table, row, good):
    """A copy's speed as a share of the limits', and of its own without compression."""
    told = [
        f"{wall_of(limit) / wall_of(row):.2f} of {limit['tool'].removeprefix('limit: ')}"
        for limit in good
        if limit["kind"] == "limit"
    ]
    if table["rate"] and table["is_dense"]:
        told.append(f"{table['data'] * 8 / table['rate'] / wall_of(row):.2f} of the link")
    plain = [other for other in good if other["tool"] == f"{row['tool']} {sides.PLAIN}"]
    told += [f"{wall_of(other) / wall_of(row):.2f} of itself uncompressed" for other in plain]
    return f"Speed of `{row['tool']}`: {', '.join(told)}." if told else ""


def row_text(table, row, best):
    if not row["samples"] or "failed" in row:
        return f"| `{row['tool']}` | {row.get('failed', 'none')} |" + " – |" * 5
    walls = [one["wall_s"] for one in row["samples"]]
    wall, gib = statistics.median(walls), table["data"] / GIB
    cpu = [measure.median(row, what) / gib for what in ("cpu_s", "serving_cpu_s")]
    kib = [measure.median(row, f"{side}anonymous_kib") for side in ("peak_", "serving_")]
    name = row["tool"] if row["kind"] == "limit" else f"`{row['tool']}`"
    cells = [
        name, f"{wall:.2f}", f"{min(walls):.2f} to {max(walls):.2f}",
        f"{table['data'] / MIB / wall:.0f}", "–" if best is None else f"{wall / best:.2f}",
        f"{cpu[0]:.2f}, {cpu[1]:.2f}", f"{kib[0] / 1024:.0f}, {kib[1] / 1024:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def parsed():
    words = argparse.ArgumentParser(
        prog="benches/peers/run --wire", description="Times copies between daemons and their peers."
    )
    words.add_argument("--wire", action="store_true", help=argparse.SUPPRESS)
    words.add_argument("--only", default=",".join(TABLES), help=",".join(TABLES))
    words.add_argument("--quick", action="store_true", help="to see that it works: 1 round, small")
    words.add_argument("--rounds", type=int, help="samples of each contestant (3; quick 1)")
    words.add_argument("--scale", type=float, help="of the inputs, to try things (1; quick 1/32)")
    words.add_argument("--seed", type=int, default=1, help="of the inputs (1)")
    words.add_argument("--limit", type=float, default=120, help="seconds a sample may take (120)")
    words.add_argument("--json", metavar="FILE", help="write the result there, beside what is in it")
    words.add_argument("--markdown", metavar="FILE", help="write the tables there")
    words.add_argument("--blockferry", help="the binary to measure (built)")
    for given_by_run in ["--tools", "--below", "--pump", "--features"]:
        words.add_argument(given_by_run, help=argparse.SUPPRESS)
    options = words.parse_args()
    for name in options.only.split(",") if options.only else []:
        if name not in TABLES:
            words.error(f"{name} is not one of {', '.join(TABLES)}")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.scale = options.scale or (1 / 32 if options.quick else 1.0)
    for name in ("blockferry", "pump", "tools"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    return options


def main():
    options = parsed()
    result = {"machine": machine.facts(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    result |= {"rounds": options.rounds, "tables": {}, "left_out": []}
    result["repeat"] = f"benches/peers/run --wire --rounds {options.rounds} --seed {options.seed}"
    if options.scale != 1:
        result["repeat"] += f" --scale {options.scale:g}"
    if options.json and os.path.exists(options.json):
        # What was measured before stays, unless it is measured again.
        with open(options.json) as file:
            result["tables"] = json.load(file)["tables"]
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(places.disk(os.path.abspath(options.below)))
        place = stack.enter_context(places.tmpfs(disk))
        bench = sides.Bench(options, place, disk.folder)
        for name in options.only.split(",") if options.only else []:
            kind, size, data, link, whose = TABLES[name]
            size, data = (round(of * options.scale) // MIB * MIB for of in (size, data))
            try:
                result["tables"][name] = measured(bench, kind, (size, data), link, whose)
            except inputs.Missing as why:
                result["left_out"].append(f"{name}: {why}")
            report.delivered(options, result, markdown)
    print(report.delivered(options, result, markdown))


def measured(bench, kind, sizes, link, whose):
    """One table; its input lies on the tmpfs, also as an image of a region."""
    path, src = bench.place.source, os.path.join(bench.place.folder, "src")
    image = inputs.made(kind, path, {kind: sizes}, bench.options.seed)
    measure.note(f"{image.title}; {link.title}")
    os.makedirs(src)
    try:
        # Shared with the file: a region's image whose digests are known, and no more memory.
        state = ["--state-dir", os.path.join(bench.folder, "state"), "--json"]
        copy = [bench.options.blockferry, "copy", path, f"dir://{src}/image", *state]
        subprocess.run(copy, check=True, capture_output=True)
        os.link(path, f"{src}/data")
        os.replace(f"{src}/data", f"{src}/image/data")
        return one_table(bench, image, link, whose)
    finally:
        for folder in (src, bench.place.destination, os.path.join(bench.place.folder, "rsync")):
            shutil.rmtree(folder, ignore_errors=True)
        os.unlink(path)


if __name__ == "__main__":
    try:
        main()
    except measure.Differs as told:
        sys.exit(f"FAILED: {told}")
