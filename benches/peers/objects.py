"""Times copies to and from object stores, and other clients of the same store; `run --objects`.

Files lie on a tmpfs, so that no disk is measured. The store is a stub that keeps everything in
memory and counts (s3stub.c), or one that others wrote; those are slower than any client. A client
is timed from its start to its end.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time

import cuts
import inputs
import machine
import measure
import places
import report
import stores

MIB, GIB = 1 << 20, 1 << 30
IMAGES = ["random", "os"]
DIRECTIONS = ["up", "down"]
PARTS = [f"{image}-{direction}" for image in IMAGES for direction in DIRECTIONS] + ["cuts"]


class Bench:
    """Where everything lies."""

    def __init__(self, options, place, disk):
        self.options, self.place, self.disk = options, place, disk
        self.folder = disk.folder


# --- Samples


def sample(bench, server, image, direction, one, row, whole):
    bench.place.freshen()
    if direction == "up":
        server.empty()
    # Of a copy down, the source here is only what the result is held against.
    measure.settle(bench.options, image, "hot" if direction == "up" else "cold")
    if server.counted():
        stores.asked(server.endpoint, "POST", "reset")
    before = server.cpu_s()
    taken = measure.timed(bench.options, bench.place, one)
    if before is not None:
        taken["server_cpu_s"] = server.cpu_s() - before
    counted = server.counted()
    if taken["code"] != 0:
        row["failed"] = why_failed(taken, one)
        return
    if direction == "down" or (whole and server.keeps):
        if one.reads:
            one.reads()
        measure.check(image, one, whole)
    if counted:
        taken |= {"wire_bytes": counted["received_bytes"] + counted["sent_bytes"]}
        taken["asked"] = {name: count for name, (count, _) in counted["asked"].items() if count}
        taken["requests"] = sum(taken["asked"].values())
    if one.kind != "peer":
        taken["stalls"] = json.loads(taken["stdout"])["stalls"]
    del taken["stdout"], taken["stderr"]
    row["samples"].append(taken)


def why_failed(taken, one):
    told = (taken["stderr"].strip().splitlines() or ["it said nothing"])[-1]
    why = f"failed with exit code {taken['code']}: {told}"
    if one.kind != "peer":
        raise measure.Differs(f"{one.name}: {why} {taken['stdout']}")
    return why


def one_table(bench, start, title, image, direction):
    """The image lies on the disk; what is copied up lies on the tmpfs."""
    measure.note(f"{image.title}, {direction}; {title}")
    hold = image.size if direction == "up" else image.size + image.data
    with contextlib.ExitStack() as stack:
        if direction == "up":
            source = bench.place.source
            on_disk, image = image.path, inputs.moved(image, source)
            stack.callback(os.unlink, source)
            measure.evict(on_disk)
        server = stack.enter_context(start(bench, hold))
        if direction == "up":
            clients = list(stores.uploads(bench, server, image))
        else:
            stores.seed(bench, server, image)
            clients = list(stores.downloads(bench, server))
        rows = [{"tool": one.name, "kind": one.kind, "samples": []} for one in clients]
        for number in range(bench.options.rounds):
            for one, row in zip(clients, rows):
                if "failed" not in row:
                    sample(bench, server, image, direction, one, row, whole=number == 0)
                    told = row.get("failed") or f"{row['samples'][-1]['wall_s']:.2f} s"
                    measure.note(f"round {number + 1}, {one.name}: {told}")
        bench.place.freshen()
    return {
        "title": f"{image.title}, {direction}; {title}",
        "image": image.name,
        "direction": direction,
        "size": image.size,
        "data": image.data,
        "build": machine.build(bench.options),
        "rows": rows,
    }


# --- The tables


def markdown(result):
    facts, tables = result["machine"], result["tables"]
    builds = dict.fromkeys(table["build"] for table in tables.values())
    peers = ", ".join(result["peers"].values()) or "no peers"
    head = (
        f"{facts['cores']} cores ({facts['cpu']}), {facts['memory_gib']} GiB of memory, "
        f"{facts['kernel']}, tmpfs; {result['date']}; medians of {result['rounds']} rounds in "
        f"turns.\nBuild: {'; '.join(builds) or 'none'}.\nAgainst: {peers}.\n"
        f"To repeat: `{result['repeat']}`."
    )
    rows = ["| " + " | ".join(row) + " |" for row in aims(result)]
    told = ["\n".join(["| work | aim | figure | met |", "|---|---|---|---|", *rows])]
    told += [table_text(table) for table in tables.values()]
    told += [cuts_text(result["cuts"])] if "cuts" in result else []
    missing = [f"Left out: {why}." for why in dict.fromkeys(result["left_out"])]
    return "\n\n".join([head, *told, *missing, NOTES]) + "\n"


NOTES = (
    "Server and client run on this machine and share its cores: the wall time has the server's "
    "work in it, the client's CPU has not. CPU is per GiB of the image. All is plain HTTP with "
    "signed requests; over HTTP the clients hash what they send for its signature. On the wire are "
    "the bytes of both ways, as the stub's sockets saw them. The stub checks neither signatures "
    "nor checksums, has no delay, and gives no ETag that is an MD5 unless one was sent along; "
    "`rclone` is told to make no MD5 of the whole. Every copy down is compared with its source, "
    "and of copies up each client's first, read back; a store that throws away keeps nothing to "
    "compare. Files are on a tmpfs, so that a flush costs nothing. `blockferry` hashes every "
    "chunk, keeps a journal and commits atomically; none of the others does. Sealed, an image's "
    "holes are not sent and its chunks are compressed where it pays; a plain object has every "
    "byte. A first image below a prefix also proves what the store can do, with some sixty small "
    "requests, and here every sealed copy up is a first."
)


def table_text(table):
    lines = [
        f"#### {table['title'][0].upper()}{table['title'][1:]}\n",
        "| tool | wall, s | min to max | of best peer | CPU a GiB, s | of best peer "
        "| RSS, anonymous, MiB | on the wire, MiB | requests | server's CPU, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [row_text(table, row) for row in table["rows"]]
    for row in (row for row in table["rows"] if row["kind"] != "peer" and row["samples"]):
        shares = sorted(measure.stalls(row).items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        lines.append(f"\nWhat held `{row['tool']}` back: {told}.")
    return "\n".join(lines)


def row_text(table, row):
    if not row["samples"] or "failed" in row:
        return f"| `{row['tool']}` | {row.get('failed', 'none')} |" + " – |" * 8
    walls = [one["wall_s"] for one in row["samples"]]
    gib = table["size"] / GIB
    cells = [
        f"`{row['tool']}`",
        report.seconds(statistics.median(walls)),
        f"{report.seconds(min(walls))} to {report.seconds(max(walls))}",
        report.times(against_best(table, row, "wall_s")),
        report.seconds(measure.median(row, "cpu_s") / gib),
        report.times(against_best(table, row, "cpu_s")),
        ", ".join(
            f"{measure.median(row, what) / 1024:.0f}"
            for what in ("peak_rss_kib", "peak_anonymous_kib")
        ),
        where_told(row, "wire_bytes", lambda count: f"{count / MIB:.0f}"),
        where_told(row, "requests", lambda count: f"{count:.0f}"),
        where_told(row, "server_cpu_s", report.seconds),
    ]
    return "| " + " | ".join(cells) + " |"


def where_told(row, what, form):
    return form(measure.median(row, what)) if what in row["samples"][0] else "–"


def against_best(table, row, what):
    """The median over the least of the peers'; `None` where there is no such."""
    peers = [
        measure.median(one, what)
        for one in table["rows"]
        if one["kind"] == "peer" and one["samples"] and "failed" not in one
    ]
    if not peers or not row["samples"] or "failed" in row:
        return None
    return measure.median(row, what) / min(peers)


