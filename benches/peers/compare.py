"""Times blockferry and its peers on the same copies, in turns; started by `run`."""

import contextlib
import datetime
import json
import signal
import sys

import chart
import contestants
import inputs
import interrupt
import library
import machine
import measure
import options as command_line
import places
import reflink
import report


def main():
    # Also where a shell started it in the background, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = command_line.parsed()
    try:
        result = joined(options.join) if options.join else everything(options)
    except KeyboardInterrupt:
        sys.exit("interrupted; what was made is removed")
    except measure.Differs as told:
        sys.exit(f"FAILED: {told}")
    deliver(options, result)
    if options.mode == "guard":
        sys.exit(guarded(result["tables"][0]))


def everything(options):
    began = datetime.datetime.now(datetime.timezone.utc)
    result = {"machine": machine.facts(), "date": f"{began:%Y-%m-%d}", "mode": options.mode}
    result["build"] = machine.build(options)
    result |= {"repeat": command_line.repeat_line(options), "rounds": options.rounds}
    result |= {"seed": options.seed, "tables": [], "left_out": []}
    measure.note(f"seed {options.seed}")
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(places.disk(options.folder))
        result["machine"]["file_system"] = disk.kind
        found = {"disk": disk, "tmpfs": None}
        if any(place == "tmpfs" for _, place, _ in options.tables):
            try:
                found["tmpfs"] = stack.enter_context(places.tmpfs(disk))
            except inputs.Missing as why:
                result["left_out"].append(f"tmpfs: {why}")
        compare_tools(options, found, result)
        if options.mode != "guard":
            extras(options, disk, result)
    result["took_s"] = round(measure.elapsed())
    return result


def joined(paths):
    """One result of parts that were measured on one machine, one after the other; of what was
    measured twice the later one counts."""
    parts = []
    for path in paths:
        with open(path) as file:
            parts.append(json.load(file))
    whole = parts[0] | {"tables": [], "left_out": []}
    for key in ["machine", "mode", "rounds", "seed"]:
        if any(part[key] != whole[key] for part in parts):
            sys.exit(f"these are no parts of one run: they differ in {key}")
    tables = {}
    for part in parts:
        whole |= {key: part[key] for key in EXTRAS if key in part}
        tables |= {(one["input"], one["place"], one["cache"]): one for one in part["tables"]}
    order = {name: number for number, name in enumerate(inputs.NAMES)}
    whole["tables"] = sorted(tables.values(), key=lambda one: order[one["input"]])
    whole["took_s"] = sum(part["took_s"] for part in parts)
    whole["repeat"] = "`, `".join(part["repeat"] for part in parts)
    whole["build"] = "; ".join(dict.fromkeys(part.get("build", "unknown") for part in parts))
    told = dict.fromkeys(why for part in parts for why in part["left_out"])
    whole["left_out"] = [why for why in told if why.split(":")[0] not in whole]
    return whole


def compare_tools(options, found, result):
    for name in inputs.NAMES:
        mine = [(place, cache) for of, place, cache in options.tables if of == name]
        if not mine:
            continue
        measure.note(f"making: {name}")
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(removed_in_the_end(found["disk"].source))
                image = inputs.made(name, path, options.sizes, options.seed)
            except inputs.Missing as why:
                result["left_out"].append(f"{name}: {why}")
                continue
            for place, cache in mine:
                if found[place]:
                    result["tables"].append(one_table(options, image, found[place], cache))


def one_table(options, image, place, cache):
    measure.note(f"{image.title}, {place.name} ({place.kind}), {cache}")
    with contextlib.ExitStack() as stack:
        if place.source != image.path:
            path = stack.enter_context(removed_in_the_end(place.source))
            image = inputs.moved(image, path)
        taking_part, left_out = contestants.all_of(options, image, place)
        rows = measure.in_turns(options, image, place, cache, taking_part)
    return report.judged(image, place, cache, rows, left_out)


@contextlib.contextmanager
def removed_in_the_end(path):
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            measure.os.unlink(path)


EXTRAS = {"reflink": reflink, "interrupt": interrupt, "library": library}


def extras(options, disk, result):
    """The figures that are no race of tools; each that is left out says why."""
    for name, room in EXTRAS.items():
        if name in options.without:
            result["left_out"].append(f"{name}: not asked for")
            continue
        try:
            result[name] = room.measured(options, disk)
        except inputs.Missing as why:
            result["left_out"].append(f"{name}: {why}")


GUARD_RATIO = 1.5


def guarded(table):
    """0 or 1: wide of the noise of one run, and no wider."""
    for row in table["rows"]:
        if not row["samples"]:
            print(f"speed guard FAILED: {row['tool']}: {row['failed']}")
            return 1
    ferry, cp = (measure.median(row, "wall_s") for row in table["rows"])
    verdict = "ok" if ferry <= GUARD_RATIO * cp else "FAILED"
    print(
        f"speed guard {verdict}: blockferry {ferry:.2f} s, cp and fsync {cp:.2f} s, "
        f"{ferry / cp:.2f} times (at most {GUARD_RATIO}; {len(table['rows'][0]['samples'])} rounds)"
    )
    return int(verdict != "ok")


def deliver(options, result):
    text = report.markdown(result)
    if options.mode != "guard":
        print(text)
    wanted = {
        options.json: lambda: json.dumps(result, indent=1) + "\n",
        options.svg: lambda: chart.drawn(result),
        options.markdown: lambda: text,
    }
    for path, content in wanted.items():
        if path:
            with open(path, "w") as file:
                file.write(content())


if __name__ == "__main__":
    main()
