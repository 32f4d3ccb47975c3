"""Who takes part in `run --wire`: a side that serves, and one that copies, of each tool."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from typing import Callable

import inputs
import measure

MIB = 1 << 20
PLAIN = "--compression=none"
TICKS = os.sysconf("SC_CLK_TCK")


# --- Serving sides


class Serving:
    """A process that serves, and what it has used."""

    def __init__(self, command, port=None, ready=None):
        pipe = subprocess.PIPE if ready else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        self.port = ready(self.process.stdout.readline()) if ready else port
        self.peak_kib, self.used, self.stopped = 0, {}, threading.Event()
        self.watcher = threading.Thread(target=self.watch)
        if not ready:
            self.wait_for_port()
        self.watcher.start()

    def wait_for_port(self):
        until = time.monotonic() + 10
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", self.port)).close()
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise inputs.Missing(f"{self.process.args[0]} does not listen")

    def members(self):
        """It and its children, of which `rsync` has one a connection."""
        found, at = [self.process.pid], 0
        while at < len(found):
            with contextlib.suppress(OSError):
                with open(f"/proc/{found[at]}/task/{found[at]}/children") as file:
                    found += map(int, file.read().split())
            at += 1
        return found

    def watch(self):
        while not self.stopped.wait(0.02):
            members = self.members()
            self.peak_kib = max(self.peak_kib, sum(map(anonymous_kib, members)))
            self.used |= {pid: ticks(pid) or self.used.get(pid, 0) for pid in members}

    def cpu_s(self):
        """Of the process and of its children, also of those that it never waits for."""
        used = self.used | {pid: ticks(pid) for pid in self.members()}
        return sum(used.values()) / TICKS

    def close(self):
        self.stopped.set()
        self.watcher.join()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def ticks(pid):
    """Of processor time, its own and none of its children's."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13]))
    return 0


