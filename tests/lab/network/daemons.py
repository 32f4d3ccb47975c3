"""A daemon that serves, one that copies, the certificates they show, and those they should not."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from lab import Client, Ferry, Place

OPERATIONS = ["push", "pull", "list", "cancel", "remove", "control", "recover"]


class Authority:
    """A private authority, by `blockferry cert`, and what it has issued."""

    def __init__(self, binary, folder, hosts=()):
        self.binary, self.folder, self.hosts = binary, Path(folder), hosts
        self.cert("init", folder)

    def cert(self, *words):
        subprocess.run([self.binary, "cert", *map(str, words)], check=True, capture_output=True)

    def issue(self, name):
        hosts = [word for host in self.hosts for word in ("--host", host)]
        self.cert("issue", self.folder, name, *hosts)

    def shown(self, name, ca=None):
        """What a client with that certificate has in its environment."""
        return {
            "BLOCKFERRY_CERT": str(self.folder / f"{name}.pem"),
            "BLOCKFERRY_KEY": str(self.folder / f"{name}.key"),
            "BLOCKFERRY_CA": str((ca or self).folder / "ca.pem"),
        }

    def issue_expired(self, name, identity):
        """A certificate that was good for a month in 2020; `blockferry cert` makes none."""
        at, config = self.folder / f"{name}.d", self.folder / f"{name}.cnf"
        at.mkdir()
        (at / "index").touch()
        config.write_text(
            f"[ca]\ndefault_ca=it\n[it]\ndatabase={at}/index\nnew_certs_dir={at}\nserial={at}/no\n"
            f"rand_serial=yes\ndefault_md=sha256\npolicy=any\ncertificate={self.folder}/ca.pem\n"
            f"private_key={self.folder}/ca.key\nx509_extensions=leaf\n[any]\ncommonName=optional\n"
            f"[leaf]\nsubjectAltName=URI:blockferry:{identity},IP:127.0.0.1\n"
            "extendedKeyUsage=clientAuth,serverAuth\nkeyUsage=digitalSignature\n"
            "basicConstraints=CA:FALSE\n[req]\ndistinguished_name=dn\n[dn]\n"
        )
        key, pem = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        new = f"req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN={name}"
        self.openssl(*new.split(), "-config", config, "-keyout", key, "-out", at / "csr")
        dates = "-startdate 20200101000000Z -enddate 20200201000000Z -notext -batch".split()
        self.openssl("ca", "-config", config, *dates, "-in", at / "csr", "-out", pem)

    @staticmethod
    def openssl(*words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class Server:
    """`blockferry serve` on a host, at a port that it keeps when it is started again."""

    def __init__(self, binary, host, authority, policy, roots, name="beta"):
        words = ["serve", "--json", "--policy", str(policy)]
        words += ["--client-ca", str(authority.folder / "ca.pem")]
        words += ["--cert", str(authority.folder / f"{name}.pem")]
        words += ["--key", str(authority.folder / f"{name}.key")]
        for root_name, path in roots.items():
            words += ["--root", f"{root_name}={path}"]
        self.command, self.host, self.port, self.process = [binary, *words], host, 0, None
        self.start()

    @property
    def address(self):
        return f"{self.host.address}:{self.port}"

    def start(self):
        listen = ["--listen", self.address]
        self.process = subprocess.Popen(
            [*self.host.inside, *self.command, *listen], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"the server does not listen: exit code {self.process.wait()}")
        self.port = int(json.loads(line)["listening"][0].rsplit(":", 1)[1])

    def stop(self, how=signal.SIGTERM):
        """Ends it; gives its exit code."""
        self.process.send_signal(how)
        code = self.process.wait()
        self.process.stdout.close()
        return code

    def lives(self):
        return self.process.poll() is None

    def close(self):
        if self.lives():
            self.stop(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def policy(path, *peers):
    """A policy file: identity, prefix of the images, operations."""
    text = ""
    for identity, prefix, operations in peers:
        text += f'[[peer]]\nidentity = "{identity}"\nconnections_max = 64\n[[peer.grant]]\n'
        text += f"operations = {json.dumps(operations)}\nregions = [\"b\", \"src\"]\n"
        text += f'image_prefix = "{prefix}"\n' if prefix else ""
    path.write_text(text)
    return path


class NetFerry(Ferry):
    """The command on a host, with certificates."""

    def __init__(self, binary, state, host, shown):
        super().__init__(binary, state)
        self.inside, self.environ = host.inside, self.environ | shown

    def start(self, *words, before=(), **popen):
        return super().start(*words, before=[*self.inside, *before], **popen)


class FarPlace(Place):
    """An image of a region that a daemon serves, of whose files we see what is left."""

    def __init__(self, root, url):
        super().__init__(root, plain=False)
        self.region, self.target = url, f"{url}/m-1"


class NetClient(Client):
    """One whose copy may hang for want of the other side: then it is ended, and told of."""

    def end(self, process, seconds=90):
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            super().end(process)
            return "hung"
        return super().end(process)


def settled(ferry, place, seconds=10):
    """Waits until nobody works on what is staged: the other side may be about to hear of an end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        code, jobs = ferry.run("jobs", place.region)
        if code == 0 and not any(job.get("running") for job in jobs["jobs"]):
            return []
        time.sleep(0.05)
    return [f"after {seconds} s the stage is still owned: {jobs}"]


def descriptors(pid):
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0
