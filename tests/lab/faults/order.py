#!/usr/bin/env python3
"""Proves that what the command answers rests on syncs of its own, by the order of its system calls.

Real file systems make more durable than they are asked to: a sync of one folder takes the renames
of all others along. So a crash on them cannot show that a sync is missing. Here the real command
runs under strace, and each law is looked up in the trace: what has to be synced before what.

Images, plain files and encrypted images; a copy, a cancel, a sync that fails, and a cancel that comes too late,
before and after the clean-up. FERRY names another binary to try.
"""

import random
import re
import shutil
import time

from lab import (
    Client, EncryptedPlace, Ferry, Place, Tally, build, make_keyring, need, sparse, workspace,
)

CALLS = (
    "fsync,fdatasync,pwrite64,pread64,ftruncate,fadvise64,openat2,mkdirat,unlinkat,renameat2,"
    "fchmod,write"
)
LINE = re.compile(r"^([\d.]+) (\w+)\((.*)\)\s+= (-?\d+|\?).*?(?:<([\d.]+)>)?$")
CANCEL_AT, LOG_AT = 32 << 10, 48 << 10
PROGRESS, PREPARED = 3, 4
# A copy that drops its pages anyway hides whether the verification does.
KEEP = ("--page-cache", "keep")


class Call:
    """One system call: what it was done to, and from when to when."""

    def __init__(self, match):
        began, self.name, self.args, result, took = match.groups()
        self.began = float(began)
        self.ended = self.began + float(took or 0)
        self.ok = result.isdigit()
        paths = re.findall(r"\d+<([^>]*)>", self.args)
        self.path = paths[0] if paths else ""
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', self.args)
        self.text = names[0] if names else ""
        if self.name in ("openat2", "mkdirat", "unlinkat", "renameat2"):
            self.folder, self.path = self.path, f"{self.path}/{self.text}"

    def numbers(self):
        return [int(word) for word in re.findall(r", (\d+)(?=,|$)", self.args)]

    def record(self):
        """The kind of the journal record that it writes; None when it writes another thing."""
        found = re.match(r"BFJR\\1\\0\\(\d)", self.text)
        return int(found[1]) if found and self.offset() >= LOG_AT else None

    def offset(self):
        return self.numbers()[-1]

    def __repr__(self):
        return f"{self.name}({self.path})"


class Trace:
    """All successful calls of a run, in the order in which they began."""

    def __init__(self, prefix):
        lines = [line for path in prefix.parent.glob(prefix.name + ".*")
                 for line in path.read_text(errors="replace").splitlines()]
        calls = [Call(match) for match in map(LINE.match, lines) if match]
        self.calls = sorted((call for call in calls if call.ok), key=lambda call: call.began)

    def all(self, name, path=None, **where):
        return [
            call for call in self.calls
            if call.name in name.split() and (path is None or re.fullmatch(path, call.path))
            and all(getattr(call, key) == value for key, value in where.items())
        ]

    def synced(self, path, after, before):
        """Whether a sync of that path began after the one call and ended before the other."""
        return any(
            sync.began >= after.ended and sync.ended <= before
            for sync in self.all("fsync fdatasync", path)
        )


def first(calls, what, wrong):
    """The first of these calls; that there is none is wrong."""
    if not calls:
        wrong.append(f"there is no {what}")
        return None
    return calls[0]