def anonymous_kib(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# --- Who takes part


@dataclasses.dataclass(frozen=True)
class Contestant:
    """`serve` starts the serving side; `command` is told the port at which to reach it."""

    name: str
    serve: Callable
    command: Callable
    result: str | None
    kind: str = "peer"
    prepare: Callable = lambda: None


PACKAGES = {
    "nbdcopy": "libnbd-bin", "nbdkit": "nbdkit", "qemu-img": "qemu-utils", "rsync": "rsync",
    "openssl": "openssl",
}
# Whose serving side, or certificates, are another tool's.
NEEDS = {"nbdcopy": ["nbdcopy", "nbdkit", "openssl"], "qemu-img": ["qemu-img", "nbdkit", "openssl"]}


def why_not(one):
    """Why it cannot take part on this machine; `None` where it can."""
    if one.kind != "peer":
        return None
    name = one.name.split()[0]
    missing = [tool for tool in NEEDS.get(name, [name]) if not shutil.which(tool)]
    told = [f"{tool} is not installed (Debian package {PACKAGES[tool]})" for tool in missing]
    return ", ".join(told) or None


def gnutls_certificates(folder):
    """An authority and two certificates as nbdkit and qemu-img want them: they insist on a use of
    the key that TLS 1.3 has none for, which `blockferry cert` does not grant."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2".split()
    at = {name: f"{folder}/{name}.pem" for name in ("ca-cert", "ca-key")}

    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True)

    ca = ["-addext", "keyUsage=keyCertSign", "-subj", "/CN=ca"]
    openssl("req", "-x509", *key, *ca, "-keyout", at["ca-key"], "-out", at["ca-cert"])
    for name in ("server", "client"):
        leaf = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        leaf += ["-addext", "keyUsage=digitalSignature,keyEncipherment"]
        leaf += ["-addext", "basicConstraints=CA:FALSE", "-CA", at["ca-cert"]]
        files = ["-keyout", f"{folder}/{name}-key.pem", "-out", f"{folder}/{name}-cert.pem"]
        openssl("req", "-x509", *key, *leaf, "-CAkey", at["ca-key"], *files)


class Bench:
    """Where everything lies, and the certificates."""

    def __init__(self, options, place, folder):
        self.options, self.place, self.folder = options, place, folder
        self.ca = os.path.join(folder, "ca")
        for words in (["init", self.ca], ["issue", self.ca, "alpha"], ["issue", self.ca, "beta"]):
            subprocess.run([options.blockferry, "cert", *words], check=True, capture_output=True)
        self.policy = os.path.join(folder, "policy.toml")
        with open(self.policy, "w") as file:
            file.write(
                '[[peer]]\nidentity = "alpha"\n[[peer.grant]]\nregions = ["b", "src"]\n'
                'operations = ["push", "pull", "list", "cancel", "control"]\n'
            )
        # Those who need them are left out, and say so.
        if shutil.which("openssl"):
            gnutls_certificates(folder)

    def files(self, name):
        return [f"{self.ca}/{name}.pem", f"{self.ca}/{name}.key", f"{self.ca}/ca.pem"]

    def contestants(self, image, whose):
        """Those that take part, and pairs of who is left out and why."""
        to = self.place.destination
        file, pulled = f"{to}/copy.raw", f"{to}/pulled.raw"
        found = [*self.ferries(image, file)]
        if whose == "floor":
            plain = [*self.ferries(image, file, [PLAIN])]
            return [one for pair in zip(found, plain) for one in pair], []
        if whose == "all":
            found += [*self.pumps(image, file)]
        found += [*self.nbd(image, pulled), *self.rsyncs(image, pulled)]
        whys = [(one, why_not(one)) for one in found]
        left_out = [(one.name, why) for one, why in whys if why]
        return [one for one, why in whys if not why], left_out

    def ferries(self, image, file, more=()):
        cert, key, ca = self.files("alpha")
        shown = ["--cert", cert, "--key", key, "--ca", ca, *more, "--progress", "none", "--json"]
        region = f"{self.place.destination}/region"
        words = [self.options.blockferry, "serve", "--json", "--listen", "127.0.0.1:0"]
        cert, key, ca = self.files("beta")
        words += ["--cert", cert, "--key", key, "--client-ca", ca, "--policy", self.policy]
        words += ["--root", f"b={region}", "--root", f"src={self.place.folder}/src"]

        def serve():
            os.makedirs(region, exist_ok=True)
            return Serving(words, ready=lambda line: int(address_of(line).rsplit(":", 1)[1]))

        def copy(source, target):
            state = ["--state-dir", f"{self.place.destination}/state"]
            return [self.options.blockferry, "copy", source, target, *state, *shown]

        suffix = "".join(f" {word}" for word in more)
        yield Contestant(
            f"blockferry copy, push{suffix}", serve,
            lambda port: copy(image.path, f"ferrys://127.0.0.1:{port}/b/image"),
            f"{region}/image/data", "ferry",
        )
        yield Contestant(
            f"blockferry copy, pull{suffix}", serve,
            lambda port: copy(f"ferrys://127.0.0.1:{port}/src/image", file), file, "ferry",
        )

    def pumps(self, image, file):
        cert, key, ca = self.files("beta")

        def take(sink):
            words = [self.options.pump, "take", cert, key, ca, sink]
            return lambda: Serving(words, ready=lambda line: int(line.rsplit(":", 1)[1]))

        def send(source):
            own = self.files("alpha")
            return lambda port: [self.options.pump, "send", *own, f"127.0.0.1:{port}", source]

        nothing = f"-:{image.size // MIB}"
        yield Contestant("limit: TLS, memory to nowhere", take("-"), send(nothing), None, "limit")
        yield Contestant("limit: TLS, file to file", take(file), send(image.path), file, "limit")

    def nbd(self, image, file):
        tls = ["--tls=require", f"--tls-certificates={self.folder}", "--tls-verify-peer"]

        def serve(path, *more):
            def started():
                port = free_port()
                words = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), *tls, *more]
                return Serving([*words, "file", path], port)
            return started

        def sized():
            with open(file, "wb") as made:
                made.truncate(image.size)

        url = f"nbds://127.0.0.1:%d/?tls-certificates={self.folder}"
        flags = ["--flush", *([] if image.is_dense else ["--destination-is-zero"])]
        yield Contestant(
            "nbdcopy --flush, pull from nbdkit over TLS", serve(image.path, "-r"),
            lambda port: ["nbdcopy", *flags, url % port, file], file, prepare=sized,
        )
        yield Contestant(
            "nbdcopy --flush, push to nbdkit over TLS", serve(file),
            lambda port: ["nbdcopy", *flags, image.path, url % port], file, prepare=sized,
        )
        tls_object = f"tls-creds-x509,id=tls,endpoint=client,dir={self.folder}"
        server = "driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1"
        convert = "qemu-img convert -n -W -m 16 -t writeback -O raw".split()
        convert += ["--object", tls_object, "--image-opts"]
        convert += ["-S", "0"] if image.is_dense else ["--target-is-zero"]
        yield Contestant(
            "qemu-img convert -W -m 16, pull from nbdkit over TLS", serve(image.path, "-r"),
            lambda port: [*convert, f"{server},file.server.port={port},file.tls-creds=tls", file],
            file, prepare=sized,
        )

    def rsyncs(self, image, file):
        source = os.path.join(self.place.folder, "rsync")
        os.makedirs(source, exist_ok=True)
        if not os.path.exists(f"{source}/image"):
            os.link(image.path, f"{source}/image")
        config = os.path.join(self.folder, "rsyncd.conf")
        with open(config, "w") as made:
            made.write(f"use chroot = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n")
            made.write(f"[src]\npath = {source}\n")

        def serve():
            port = free_port()
            words = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={port}"]
            return Serving([*words, "--address=127.0.0.1"], port)

        sparse = [] if image.is_dense else ["--sparse"]
        packed = [] if image.is_dense else [["--compress", "--compress-choice=zstd"]]
        for more in [[], *packed]:
            words = ["rsync", "--whole-file", *sparse, *more]
            told = " ".join(words)
            yield Contestant(
                f"{told}, pull from its daemon, not encrypted", serve,
                lambda port, words=words: [*words, f"rsync://127.0.0.1:{port}/src/image", file],
                file,
            )


def address_of(line):
    return json.loads(line)["listening"][0]
