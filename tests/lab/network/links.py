"""Two hosts and what is between them: network namespaces, a veth pair, a rate, a relay."""

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

RELAY = Path(__file__).with_name("relay.py")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


class Missing(Exception):
    """What this machine lacks."""


class Host:
    """Where processes run: a network namespace, or this machine itself."""

    def __init__(self, name, address):
        self.name, self.address = name, address
        self.inside = ["ip", "netns", "exec", name] if name else []

    @contextlib.contextmanager
    def entered(self):
        """This thread's sockets are of that host meanwhile."""
        if not self.name:
            yield
            return
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            self.enter(there)
            yield
        finally:
            self.enter(home)
            os.close(there)
            os.close(home)

    @staticmethod
    def enter(namespace):
        if LIBC.setns(namespace, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"enter a network namespace: {os.strerror(code)}")


class Link:
    """Two hosts, `near` and `far`."""

    def __init__(self, near, far, devices=()):
        self.near, self.far, self.devices = near, far, devices

    def limit(self, bits_per_s):
        """What each of them may send a second, by a token bucket."""
        # A bucket holds what a tick of the kernel's clock lets pass, and its largest packets.
        burst = max(256 << 10, bits_per_s // 8 // 100)
        for host, device in self.devices:
            bucket = ["tbf", "rate", str(bits_per_s), "burst", str(burst), "latency", "50ms"]
            ip("tc", "-n", host.name, "qdisc", "replace", "dev", device, "root", *bucket)


@contextlib.contextmanager
def namespaces(tag=None):
    """Two network namespaces and a veth pair; raises `Missing` where there is no such thing."""
    tag = tag or os.getpid()
    near, far = Host(f"ferry-{tag}-a", "10.98.0.1"), Host(f"ferry-{tag}-b", "10.98.0.2")
    devices = [(near, "va"), (far, "vb")]
    try:
        for host in (near, far):
            ip("ip", "netns", "add", host.name)
        pair = ["add", "va", "netns", near.name, "type", "veth"]
        ip("ip", "link", *pair, "peer", "name", "vb", "netns", far.name)
        for host, device in devices:
            ip("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", device)
            for up in ("lo", device):
                ip("ip", "-n", host.name, "link", "set", up, "up")
        yield Link(near, far, devices)
    finally:
        for host in (near, far):
            subprocess.run(["ip", "netns", "del", host.name], stderr=subprocess.DEVNULL)


def loopback():
    """This machine as both hosts, and nothing between them."""
    return Link(Host(None, "127.0.0.1"), Host(None, "127.0.0.1"))


def ip(*words):
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise Missing(f"{words[0]} is not installed (Debian package iproute2)") from None
    if done.returncode:
        raise Missing(f"`{' '.join(words)}` fails: {done.stderr.strip()}")


class Relay:
    """A relay on that host, to an address and a port elsewhere."""

    def __init__(self, host, to, delay_s=0, bytes_per_s=0):
        at = "127.0.0.1:0"
        words = [sys.executable, "-B", str(RELAY), at, to, str(delay_s), str(bytes_per_s)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [*host.inside, *words], stdin=pipe, stdout=pipe, text=True, bufsize=1
        )
        self.port = int(self.process.stdout.readline().split()[1])

    def tell(self, *order):
        """Gives an order; returns how many connections there were."""
        print(*order, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline().split()[1])

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
