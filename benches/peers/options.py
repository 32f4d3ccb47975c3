"""What the command line of `run` may say, made into checked values."""

import argparse
import os
import re

import inputs

PLACES = ["disk", "tmpfs"]
CACHES = ["hot", "cold"]


def parsed():
    words = argparse.ArgumentParser(
        prog="benches/peers/run", description="Times blockferry and its peers on the same copies."
    )
    mode = words.add_mutually_exclusive_group()
    mode.add_argument("--full", action="store_true", help="everything (the default)")
    mode.add_argument("--quick", action="store_true", help="smaller, fewer: at most 5 minutes")
    mode.add_argument("--guard", action="store_true", help="fail if far slower than cp and fsync")
    of_inputs = some_of([*inputs.NAMES, "none"])
    words.add_argument("--only", type=of_inputs, help=f"inputs: {','.join(inputs.NAMES)} or none")
    words.add_argument("--on", type=some_of(PLACES), help="file systems: disk,tmpfs")
    words.add_argument("--cache", type=some_of(CACHES), help="the source in cache: hot,cold")
    words.add_argument("--rounds", type=int, help="samples of each contestant (5; quick 3)")
    words.add_argument("--scale", type=float, default=1.0, help="of the inputs, to try things (1)")
    words.add_argument("--seed", type=int, default=1, help="of inputs and random moments (1)")
    words.add_argument("--limit", type=float, help="seconds a sample may take (60; quick 6)")
    words.add_argument("--folder", help="on the file system to measure (below target/)")
    words.add_argument("--without", type=some_of(EXTRAS), default=[], help=",".join(EXTRAS))
    words.add_argument(
        "--join", nargs="+", metavar="JSON", help="measure nothing: join parts measured before"
    )
    for form in ["json", "svg", "markdown"]:
        words.add_argument(f"--{form}", metavar="FILE", help=f"write the result as {form} there")
    words.add_argument("--blockferry", help="the binary to measure (built)")
    for given_by_run in ["--tools", "--below", "--features"]:
        words.add_argument(given_by_run, help=argparse.SUPPRESS)
    return completed(words.parse_args())


EXTRAS = ["reflink", "interrupt", "library"]


def some_of(known):
    def parse(text):
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(known)}")
        return chosen

    return parse


def completed(options):
    options.mode = "quick" if options.quick else "guard" if options.guard else "full"
    options.folder = os.path.abspath(options.folder or options.below)
    options.blockferry = os.path.abspath(options.blockferry)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.limit = options.limit or usual_limit(options.mode)
    options.tables = chosen_tables(options)
    options.sizes = inputs.sizes(options.mode, options.scale)
    options.cancels = 10 if options.quick else 100
    options.resumes = 2 if options.quick else 5
    return options


def usual_limit(mode):
    return 6 if mode == "quick" else 60


def chosen_tables(options):
    """Triples of input, place and cache, in the order in which they are measured."""
    if options.mode == "guard":
        return [("random", "disk", "hot")]
    places, caches = options.on or PLACES, options.cache or CACHES
    quick = options.mode == "quick" and not (options.on or options.cache)
    hot_unless_asked = [] if options.cache else ["huge", "zero"]
    return [
        (name, place, cache)
        for name in inputs.NAMES
        if not options.only or name in options.only
        for place in places
        for cache in caches
        if not (place == "tmpfs" and (cache == "cold" or name == "huge"))
        and not (cache == "cold" and name in hot_unless_asked)
        and not (quick and (cache == "cold" or (place == "tmpfs" and name != "random")))
    ]


def repeat_line(options):
    """The command that measures the same again."""
    words = ["benches/peers/run"]
    words += [f"--{options.mode}"] if options.mode != "full" else []
    for name in ["only", "on", "cache"]:
        chosen = getattr(options, name)
        words += [f"--{name} {','.join(chosen)}"] if chosen else []
    words += [f"--rounds {options.rounds}", f"--seed {options.seed}"]
    words += [f"--scale {options.scale:g}"] if options.scale != 1 else []
    usual = usual_limit(options.mode)
    words += [f"--limit {options.limit:g}"] if options.limit != usual else []
    words += [f"--without {','.join(options.without)}"] if options.without else []
    return re.sub(" +", " ", " ".join(words))