class Laws:
    """What must hold of the trace of one run on one place."""

    def __init__(self, trace, place):
        self.trace, self.wrong = trace, []
        root = re.escape(str(place.root))
        self.root = root
        self.parent = root if place.plain else f"{root}/\\.blockferry/stage"
        self.stage = f"{root}/\\.blockferry-\\w+" if place.plain else f"{self.parent}/\\w+"
        self.inner = self.stage if place.plain else f"{self.stage}/image"
        self.data, self.journal = f"{self.inner}/data", f"{self.stage}/journal"
        self.end = float("inf")
        # What a checkpoint speaks of, and what is there besides when the image is published.
        self.told, self.files = [self.data], [self.data]
        self.key = f"{self.inner}/key" if isinstance(place, EncryptedPlace) else None
        if self.key:
            self.told = [self.data, f"{self.inner}/records"]
            self.files = [*self.told, self.key]
        if not place.plain:
            self.files.append(f"{self.inner}/manifest")

    def need(self, path, after, before, why):
        if after and not self.trace.synced(path, after, before):
            self.wrong.append(f"{why}: no sync of {path} between {after} and what rests on it")

    def start(self):
        """What is told as started is durable, name by name."""
        told = first([c for c in self.trace.all("write") if c.text.startswith("job ")],
                     "word of the start", self.wrong)
        if told is None:
            return
        for made in self.trace.all("mkdirat"):
            if made.path.startswith(self.root.replace("\\", "")):
                self.need(re.escape(made.folder), made, told.began, "a folder at the start")
        header = first([c for c in self.trace.all("pwrite64", self.journal) if c.offset() == 0],
                       "journal header", self.wrong)
        self.need(self.journal, header, told.began, "the header at the start")
        created = [c for c in self.trace.all("openat2", self.journal) if "O_CREAT" in c.args]
        self.need(self.stage, first(created, "new journal", self.wrong), told.began, "its name")
        if self.key:
            # Without it the chunks that a resume finds on record could not be read.
            made = self.trace.all("pwrite64", self.key)
            self.need(self.key, first(made, "data key", self.wrong), told.began, "the data key")
            self.need(self.inner, first(made, "data key", self.wrong), told.began, "its name")

    def checkpoints(self):
        """Between two progress records there is a sync of the data (and of the records of encrypted
        chunks), and one of the journal after each."""
        before = None
        for record in self.trace.all("pwrite64", self.journal):
            if record.record() != PROGRESS:
                continue
            since = before.began if before else 0
            for told in self.told:
                syncs = self.trace.all("fdatasync fsync", told)
                if not any(s.began >= since and s.ended <= record.began for s in syncs):
                    self.wrong.append(f"a checkpoint without a sync of {told} before it")
            self.need(self.journal, record, self.end, "a checkpoint")
            before = record
        if before is None:
            self.wrong.append("there is no checkpoint")

    def commit(self):
        """Everything is durable before the rename, and the rename before the end."""
        rename = first([c for c in self.trace.all("renameat2") if "NOREPLACE" in c.args],
                       "rename that replaces nothing", self.wrong)
        if rename is None:
            return
        written = "pwrite64 ftruncate fchmod"
        for file in self.files:
            changes = [c for c in self.trace.all(written, file) if c.began < rename.began]
            first(changes, f"change of {file}", self.wrong)
            # Order: the mode of a manifest is set before its sync.
            self.need(file, max(changes, key=lambda c: c.ended, default=None), rename.began,
                      "the bytes at the commit")
            made = [c for c in self.trace.all("openat2", file) if "O_CREAT" in c.args]
            self.need(self.inner, first(made[-1:], f"new {file}", self.wrong), rename.began,
                      "the names at the commit")
        prepared = [c for c in self.trace.all("pwrite64", self.journal) if c.record() == PREPARED]
        prepared = first(prepared, "PREPARED record", self.wrong)
        self.need(self.journal, prepared, rename.began, "the PREPARED record")
        self.published(rename)

    def published(self, after):
        """Both folders are synced before anything of the stage goes, or anything is told."""
        gone = [c.began for c in self.trace.all("unlinkat", self.journal) if c.began > after.began]
        before = min(gone, default=self.end)
        self.need(self.root, after, before, "the commit")
        self.need(self.stage, after, before, "the commit")

    def verify(self):
        """What is read back comes from the device: it was synced, and evicted after that."""
        reads = self.trace.all("pread64", self.data)
        if not reads:
            self.wrong.append("nothing was read back")
        for read in reads:
            at = read.offset()
            evicted = [
                c for c in self.trace.all("fadvise64", self.data)
                if c.numbers()[0] <= at < sum(c.numbers()[:2]) and c.ended <= read.began
            ]
            writes = [c for c in self.trace.all("pwrite64", self.data) if c.began < read.began]
            if not any(self.trace.synced(self.data, writes[0], c.began) for c in evicted):
                self.wrong.append(f"byte {at} was read back out of the page cache")
                return

    def cancel(self):
        """The decision is durable before anything of the stage goes."""
        slot = [c for c in self.trace.all("pwrite64", self.journal) if c.offset() == CANCEL_AT]
        slot = first(slot, "cancel slot", self.wrong)
        gone = [c.began for c in self.trace.all("unlinkat ftruncate", f"{self.stage}.*")]
        if self.key:
            gone += [c.began for c in self.trace.all("pwrite64", self.key)]
        self.need(self.journal, slot, min(gone, default=self.end), "the cancel")

    def destroyed(self):
        """The data key is written over and removed, durably, before anything else goes."""
        others = [c.began for c in self.trace.all("unlinkat ftruncate", f"{self.stage}.*")
                  if c.path.rsplit("/", 1)[-1] != "key"]
        before = min(others, default=self.end)
        over = first(self.trace.all("pwrite64", self.key), "writing over the key", self.wrong)
        removed = first(self.trace.all("unlinkat", self.key), "removal of the key", self.wrong)
        if over and removed:
            if not re.fullmatch(r"(\\0)+", over.text):
                self.wrong.append(f"the key is written over with {over.text}")
            self.need(self.key, over, removed.began, "the destroyed key")
            self.need(self.inner, removed, before, "the removal of the key")

    def gone(self):
        """That nothing of the job is left is durable too."""
        removed = [c for c in self.trace.all("unlinkat", self.stage) if "REMOVEDIR" in c.args]
        self.need(self.parent, first(removed, "removal of the stage", self.wrong), self.end,
                  "the clean-up")