def aims(result):
    """Rows of what blockferry is held against, as far as it was measured."""
    for table in result["tables"].values():
        for row in table["rows"]:
            if row["kind"] == "ferry":
                yield from within(table, row, "wall_s", 1, "the best peer's wall")
                yield from within(table, row, "cpu_s", 1, "the best peer's CPU")
            elif row["kind"] == "sealed" and table["image"] == "os":
                yield from within(table, row, "wall_s", 0.5, "the best peer's wall")
    for name in (name for name in ("plain object", "sealed") if name in result.get("cuts", {})):
        cancel, resume = result["cuts"][name]["cancel"], result["cuts"][name]["resume"]
        decided, clean = cancel["decided_ms"]["p99"], cancel["clean_after_decided_ms"]["p99"]
        store, count = cancel["store_ms"]["p99"], f"p99 of {cancel['in_time']}"
        yield f"cancel, {name}: decided", "< 1 s", f"{decided:.0f} ms ({count})", yes(decided < 1e3)
        told = f"{clean:.0f} ms, the store's {store:.0f} ms ({count})"
        aim = "< 1 s after, and the store's own time"
        yield f"cancel, {name}: clean", aim, told, yes(clean < 1e3 + store)
        again = resume["repeated_bytes"]
        told = f"{again / MIB:.1f} MiB at most, of {len(resume['broken'])} kills"
        aim = "sends nothing again that the store has acknowledged"
        yield f"resume after a kill at half, {name}", aim, told, yes(again == 0)


