#!/usr/bin/env python3
"""Proves that a source which changes under a read is never committed.

While it is being copied the source is truncated, written to, replaced by another file, or removed:
the job fails with `source_changed` (exit code 1), nothing is visible and nothing of it is left. An
image of a region is truncated too, though nobody ought to: nothing is visible either.

ROUNDS (default 8, long mode 200) of each; SEED; LAB_SECONDS. FERRY names another binary to try.
"""

import os
import random
import shutil
import subprocess
import time

from lab import (
    Client, Deadline, Ferry, Place, Tally, build, dense, number, parsed, seed, settle,
    workspace,
)

IMAGE_BYTES = (2 << 20) + 411


def truncated(path, rng):
    os.truncate(path, rng.randrange(IMAGE_BYTES))


def emptied(path, _):
    os.truncate(path, 0)


def written_to(path, rng):
    with open(path, "r+b") as file:
        file.seek(rng.randrange(IMAGE_BYTES - 8))
        file.write(rng.randbytes(8))


def grown(path, _):
    os.truncate(path, IMAGE_BYTES + 1)


def replaced(path, _):
    shutil.copyfile(path, f"{path}.new")
    os.rename(f"{path}.new", path)


def removed(path, _):
    os.unlink(path)


def one_round(lab, change, plain, rng):
    place = Place(lab.work / "region", plain)
    shutil.rmtree(place.root, ignore_errors=True)
    place.root.mkdir()
    source = lab.work / "source.raw"
    source.write_bytes(lab.bytes)
    client = Client(Ferry(lab.ferry, lab.work / "state"), place, source)
    copy = ["copy", source, place.target, "--chunk-size", "64KiB", "--rate", "3MiB/s", "--json"]
    process = client.ferry.start(*copy, stdout=subprocess.PIPE)
    time.sleep(rng.uniform(0.1, 0.5))
    change(source, rng)
    out, _ = process.communicate()
    said = parsed(out)
    wrong = []
    if process.returncode != 1 or said["error"]["kind"] != "source_changed":
        wrong.append(f"exit code {process.returncode}, {said}")
    if place.visible() or place.leftovers():
        wrong.append(f"visible {place.visible()}, left {place.leftovers()}")
    return wrong + settle(client.ferry, place, lab.bytes, client.acks())


def truncated_image(lab, rng):
    """An image of a region is truncated while it is read: it fails or dies, and shows nothing."""
    place = Place(lab.work / "region", plain=True)
    shutil.rmtree(lab.work / "images", ignore_errors=True)
    shutil.rmtree(place.root, ignore_errors=True)
    place.root.mkdir()
    images = Place(lab.work / "images", plain=False)
    images.root.mkdir()
    client = Client(Ferry(lab.ferry, lab.work / "state"), place, images.target)
    client.ferry.run("copy", lab.source, images.target, "--chunk-size", "64KiB")
    process = client.copy("--rate", "3MiB/s")
    time.sleep(rng.uniform(0.1, 0.4))
    os.truncate(images.data, rng.randrange(IMAGE_BYTES))
    code = client.end(process)
    wrong = [] if code != 0 else ["it has committed"]
    if place.visible():
        wrong.append("something is visible")
    code, said = client.ferry.run("cancel", client.job)
    if place.leftovers():
        wrong.append(f"cancel: exit code {code}, {said}, left {place.leftovers()}")
    return wrong


class Lab:
    def __init__(self, work):
        self.work, self.ferry, self.seed = work, build(), seed()
        self.source = work / "disk.raw"
        dense(self.source, IMAGE_BYTES, random.Random(self.seed))
        self.bytes = self.source.read_bytes()


def main():
    rounds, deadline, tally = number("ROUNDS", 8, 200), Deadline(), Tally()
    with workspace() as work:
        lab = Lab(work)
        print(f"source: {rounds} rounds of each, SEED={lab.seed}", flush=True)
        rng = random.Random(lab.seed)
        for turn in range(rounds):
            if deadline.passed():
                break
            for change in (truncated, emptied, written_to, grown, replaced, removed):
                wrong = one_round(lab, change, turn % 2 == 0, rng)
                tally.note(f"source {change.__name__}, round {turn}", wrong)
            tally.note(f"image truncated, round {turn}", truncated_image(lab, rng))
    tally.finish(f"source: {tally.passed + tally.failed} sources were changed under a copy")


if __name__ == "__main__":
    main()
