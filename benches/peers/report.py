"""The Markdown: tables, what they are held against, how to repeat them."""

import json

import inputs
import measure

MIB = inputs.MIB


def judged(image, place, cache, rows, left_out):
    """A table: rows with whether they keep what is sparse, and the best of the peers that do."""
    for row in rows:
        if row["samples"] and row["kind"] != "limit":
            used = measure.median(row, "used_bytes")
            row["keeps"] = image.is_dense or used <= image.keeps_at_most
    fair = [row for row in rows if row["kind"] == "peer" and row.get("keeps")]
    best = min(fair, key=lambda row: measure.median(row, "wall_s"), default=None)
    return {
        "input": image.name,
        "size_bytes": image.size,
        "data_bytes": image.data,
        "place": place.name,
        "file_system": place.kind,
        "cache": cache,
        "title": f"{image.title}; {place.name} ({place.kind}), {cache}",
        "rows": rows,
        "best": best and best["tool"],
        "left_out": [list(pair) for pair in left_out],
    }


def markdown(result):
    parts = [head(result), summary(result)]
    parts += [table_text(table) for table in result["tables"]]
    if "reflink" in result:
        parts += [table_text(table) for table in result["reflink"].values()]
    parts += [interrupts(result["interrupt"])] if "interrupt" in result else []
    parts += [library_text(result["library"])] if "library" in result else []
    parts += [notes(result)]
    return "\n\n".join(parts) + "\n"


def head(result):
    machine = result["machine"]
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB of memory, "
        f"{machine['kernel']}, {machine['file_system']}; {result['date']}; medians of up to "
        f"{result['rounds']} rounds in turns; {result['took_s'] / 60:.0f} minutes in all.\n"
        f"Build: {result['build']}.\nTo repeat: `{result['repeat']}`."
    )


def delivered(options, result, markdown):
    """The text of a result, after both forms of it have been written where that was asked for."""
    text = markdown(result)
    for path, content in ((options.json, json.dumps(result)), (options.markdown, text)):
        if path:
            with open(path, "w") as file:
                file.write(content)
    return text