def within(table, row, what, at_most, whose):
    ratio = against_best(table, row, what)
    if ratio is not None:
        name = row["tool"].removeprefix("blockferry copy, ")
        aim, told = f"≤ {at_most} × {whose}", f"{report.times(ratio)} ×"
        yield f"{table['title']}: {name}", aim, told, yes(ratio <= at_most)


def yes(met):
    return report.yes(met)


def cuts_text(figures):
    lines = [
        f"#### Cancel and resume of a copy of {inputs.binary(figures['size'])} to the stub\n",
        "| destination | cancels: in time, too late, too early, otherwise | decided, ms: p50, p99 "
        "| clean after, ms: p50, p99 | the store's own, ms: p99 | kills: MiB acknowledged, sent "
        "later, sent again | undisturbed, s | killed and resumed, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("plain object", "sealed"):
        cancel, resume = figures[name]["cancel"], figures[name]["resume"]
        counts = [cancel[what] for what in ("in_time", "too_late", "too_early", "otherwise")]
        moved = [
            statistics.median(one[what] for one in resume["broken"]) / MIB
            for what in ("acknowledged_bytes", "sent_later_bytes")
        ]
        cells = [
            name,
            ", ".join(map(str, counts)),
            *(
                f"{cancel[what]['p50']:.0f}, {cancel[what]['p99']:.0f}"
                for what in ("decided_ms", "clean_after_decided_ms")
            ),
            f"{cancel['store_ms']['p99']:.1f}",
            f"{moved[0]:.0f}, {moved[1]:.0f}, {resume['repeated_bytes'] / MIB:.1f}",
            report.seconds(resume["undisturbed_s"]),
            report.seconds(resume["total_s"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# --- The command line


def parsed():
    words = argparse.ArgumentParser(
        prog="benches/peers/run --objects",
        description="Times copies to and from object stores, and other clients of the same store.",
    )
    words.add_argument("--objects", action="store_true", help=argparse.SUPPRESS)
    words.add_argument("--only", default=",".join(PARTS), help=",".join(PARTS))
    words.add_argument("--servers", default="stub", help=f"{','.join(stores.SERVERS)} (stub)")
    words.add_argument("--quick", action="store_true", help="to see that it works: 1 round, small")
    words.add_argument("--rounds", type=int, help="samples of each client (5; quick 1)")
    words.add_argument("--scale", type=float, help="of the images, to try things (1; quick 1/32)")
    words.add_argument("--cancels", type=int, help="to each kind of destination (20; quick 2)")
    words.add_argument("--resumes", type=int, help="of each kind of destination (5; quick 1)")
    words.add_argument("--seed", type=int, default=1, help="of images and random moments (1)")
    words.add_argument("--limit", type=float, default=180, help="seconds a sample may take (180)")
    beside = "write the result there, beside what is in it"
    words.add_argument("--json", metavar="FILE", help=beside)
    words.add_argument("--markdown", metavar="FILE", help="write the tables there")
    words.add_argument("--blockferry", help="the binary to measure (built)")
    for given_by_run in ["--tools", "--below", "--features"]:
        words.add_argument(given_by_run, help=argparse.SUPPRESS)
    options = words.parse_args()
    options.only, options.servers = options.only.split(","), options.servers.split(",")
    for name, known in [("only", PARTS), ("servers", stores.SERVERS)]:
        for one in getattr(options, name):
            if one not in known:
                words.error(f"{one} is not one of {', '.join(known)}")
    usual = {"rounds": (5, 1), "scale": (1.0, 1 / 32), "cancels": (20, 2), "resumes": (5, 1)}
    for name, values in usual.items():
        setattr(options, name, getattr(options, name) or values[options.quick])
    for name in ("blockferry", "tools", "below"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    return options


def repeat_line(options):
    words = f"benches/peers/run --objects --servers {','.join(options.servers)}"
    words += f" --rounds {options.rounds} --seed {options.seed}"
    return words + (f" --scale {options.scale:g}" if options.scale != 1 else "")


def main():
    # Also where a shell started it in the background, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parsed()
    result = {"machine": machine.facts(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    result |= {"rounds": options.rounds, "repeat": repeat_line(options), "peers": stores.versions()}
    result |= {"tables": {}, "left_out": [f"{tool}: {why}" for tool, why in stores.left_out()]}
    if options.json and os.path.exists(options.json):
        # What was measured before stays, unless it is measured again.
        with open(options.json) as file:
            before = json.load(file)
        result |= {key: before[key] for key in ("tables", "cuts") if key in before}
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(places.disk(options.below))
        place = stack.enter_context(places.tmpfs(disk))
        bench = Bench(options, place, disk)
        for name in IMAGES:
            if any(part.startswith(name) for part in options.only):
                try_image(bench, name, result)
        if "cuts" in options.only:
            sizes = {"random": sized("random", options)}
            image = inputs.made("random", place.source, sizes, options.seed)
            try:
                result["cuts"] = cuts.measured(bench, image, options.cancels, options.resumes)
            except inputs.Missing as why:
                result["left_out"].append(f"cancel and resume: {why}")
    print(report.delivered(options, result, markdown))


def sized(name, options):
    return [round(of * options.scale) // MIB * MIB for of in inputs.FULL[name]]


def try_image(bench, name, result):
    """All tables of one image; what cannot be had says why."""
    options, path = bench.options, bench.disk.source
    try:
        image = inputs.made(name, path, {name: sized(name, options)}, options.seed)
    except inputs.Missing as why:
        result["left_out"].append(f"{name}: {why}")
        return
    for server in options.servers:
        title, start = stores.SERVERS[server]
        for direction in DIRECTIONS:
            if f"{name}-{direction}" not in options.only or (server, direction) == NOTHING_TO_READ:
                continue
            try:
                table = one_table(bench, start, title, image, direction)
                result["tables"][f"{server} {name}-{direction}"] = table
            except inputs.Missing as why:
                result["left_out"].append(f"{title}: {why}")
            report.delivered(options, result, markdown)
    os.unlink(path)


NOTHING_TO_READ = ("discard", "down")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; what was made is removed")
    except measure.Differs as told:
        sys.exit(f"FAILED: {told}")
