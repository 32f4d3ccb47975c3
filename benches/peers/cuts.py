"""How fast a cancel is on an object store, and what a kill costs there: `run --objects`."""

import json
import random
import signal
import statistics
import subprocess
import time

import contestants
import inputs
import interrupt
import measure
import stores

# What a store does when a copy is rolled back.
ROLLBACK = ["delete", "delete_many", "abort", "list", "list_parts", "list_uploads"]
# What may be left of it: the tombstone, and how heads are kept.
LEFT = {stores.PLAIN: (), stores.SEALED: ("region/images/cut/head", "region/way")}


def measured(bench, image, cancels, resumes):
    """By the kind of destination; on the stub, for only that can tell what it was asked."""
    with stores.stub(bench, image.size) as server:
        found = {"size": image.size}
        for name, scheme, key in [
            ("plain object", stores.PLAIN, "cut.raw"), ("sealed", stores.SEALED, "region/cut"),
        ]:
            one = Cut(bench, server, image, scheme, key)
            found[name] = {"resume": one.resumed(resumes)}
            undisturbed_s = found[name]["resume"]["undisturbed_s"]
            found[name]["cancel"] = one.cancelled(cancels, undisturbed_s)
        return found


class Cut:
    """Copies to one place, again and again."""

    def __init__(self, bench, server, image, scheme, key):
        self.bench, self.server, self.image = bench, server, image
        self.scheme, self.key, self.target = scheme, key, server.at(scheme, key)
        self.command = stores.ferry(bench, image.path, self.target)
        self.back = f"{bench.place.destination}/back.raw"

    def freshen(self):
        self.bench.place.freshen()
        self.server.empty()
        stores.asked(self.server.endpoint, "POST", "reset?track=1")

    def state(self):
        return interrupt.state_of(self.bench.place)

    def started(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.command, stdin=subprocess.DEVNULL, **quiet)

    def resumed(self, count):
        """Undisturbed copies and such that are killed at half and resumed, in turns."""
        whole, broken = [], []
        while len(broken) < count:
            self.freshen()
            measure.settle(self.bench.options, self.image, "hot")
            began = time.monotonic()
            stores.called(self.command)
            whole.append(time.monotonic() - began)
            broken.append(self.killed_at_half())
            measure.note(
                f"kill {len(broken)}, {self.scheme}: {whole[-1]:.2f} s undisturbed, "
                f"{broken[-1]['total_s']:.2f} s in two, {broken[-1]['repeated_bytes']} B again"
            )
        return {
            "undisturbed_s": statistics.median(whole),
            "total_s": statistics.median(one["total_s"] for one in broken),
            "repeated_bytes": max(one["repeated_bytes"] for one in broken),
            "undisturbed": whole,
            "broken": broken,
        }

    def killed_at_half(self):
        self.freshen()
        measure.settle(self.bench.options, self.image, "hot")
        began = time.monotonic()
        copy = self.started()
        while copy.poll() is None and self.stored() < self.image.data // 2:
            time.sleep(0.002)
        copy.send_signal(signal.SIGKILL)
        first_s = time.monotonic() - began
        if copy.wait() != -signal.SIGKILL:
            raise measure.Differs(f"a copy ended with {copy.returncode} before it was killed")
        before = self.acknowledged()
        job = interrupt.only_job(self.bench.options, self.bench.place)
        verb = [self.bench.options.blockferry, "resume", job, "--progress", "none"]
        began = time.monotonic()
        told = json.loads(stores.called([*verb, *self.state(), "--json"]))
        second_s = time.monotonic() - began
        counted = self.server.counted()
        self.check()
        return {
            "total_s": first_s + second_s,
            "acknowledged_bytes": before,
            "sent_later_bytes": counted["stored_bytes"] - before,
            "repeated_bytes": counted["repeated_bytes"],
            "resumed_bytes": told["resumed_bytes"],
        }

    def stored(self):
        return self.server.counted()["stored_bytes"]

    def acknowledged(self):
        """What the store had when all that was under way had come, or had come to nothing."""
        last = None
        while (now := self.stored()) != last:
            last = now
            time.sleep(0.05)
        return now

    def check(self):
        if self.scheme == stores.PLAIN:
            self.server.fetch(self.key, self.back)
        else:
            stores.called(stores.ferry(self.bench, self.target, self.back))
        back = contestants.Contestant(f"resume, {self.scheme}", [], self.back)
        measure.check(self.image, back, whole=True)

    def cancelled(self, count, undisturbed_s):
        """Cancels from another process at uniformly random moments of a copy."""
        chance = random.Random(self.bench.options.seed)
        moments = [chance.uniform(0.05, 0.9) * undisturbed_s for _ in range(count)]
        answers = [self.one_cancel(moment_s) for moment_s in moments]
        if all(one["answer"] in ("already_committed", "not_found") for one in answers):
            raise inputs.Missing(f"none of {count} cancels was in time: a larger --scale helps")
        told = interrupt.summed_up(answers)
        good = [one["store_ms"] for one in answers if one["answer"] == "cancelled"]
        return told | {"store_ms": interrupt.spread(good)}

    def one_cancel(self, moment_s):
        self.freshen()
        measure.read_data(self.image.path)
        copy = self.started()
        try:
            time.sleep(moment_s)
            began = time.monotonic()
            words = [self.bench.options.blockferry, "cancel", self.target, *self.state(), "--json"]
            before = self.server.counted()["asked"]
            done = subprocess.run(words, capture_output=True, text=True)
            process_ms = (time.monotonic() - began) * 1e3
            code = copy.wait(timeout=60)
        finally:
            copy.kill()
            copy.wait()
        after = self.server.counted()
        busy_s = sum(after["asked"][what][1] - before[what][1] for what in ROLLBACK)
        told = json.loads(done.stdout) | {"process_ms": process_ms, "moment_s": moment_s}
        if told["answer"] == "cancelled" and told["clean"]:
            keys = [key for key in self.server.keys() if not key.startswith(LEFT[self.scheme])]
            if keys or after["uploads"] or code != 4:
                raise measure.Differs(
                    f"a clean cancel left {keys} and {after['uploads']} uploads; the copy ended "
                    f"with exit code {code}"
                )
        return told | {"store_ms": busy_s * 1e3}