def table_text(table):
    lines = [
        f"#### {table['title'][0].upper()}{table['title'][1:]}\n",
        "| tool | wall, s | min to max | of best peer | CPU, s | RSS, MiB | anonymous, MiB "
        "| read, MiB: calls, disk | written, MiB: calls, disk | takes, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [row_text(table, row) for row in table["rows"]]
    lines += [held_back(row) for row in table["rows"] if row["kind"] == "ferry"]
    lines += [f"\nLeft out: {tool}: {why}." for tool, why in table["left_out"]]
    return "\n".join(lines)


def row_text(table, row):
    name = f"`{row['tool']}`" if row["kind"] != "limit" else row["tool"]
    if "failed" in row or not row["samples"]:
        return f"| {name} | {row.get('failed', 'none')} |" + " – |" * 8
    if row.get("keeps") is False:
        name += " (not kept sparse)"
    if row["tool"] == table["best"]:
        name += " (best peer)"
    walls = [sample["wall_s"] for sample in row["samples"]]
    reads = f"{in_mib(row, 'call_read_bytes')}, {in_mib(row, 'disk_read_bytes')}"
    writes = f"{in_mib(row, 'call_written_bytes')}, {in_mib(row, 'disk_written_bytes')}"
    cells = [
        name,
        seconds(measure.median(row, "wall_s")),
        f"{seconds(min(walls))} to {seconds(max(walls))}",
        times(ratio(table, row)),
        seconds(measure.median(row, "cpu_s")),
        f"{measure.median(row, 'peak_rss_kib') / 1024:.0f}",
        f"{measure.median(row, 'peak_anonymous_kib') / 1024:.0f}",
        reads,
        writes,
        in_mib(row, "used_bytes") if row["kind"] != "limit" else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def held_back(row):
    if not row["samples"]:
        return ""
    shares = sorted(measure.stalls(row).items(), key=lambda pair: -pair[1])
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    return f"\nWhat held blockferry back (share of the time of its stages): {told}."


def seconds(value):
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def times(value):
    return "–" if value is None else f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def in_mib(row, what):
    return f"{measure.median(row, what) / MIB:.0f}"


def ratio(table, row):
    """Median wall over that of the best peer; None where there is no such."""
    best = next((one for one in table["rows"] if one["tool"] == table["best"]), None)
    if not best or not row["samples"] or "failed" in row:
        return None
    return measure.median(row, "wall_s") / measure.median(best, "wall_s")


def summary(result):
    lines = ["| work | aim | figure | met |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in aims(result)]
    return "\n".join(lines)


def aims(result):
    """Rows of what blockferry is held against, as far as it was measured."""
    yield from race(result, "random", "tmpfs", "hot", 0.8)
    yield from race(result, "random", "disk", "hot", 0.95)
    yield from against_limit(result)
    yield from race(result, "sparse", "disk", "hot", 0.8)
    yield from race(result, "os", "disk", "hot", 0.8)
    yield from huge(result)
    yield from memory(result)
    yield from shared_blocks(result)
    yield from cancels_and_kills(result)


def found(result, name, place, cache):
    """The table and its row of blockferry."""
    for table in result["tables"]:
        if (table["input"], table["place"], table["cache"]) == (name, place, cache):
            yield table, next(row for row in table["rows"] if row["kind"] == "ferry")


def race(result, name, place, cache, at_most):
    for table, row in found(result, name, place, cache):
        if ratio(table, row) is None:
            continue
        best = next(one for one in table["rows"] if one["tool"] == table["best"])
        yield (
            table["title"],
            f"≤ {at_most} × best peer",
            f"{times(ratio(table, row))} × `{table['best'].split(',')[0]}` "
            f"({seconds(measure.median(row, 'wall_s'))} s, "
            f"{seconds(measure.median(best, 'wall_s'))} s)",
            yes(ratio(table, row) <= at_most),
        )


def against_limit(result):
    for table, row in found(result, "random", "disk", "hot"):
        for limit in table["rows"]:
            if limit["kind"] == "limit" and limit["samples"] and row["samples"]:
                share = measure.median(limit, "wall_s") / measure.median(row, "wall_s")
                told = f"{share:.2f} × ({seconds(measure.median(limit, 'wall_s'))} s)"
                aim = "≥ 0.9 × the speed of a bare O_DIRECT writer"
                yield table["title"], aim, told, yes(share >= 0.9)


SECONDS_MAX, ANONYMOUS_MAX_MIB = 10, 64


def huge(result):
    for table, row in found(result, "huge", "disk", "hot"):
        if row["samples"]:
            wall = measure.median(row, "wall_s")
            mib = measure.median(row, "peak_anonymous_kib") / 1024
            good = wall < SECONDS_MAX and mib <= ANONYMOUS_MAX_MIB
            told = f"{seconds(wall)} s, {mib:.0f} MiB anonymous"
            yield table["title"], "seconds, not minutes; flat memory", told, yes(good)


def memory(result):
    peaks = [
        max(sample["peak_anonymous_kib"] for sample in row["samples"]) / 1024
        for table in result["tables"]
        for row in table["rows"]
        if row["kind"] == "ferry" and row["samples"]
    ]
    if peaks:
        aim = f"≤ {ANONYMOUS_MAX_MIB} MiB anonymous"
        told = f"{max(peaks):.0f} MiB at most"
        yield "peak memory, all tables", aim, told, yes(max(peaks) <= ANONYMOUS_MAX_MIB)


def shared_blocks(result):
    table = result.get("reflink", {}).get("known")
    if table and table["rows"][0]["samples"]:
        wall = measure.median(table["rows"][0], "wall_s")
        told = f"{wall * 1e3:.0f} ms ({times(ratio(table, table['rows'][0]))} × `cp`)"
        yield table["title"], "< 100 ms", told, yes(wall < 0.1)


def cancels_and_kills(result):
    if "interrupt" not in result:
        return
    cancel, resume = result["interrupt"]["cancel"], result["interrupt"]["resume"]
    decided, clean = cancel["decided_ms"]["p99"], cancel["clean_after_decided_ms"]["p99"]
    count = f"p99 of {cancel['in_time']}"
    yield "cancel, decided", "< 250 ms", f"{decided:.0f} ms ({count})", yes(decided < 250)
    yield "cancel, then clean", "< 1 s after", f"{clean:.0f} ms ({count})", yes(clean < 1000)
    redone = resume["redone_bytes"] / MIB
    total = resume["total_s"] / resume["undisturbed_s"]
    what = "resume after a kill at half"
    yield what, "redoes ≤ 256 + 64 MiB", f"{redone:.0f} MiB", yes(redone <= 320)
    yield what, "≤ 1.05 × undisturbed in all", f"{total:.2f} ×", yes(total <= 1.05)


def yes(met):
    return "yes" if met else "**no**"


def interrupts(figures):
    cancel, resume = figures["cancel"], figures["resume"]
    of = inputs.binary(figures["size"])
    lines = [
        f"#### Cancel and resume of a copy of {of}\n",
        f"{cancel['asked']} cancels at random moments: {cancel['in_time']} in time, "
        f"{cancel['too_late']} after the commit, {cancel['too_early']} before the job was known, "
        f"{cancel['otherwise']} not clean in time.\n",
        "| cancel, ms | p50 | p99 | max |",
        "|---|---|---|---|",
    ]
    for key, name in [
        ("decided_ms", "decided, from the call"),
        ("decided_with_process_ms", "decided, with the start of the process"),
        ("clean_after_decided_ms", "clean, from decided"),
        ("clean_with_process_ms", "clean, the whole command"),
    ]:
        one = cancel[key]
        lines.append(f"| {name} | {one['p50']:.0f} | {one['p99']:.0f} | {one['max']:.0f} |")
    lines.append(
        f"\nSIGKILL at half, then resume ({len(resume['broken'])} times): "
        f"{resume['redone_bytes'] / MIB:.0f} MiB redone; {resume['total_s']:.2f} s in two runs, "
        f"{resume['undisturbed_s']:.2f} s undisturbed "
        f"({resume['total_s'] / resume['undisturbed_s']:.2f} ×)."
    )
    return "\n".join(lines)


def library_text(figures):
    lines = [
        f"#### Whole copy by the library, without a process start ({figures['mib']} MiB)\n",
        "| bench | median, s |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {took:.3f} |" for name, took in figures["median_s"].items()]
    return "\n".join(lines)


def notes(result):
    lines = [f"Left out: {why}." for why in result["left_out"]]
    lines += [
        "Every result is compared with its source. All are flushed before the time ends; none "
        "of the others hashes, keeps a journal or commits atomically. Memory is warmed before "
        "every sample. Of a cold source the page cache was dropped; a virtual disk may have its "
        "own. On tmpfs nothing is cold, and nothing of 1 TiB is measured there. For images with "
        "holes or zeros each tool runs in the mode that keeps them, into a fresh file of the "
        "full length where it needs one; what was not kept sparse is marked and is no best "
        "peer. Bytes by calls leave out what is mapped and what holes gave without a call; "
        "`rsync` also moves them between its processes. The harness flushes after `cp` and "
        "`rclone`; `rclone` skips its checksums.",
        "Not measured here: copies between daemons, which `--wire` times, and copies to and from "
        "object stores, which `--objects` does.",
    ]
    return "\n\n".join(lines)