class Lab:
    def __init__(self, work):
        self.work, self.tally = work, Tally()
        self.source = work / "disk.raw"
        sparse(self.source, (3 << 20) + 411, random.Random(7), 5)
        binary = build()
        keyring = make_keyring(binary, work / "keyring")
        self.ferry = Ferry(binary, work / "state", keyring)

    def traced(self, place, run):
        """The laws over the trace of what `run` starts with these words before it."""
        logs = self.work / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        strace = ["strace", "-ff", "-ttt", "-T", "-y", "-s", "64", "-o", str(logs / "t")]
        run([*strace, "-e", f"trace={CALLS}"])
        return Laws(Trace(logs / "t"), place)

    def fresh(self, kind):
        root = self.work / "region"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if kind == "encrypted":
            place = EncryptedPlace(root, self.ferry, self.work / "back")
        else:
            place = Place(root, plain=kind == "plain")
        return place, Client(self.ferry, place, self.source)

    def copy(self, kind):
        place, client = self.fresh(kind)
        laws = self.traced(place, lambda strace: client.end(
            client.copy("--verify", "full", "--rate", "2MiB/s", *KEEP, before=strace)))
        for law in (laws.start, laws.checkpoints, laws.commit, laws.verify, laws.gone):
            law()
        if not place.visible():
            laws.wrong.append("nothing was committed")
        laws.wrong += place.wrong(self.source.read_bytes())
        self.tally.note(f"copy, {kind}", laws.wrong)
        return place, client

    def half_way(self, kind):
        """A copy whose process was killed half way, and its stage."""
        place, client = self.fresh(kind)
        process = client.copy("--rate", "512KiB/s")
        time.sleep(0.5)
        process.kill()
        client.end(process)
        self.ferry.run("limit", client.job, "--rate", "none")
        stage = f".blockferry-{client.job}" if place.plain else f".blockferry/stage/{client.job}"
        return place, client, place.root / stage

    def cancel(self, kind):
        place, client, _ = self.half_way(kind)
        laws = self.traced(place, lambda strace: client.cancel(before=strace))
        laws.cancel()
        laws.gone()
        if laws.key:
            laws.destroyed()
        self.tally.note(f"cancel, {kind}", laws.wrong)

    def cancel_too_late(self, kind):
        """The image is published, but its owner was killed before it could say so."""
        place, client, stage = self.half_way(kind)
        kill = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=unlinkat",
                "-e", "inject=unlinkat:signal=KILL:when=1", "-P", str(stage)]
        self.ferry.run("resume", client.job, before=kill)
        laws = self.traced(place, lambda strace: client.cancel(before=strace))
        if not (place.visible() and laws.trace.all("unlinkat", laws.journal)):
            laws.wrong.append("the owner was not killed between the rename and the clean-up")
        else:
            laws.published(laws.trace.calls[0])
            laws.gone()
        self.tally.note(f"cancel after the rename, {kind}", laws.wrong)

    def failed_sync(self, kind, of="data"):
        """What a sync that has failed did lose nobody knows: it is not tried again, and nothing is
        built on it."""
        place, client, stage = self.half_way(kind)
        data = stage / of if place.plain else stage / "image" / of
        fail = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=fdatasync",
                "-e", "inject=fdatasync:error=EIO:when=1", "-P", str(data)]
        code, said = self.ferry.run("resume", client.job, before=fail)
        wrong = [] if code == 1 and not place.visible() else [f"exit code {code}, {said}"]
        # A new attempt does not build on it either.
        code, said = self.ferry.run("resume", client.job)
        if code != 0 or place.wrong(self.source.read_bytes()):
            wrong.append(f"the next attempt: exit code {code}, {said}")
        self.tally.note(f"a sync of {of} that fails, {kind}", wrong)

    def cancel_of_an_image(self):
        """The stage is gone as well: the image answers, and whoever reads that syncs its name."""
        place, client = self.copy("image")
        laws = self.traced(place, lambda strace: client.cancel(before=strace))
        laws.need(laws.root, laws.trace.calls[0], laws.end, "the answer of an image")
        self.tally.note("cancel of an image", laws.wrong)


def main():
    need("strace", "strace")
    with workspace() as work:
        lab = Lab(work)
        for kind in ("image", "plain", "encrypted"):
            lab.copy(kind)
            lab.cancel(kind)
            lab.cancel_too_late(kind)
            lab.failed_sync(kind)
        lab.failed_sync("encrypted", of="records")
        lab.cancel_of_an_image()
        lab.tally.finish("order: copies, cancels, failed syncs, cancels that came too late")


if __name__ == "__main__":
    main()
