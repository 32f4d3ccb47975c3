#!/usr/bin/env python3
"""Proves that the process may be killed with SIGKILL at any moment, again and again.

Each cycle starts a copy and kills it at a random moment; then, up to four times, it resumes, starts
again with the same token, recovers or cancels, and kills that as well. What is visible is complete
at all times. In the end the job is recovered, judged, brought to its end and compared. One cycle in
four makes an encrypted image, one in four a plain file.

CYCLES (default 200, long mode 10 000); SEED; LAB_SECONDS. FERRY names another binary to try.
"""

import collections
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

from lab import (
    Client, Deadline, EncryptedPlace, Ferry, Place, Tally, build, complete, make_keyring, number,
    seed, settle, sparse, workspace,
)

# Cycles that run side by side: a copy with a limit mostly waits.
SIDE_BY_SIDE = 4


class Lab:
    def __init__(self, work):
        self.work, self.ferry, self.seed = work, build(), seed()
        self.cycles, self.deadline = number("CYCLES", 200, 10_000), Deadline()
        self.source = work / "disk.raw"
        sparse(self.source, (24 << 20) + 411, random.Random(self.seed), 48)
        self.bytes = self.source.read_bytes()
        # One state folder for all who work side by side.
        keyring = make_keyring(self.ferry, work / "keyring")
        self.client = Ferry(self.ferry, work / "state", keyring)
        self.tally, self.kills, self.resumed = Tally(), {}, collections.Counter()

    def cycle(self, number):
        if self.deadline.passed():
            return
        rng = random.Random(f"{self.seed} {number}")
        kind = ("image", "plain", "encrypted", "image")[number % 4]
        root = self.work / f"region-{number}"
        root.mkdir()
        if kind == "encrypted":
            place = EncryptedPlace(root, self.client, self.work / f"back-{number}")
        else:
            place = Place(root, plain=kind == "plain")
        client = Client(self.client, place, self.source)
        wrong = self.kill_again_and_again(client, rng, number)
        wrong = wrong or settle(client.ferry, place, self.bytes, client.acks())
        if not wrong:
            wrong, said = complete(client.ferry, place, self.source, self.bytes, rng)
            self.resumed[kind] += said.get("resumed_bytes", 0) > 0
        self.tally.note(f"cycle {number}, {kind}, {client.acks()}", wrong)
        for path in place.root.glob("*/data") if not place.plain else [place.data]:
            path.unlink(missing_ok=True)

    def kill_again_and_again(self, client, rng, number):
        # Some are slow enough for checkpoints, of which there is one a second; some of these are killed
        # after the first one and brought to their end, so that resumes do go on from one.
        slow, late = number // 4 % 4 == 0, number // 4 % 4 == 1
        options = ["--token", f"cycle-{number}", "--rate", "4MiB/s" if slow or late else "16MiB/s"]
        seconds = rng.uniform(1.3, 2.1) if late else rng.uniform(0, 2.4 if slow else 0.7)
        self.kill("copy", client, client.copy(*options), seconds)
        for _ in range(0 if late else rng.randrange(5)):
            what = rng.choice(["resume", "resume", "again", "recover", "cancel", "cancel live"])
            if what == "again" or client.job is None:
                self.kill("again", client, client.copy(*options), rng.uniform(0, 0.5))
            elif what == "resume":
                self.kill(what, client, client.resume(), rng.uniform(0, 1.2 if slow else 0.4))
            elif what == "recover":
                process = client.ferry.start("recover", client.place.region)
                self.kill(what, client, process, rng.uniform(0, 0.008))
            else:
                owner = client.resume() if what == "cancel live" else None
                client.mark("asked")
                process = client.ferry.start("cancel", client.job, "--region", client.place.region)
                self.kill(what, client, process, rng.uniform(0, 0.15 if owner else 0.012))
                if owner:
                    self.kill("owner", client, owner, rng.uniform(0, 0.1))
            if wrong := client.place.wrong(self.bytes):
                return [f"after {what}: {problem}" for problem in wrong]
        return []

    def kill(self, what, client, process, seconds):
        """Kills a process after that time, unless it has ended, and heeds what it answered."""
        time.sleep(seconds)
        if process.poll() is None:
            process.kill()
            self.kills[what] = self.kills.get(what, 0) + 1
        if what in ("copy", "again", "resume", "owner"):
            client.end(process)
        elif process.wait() == 0 and what.startswith("cancel"):
            client.mark("decided")


def main():
    with workspace() as work:
        lab = Lab(work)
        print(f"kill9: {lab.cycles} cycles, SEED={lab.seed}", flush=True)
        before = os.stat(lab.source)
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            list(pool.map(lab.cycle, range(lab.cycles)))
        after = os.stat(lab.source)
        touched = (before.st_mtime_ns, before.st_ino) != (after.st_mtime_ns, after.st_ino)
        lab.tally.note("source", ["it was touched"] if touched else [])
        same = lab.source.read_bytes() == lab.bytes
        lab.tally.note("source bytes", [] if same else ["they have changed"])
    resumed = ", ".join(f"{count} of {kind}" for kind, count in sorted(lab.resumed.items()))
    kills = ", ".join(f"{count} in {what}" for what, count in sorted(lab.kills.items()))
    lab.tally.finish(
        f"kill9: {sum(lab.kills.values())} kills ({kills}),"
        f" {sum(lab.resumed.values())} resumes that went on from a checkpoint ({resumed})",
        kills_in_a_copy=lab.kills.get("copy"), kills_in_a_resume=lab.kills.get("resume"),
        resumed=sum(lab.resumed.values()), resumed_encrypted=lab.resumed["encrypted"],
    )


if __name__ == "__main__":
    main()
