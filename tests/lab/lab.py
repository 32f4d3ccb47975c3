"""What the Python labs share: facilities, the command, mounts, and the judge of what is left."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CHUNK = 64 << 10
KEY = "lab-key"
# Whoever ends a lab early finds everything unmounted.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"


# --- Facilities: what is missing is installed, else it is skipped; in CI nothing is skipped.


def skip(why):
    print(f"skipped: {why}", flush=True)
    sys.exit(1 if os.environ.get("BLOCKFERRY_REQUIRE_ALL") else 0)


def need_root(why):
    if os.geteuid() != 0:
        skip(f"root is needed {why}")


def need_fs(*kinds):
    for kind in kinds:
        need(f"mkfs.{kind}", {"ext4": "e2fsprogs", "xfs": "xfsprogs"}[kind])
    if not os.path.exists("/dev/loop-control"):
        skip("there are no loop devices")


def need_fuse():
    need("qemu-storage-daemon", "qemu-system-common")
    if not os.path.exists("/dev/fuse"):
        skip("there is no FUSE here")


def need(tool, package):
    if shutil.which(tool) is None and shutil.which("apt-get"):
        environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", package]
        subprocess.run(install, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if shutil.which(tool) is None:
        skip(f"{tool} is not installed (Debian package {package})")


def number(name, default, long):
    """A count: from the environment, else the default, or that of the long mode (LAB_LONG)."""
    return int(os.environ.get(name) or (long if os.environ.get("LAB_LONG") else default))


def seed():
    """The seed of this run, printed so that a failure can be repeated as far as time allows."""
    return int(os.environ.get("SEED") or random.randrange(1 << 30))


class Deadline:
    """The time that LAB_SECONDS allows this lab, or a share of it; none unless it is set."""

    def __init__(self, share=1.0):
        seconds = os.environ.get("LAB_SECONDS")
        self.at = time.monotonic() + share * float(seconds) if seconds else None

    def passed(self):
        return self.at is not None and time.monotonic() >= self.at


def build():
    """The release binary, built if need be; FERRY names one that is to be tried instead."""
    told = subprocess.run([REPO / "tests/lab/binary"], check=True, stdout=subprocess.PIPE)
    return told.stdout.decode().strip()


@contextlib.contextmanager
def workspace(size="8G"):
    """A folder that is gone at the end; for root on a tmpfs of its own, which is fast."""
    work = tempfile.mkdtemp(prefix="ferry-lab-")
    if os.geteuid() != 0:
        try:
            yield Path(work)
        finally:
            shutil.rmtree(work)
        return
    try:
        mount("tmpfs", work, "tmpfs", f"size={size},mode=700")
    except OSError as error:
        os.rmdir(work)
        skip(f"nothing can be mounted here: {error}")
    try:
        yield Path(work)
    finally:
        unmount(work)
        os.rmdir(work)


class Tally:
    """Counts what passed, and says at once what failed."""

    def __init__(self):
        self.began, self.passed, self.failed = time.monotonic(), 0, 0

    def note(self, what, problems):
        if not problems:
            self.passed += 1
            return
        self.failed += 1
        if self.failed <= 20:
            for problem in problems:
                print(f"FAILED {what}: {problem}", flush=True)

    def add(self, other):
        self.passed, self.failed = self.passed + other.passed, self.failed + other.failed

    def finish(self, summary, **counts):
        """Prints the summary, and ends the lab.

        What is counted must have happened; only a run that was cut short or made smaller may lack
        some of it.
        """
        small = {"LAB_SECONDS", "CYCLES", "STATES", "PAIRS", "ROUNDS"} & os.environ.keys()
        for what, count in counts.items():
            if not count and not small:
                self.note(what.replace("_", " "), ["it has never happened: nothing was proved"])
        print(f"{summary}; {time.monotonic() - self.began:.0f} s in all")
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        # Nothing looked at proves nothing.
        sys.exit(0 if self.passed and not self.failed else 1)


# --- The command


class Ferry:
    """The real binary with one state folder, and perhaps a keyring."""

    def __init__(self, binary, state, keyring=None):
        self.binary = binary
        self.environ = os.environ | {"BLOCKFERRY_STATE_DIR": str(state)}
        self.environ.pop("BLOCKFERRY_KEYRING", None)
        if keyring:
            self.environ["BLOCKFERRY_KEYRING"] = str(keyring)

    def start(self, *words, before=(), **popen):
        """Starts it in the background, silent unless told otherwise."""
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | popen
        command = [*before, self.binary, *map(str, words)]
        return subprocess.Popen(command, env=self.environ, stdin=subprocess.DEVNULL, **streams)

    def run(self, *words, before=(), timeout=60):
        """Runs it to its end: the exit code and its JSON object ({} when it was killed)."""
        process = self.start(*words, "--json", before=before, stdout=subprocess.PIPE)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "hung", {}
        return process.returncode, parsed(out)


def parsed(line):
    """The object on that line; empty when its process was killed before it could say it."""
    with contextlib.suppress(ValueError):
        return json.loads(line)
    return {}


# --- Loop devices and mounts, by system call: a lab makes thousands of them.

LIBC = ctypes.CDLL(None, use_errno=True)
LOOP_SET_FD, LOOP_CLR_FD, LOOP_CTL_ADD = 0x4C00, 0x4C01, 0x4C80
FICLONE, MS_REMOUNT = 0x40049409, 32
# Which loop devices are ours to take. Not the first free one: whoever else asks for that at the
# same moment looks into ours, and keeps it from being mounted.
LOOP_FIRST, LOOP_COUNT = 128, 64


def mount(device, folder, kind, options="", again=False):
    words = [str(word).encode() for word in (device, folder, kind)]
    # Clones are mounted beside each other.
    options = "nouuid" if kind == "xfs" else options
    if LIBC.mount(*words, MS_REMOUNT if again else 0, options.encode()):
        code = ctypes.get_errno()
        if code == errno.ENODEV:
            skip(f"the kernel has no {kind}")
        raise OSError(code, f"mount {kind}: {os.strerror(code)}")


def unmount(folder):
    for _ in range(200):
        if LIBC.umount2(str(folder).encode(), 0) == 0:
            return
        time.sleep(0.01)
    # Somebody still holds it: take it out of sight, so that the rest can be removed.
    LIBC.umount2(str(folder).encode(), 2)
    raise OSError(ctypes.get_errno(), f"unmount {folder}")


@contextlib.contextmanager
def loop(path):
    """A loop device over that file."""
    backing = os.open(path, os.O_RDWR)
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        for number in range(LOOP_COUNT):
            number = LOOP_FIRST + (os.getpid() + number) % LOOP_COUNT
            with contextlib.suppress(FileExistsError):
                fcntl.ioctl(control, LOOP_CTL_ADD, number)
            name = f"/dev/loop{number}"
            try:
                device = os.open(name, os.O_RDWR)
            except OSError as error:
                # Another thread is just adding it, to take it.
                if error.errno not in (errno.ENXIO, errno.ENOENT, errno.EBUSY):
                    raise
                continue
            try:
                fcntl.ioctl(device, LOOP_SET_FD, backing)
                break
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
        else:
            raise OSError(errno.EBUSY, f"{LOOP_COUNT} loop devices are busy")
    finally:
        os.close(control)
        os.close(backing)
    try:
        yield name
    finally:
        fcntl.ioctl(device, LOOP_CLR_FD)
        os.close(device)


@contextlib.contextmanager
def mounted(path, folder, kind):
    """The file system in that file, mounted."""
    os.makedirs(folder, exist_ok=True)
    with loop(path) as device:
        mount(device, folder, kind)
        try:
            yield
        finally:
            unmount(folder)


def sync_folder(path):
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def make_fs(kind, path, mib):
    with open(path, "wb") as file:
        file.truncate(mib << 20)
    at_once = "lazy_itable_init=0,lazy_journal_init=0"
    make = {
        "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", at_once],
        "xfs": ["mkfs.xfs", "-q", "-f"],
    }[kind]
    subprocess.run([*make, str(path)], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def exported(path, size, *blockdevs, writable=True):
    """The node `top` of these block devices as a file, served by FUSE: yields the server."""
    path.touch()
    command = ["qemu-storage-daemon"]
    for blockdev in blockdevs:
        command += ["--blockdev", blockdev]
    export = f"type=fuse,id=e0,node-name=top,mountpoint={path},growable=off,allow-other=off"
    command += ["--export", f"{export},writable={'on' if writable else 'off'}"]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while path.stat().st_size != size:
            if server.poll() is not None or time.monotonic() > until:
                raise OSError("qemu-storage-daemon does not export by FUSE")
            time.sleep(0.02)
        yield server
    finally:
        # It may look for the signal just before it arrives, and go to sleep: so more than once.
        while server.poll() is None:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=0.1)


def clone(source, copy):
    """A reflink copy in no time; both lie on the same XFS."""
    with open(source, "rb") as one, open(copy, "wb") as other:
        fcntl.ioctl(other, FICLONE, one.fileno())


# --- Images, and the judge of what is left of a copy


def dense(path, size, rng):
    path.write_bytes(rng.randbytes(size))


def sparse(path, size, rng, pieces):
    """Noise with holes: `pieces` runs of 192 KiB, the last one ending with the file."""
    with open(path, "wb") as file:
        file.truncate(size)
        for piece in range(pieces):
            at = size * piece // pieces // 4096 * 4096 if piece + 1 < pieces else size - 3 * CHUNK
            file.seek(at)
            file.write(rng.randbytes(3 * CHUNK))


def make_keyring(binary, path):
    """A keyring with the key that `EncryptedPlace` asks for."""
    for words in (["init", path], ["add", path, KEY]):
        subprocess.run([binary, "keyring", *words], check=True, stdout=subprocess.DEVNULL)
    return path


class Place:
    """A destination below a folder: an image of a directory region, or a plain file."""

    # What a copy to it is told besides.
    words = ()

    def __init__(self, root, plain):
        self.root, self.plain = Path(root), plain
        self.region = str(root) if plain else f"dir://{root}"
        self.target = f"{root}/disk.raw" if plain else f"dir://{root}/m-1"
        self.image = self.root / ("disk.raw" if plain else "m-1")
        self.data = self.image if plain else self.image / "data"

    def visible(self):
        return self.image.exists()

    def wrong(self, source):
        """What is wrong with what is visible: it is absent, or equals the source."""
        if self.visible() and self.data.read_bytes() != source:
            return ["the image is visible and differs from its source"]
        return []

    def staged(self):
        """The stages that are there, by job."""
        if self.plain:
            return [p.name.removeprefix(".blockferry-") for p in self.root.glob(".blockferry-*")]
        return [p.name for p in self.root.glob(".blockferry/stage/*")]

    def leftovers(self):
        """Regular files of ours beside the image."""
        ours = self.root.glob(".blockferry*/**/*")
        return [str(path.relative_to(self.root)) for path in ours if path.is_file()]


class EncryptedPlace(Place):
    """An image that is encrypted where it lies: what it holds is what comes back out of it."""

    words = ("--encrypt", KEY)

    def __init__(self, root, ferry, scratch):
        super().__init__(root, plain=False)
        self.ferry, self.scratch = ferry, scratch

    def wrong(self, source):
        if not self.visible():
            return []
        self.scratch.unlink(missing_ok=True)
        # In a state folder of its own: the job that is judged stays the only one in the other.
        state = self.scratch.with_suffix(".state")
        ferry = Ferry(self.ferry.binary, state, self.ferry.environ["BLOCKFERRY_KEYRING"])
        code, said = ferry.run("copy", self.target, self.scratch, "--decrypt")
        shutil.rmtree(state, ignore_errors=True)
        if code != 0:
            return [f"the encrypted image is visible and cannot be read: {code}, {said}"]
        back = self.scratch.read_bytes()
        self.scratch.unlink()
        problems = [] if back == source else ["the encrypted image differs from its source"]
        with open(self.data, "rb") as data:
            if data.read(4096) == source[:4096]:
                problems.append("the encrypted image lies in clear")
        return problems


class Acks:
    """What a client has been told, and so may rely on."""

    def __init__(self, job=None, names=()):
        self.job, self.names = job, set(names)

    def __contains__(self, name):
        return name in self.names

    def __repr__(self):
        return f"told {sorted(self.names) or 'nothing'}"


class Client:
    """One who asks for a copy, and remembers what was answered, and when."""

    def __init__(self, ferry, place, source_path):
        self.ferry, self.place, self.source_path = ferry, place, source_path
        self.job, self.marks, self.said = None, [], b""

    def position(self):
        """When it is now; to be overridden by those who care."""
        return 0

    def mark(self, name):
        """Notes an answer. The position is read after it was given, so it is never too early."""
        self.marks.append((self.position(), name))

    def acks(self, position=0):
        return Acks(self.job, [name for at, name in self.marks if at <= position])

    def copy(self, *words, before=()):
        copy = ["copy", self.source_path, self.place.target, "--chunk-size", "64KiB"]
        return self.begin(*copy, *self.place.words, *words, before=before)

    def resume(self):
        return self.begin("resume", self.job, "--region", self.place.region)

    def begin(self, *words, before=()):
        """Starts a copy or a resume, and waits to be told that it has started."""
        pipe = subprocess.PIPE
        process = self.ferry.start(*words, "--progress", "none", before=before, stderr=pipe)
        line = process.stderr.readline().split()
        if line[:1] == [b"job"]:
            self.job = line[1].decode().rstrip(":")
            self.mark("started")
        return process

    def end(self, process):
        """Waits for the end; exit code 0 is the acknowledgement of the commit."""
        self.said = process.stderr.read()
        code = process.wait()
        if code in (0, 4):
            self.mark({0: "committed", 4: "decided"}[code])
        return code

    def cancel(self, **options):
        self.mark("asked")
        words = ["cancel", self.job, "--region", self.place.region]
        code, said = self.ferry.run(*words, **options)
        self.note_cancel(said)
        return code, said

    def note_cancel(self, said):
        for name in ("decided", "clean"):
            if said.get(name):
                self.mark(name)
        if said.get("answer") == "already_committed":
            self.mark("committed")


def settle(ferry, place, source, acks, index_lost=False):
    """Runs `recover` on what a crash has left, twice, and judges it; returns what is wrong.

    Before and after: the image is absent or complete. Acknowledged commits are there, acknowledged
    cancels are neither visible nor resumable, acknowledged starts are not forgotten; what is told
    to be clean has no file; and the second `recover` finds nothing to do.
    """
    wrong = place.wrong(source)
    if "committed" in acks and not place.visible():
        wrong.append("an acknowledged commit is gone")
    if "clean" in acks and place.leftovers():
        wrong.append(f"a cancel was told to be clean, but there is {place.leftovers()}")
    code, first = ferry.run("recover", place.region)
    if code != 0:
        return [*wrong, f"recover: exit code {code}, {first}"]
    settled = {found["job"]: found["settled"] for found in first["recovered"]}
    kept = [job for job, how in settled.items() if how == "kept"]
    before = (place.visible(), sorted(place.staged()), place.leftovers())
    code, second = ferry.run("recover", place.region)
    after = (place.visible(), sorted(place.staged()), place.leftovers())
    if code != 0 or before != after:
        wrong.append(f"recover again: exit code {code}, {before} became {after}")
    if [found["job"] for found in second.get("recovered", [])] != kept:
        wrong.append(f"recover again found {second} where {kept} was kept")
    wrong += place.wrong(source)
    if sorted(place.staged()) != sorted(kept):
        wrong.append(f"stages {place.staged()} but kept {kept}")
    if not kept and place.leftovers():
        wrong.append(f"no job is staged, but there is {place.leftovers()}")
    if place.visible() and kept:
        wrong.append("the image is visible, and its job is staged all the same")
    return wrong + judge(ferry, place, acks, kept, settled, index_lost)


def judge(ferry, place, acks, kept, settled, index_lost):
    """Whether what `recover` made of it agrees with what the client was told, and the index too."""
    wrong = []
    if "committed" in acks and not place.visible():
        wrong.append("an acknowledged commit is gone after recover")
    if "decided" in acks and (place.visible() or kept):
        wrong.append(f"an acknowledged cancel is undone: visible {place.visible()}, kept {kept}")
    code, jobs = ferry.run("jobs")
    states = {job["job"]: job["state"] for job in jobs.get("jobs", [])}
    if code != 0:
        wrong.append(f"jobs: exit code {code}, {jobs}")
    if "started" in acks and not index_lost and acks.job not in states:
        wrong.append("an acknowledged start is not listed")
    if "started" in acks and "decided" not in acks:
        # Whoever asked for a cancel was not told yet: it may have been decided.
        undone = "asked" in acks and not place.visible()
        if not (place.visible() or acks.job in kept or undone):
            wrong.append(f"an acknowledged start is forgotten: settled {settled}")
    state = states.get(acks.job)
    # What the index never knew, since its start was not told, it need not learn by the cancel.
    known = "started" in acks and not index_lost
    if "decided" in acks and state != "rolled_back" and (known or state):
        wrong.append(f"a cancelled job is listed as {state}")
    if place.visible() and state not in (None, "committed"):
        wrong.append(f"the image is visible, and its job is listed as {state}")
    if not place.visible() and state == "committed":
        wrong.append("a job is listed as committed, and its image is not there")
    return wrong


def complete(ferry, place, source_path, source, rng):
    """Goes on from there: a job that was kept is resumed or cancelled, else a new copy is made.

    Returns what is wrong, and what the last command said.
    """
    region = ["--region", place.region]
    kept = place.staged()
    if place.visible():
        code, said = ferry.run("copy", source_path, place.target, *place.words)
        wrong = [] if code == 5 else [f"a copy over the image: exit code {code}, {said}"]
        if not place.plain:
            code, said = ferry.run("verify", place.target)
            wrong += [] if code == 0 else [f"verify: exit code {code}, {said}"]
        return wrong + place.wrong(source), said
    if kept and rng.random() < 0.3:
        code, said = ferry.run("cancel", kept[0], *region)
        if code != 0 or not said.get("clean") or place.leftovers() or place.visible():
            return [f"cancel: exit code {code}, {said}, left {place.leftovers()}"], said
        kept = []
    if kept:
        # A job's limits hold after a resume.
        ferry.run("limit", place.target, "--rate", "none")
        code, said = ferry.run("resume", kept[0], *region)
    else:
        copy = ["copy", source_path, place.target, "--chunk-size", "64KiB", *place.words]
        code, said = ferry.run(*copy)
    if code != 0 or said.get("outcome") != "committed":
        return [f"{'resume' if kept else 'copy anew'}: exit code {code}, {said}"], said
    if not place.visible() or place.leftovers():
        return [f"after the end: visible {place.visible()}, left {place.leftovers()}"], said
    return place.wrong(source), said
