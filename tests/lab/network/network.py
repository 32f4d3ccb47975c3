#!/usr/bin/env python3
"""Proves that copies between two daemons keep their promises on a real network.

`blockferry serve` runs in one network namespace and `blockferry copy` in another; between them are
a veth pair with a rate and a relay with a delay, which cuts, resets and swallows what it is told
to. Images are pushed and pulled; either side is killed at random moments and the copy is resumed;
cancels from either side leave nothing; a thousand idle sockets, strangers and noise at the port
keep nobody out.

CYCLES of kills (default 24, long mode 2,000); SEED; LAB_SECONDS. FERRY names another binary to try.
"""

import contextlib
import filecmp
import os
import random
import re
import resource
import signal
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from daemons import (
    OPERATIONS, Authority, FarPlace, NetClient, NetFerry, Server, descriptors, policy, settled,
)
from lab import (
    REPO, Deadline, Ferry, Place, Tally, build, complete, dense, need, number, seed, settle, sparse,
    workspace,
)
from links import Missing, Relay, loopback, namespaces

SIDE_BY_SIDE = 4
RATE_BITS = 400_000_000
IDLE_COUNT = 1000


class Lab:
    def __init__(self, work, link):
        self.work, self.link = work, link
        self.binary, self.seed, self.tally = build(), seed(), Tally()
        self.cycles, self.deadline = number("CYCLES", 24, 2_000), Deadline()
        hosts = {"127.0.0.1", "localhost", link.far.address}
        self.authority = Authority(self.binary, work / "ca", sorted(hosts))
        for name in ("alpha", "beta", "narrow", "stranger"):
            self.authority.issue(name)
        self.policy = policy(
            work / "policy.toml", ("alpha", "", OPERATIONS), ("narrow", "n-", ["push"]),
        )
        rng = random.Random(self.seed)
        self.source, self.whole = work / "disk.raw", work / "dense.raw"
        sparse(self.source, (24 << 20) + 411, rng, 48)
        dense(self.whole, (32 << 20) + 5, rng)
        self.bytes, self.src = self.source.read_bytes(), work / "src"
        self.src.mkdir()
        code, said = Ferry(self.binary, work / "state").run(
            "copy", self.source, f"dir://{self.src}/m-0", "--chunk-size", "64KiB"
        )
        if code:
            raise OSError(f"no image to pull: {said}")
        self.kills, self.resumed, self.lock = {}, 0, threading.Lock()

    def serve(self, root):
        root.mkdir()
        roots = {"b": root, "src": self.src}
        return Server(self.binary, self.link.far, self.authority, self.policy, roots)

    def ferry(self, name="alpha", state="state", ca=None, authority=None):
        shown = (authority or self.authority).shown(name, ca)
        return NetFerry(self.binary, self.work / state, self.link.near, shown)

    def check(self, what, problems):
        self.tally.note(what, problems)
        if not problems:
            print(f"ok: {what}", flush=True)


class World:
    """A server, a relay to it, and a client of it."""

    def __init__(self, lab, name, delay_s=0.005):
        self.lab, self.root = lab, lab.work / name
        self.server = lab.serve(self.root)
        self.relay = Relay(lab.link.near, self.server.address, delay_s)
        self.ferry = lab.ferry(state=f"{name}.state")
        self.near_root = lab.work / f"{name}.near"
        self.near_root.mkdir()

    def url(self, region="b"):
        return f"ferrys://127.0.0.1:{self.relay.port}/{region}"

    def client(self, pushes=True):
        """Who pushes the sparse image to the server, or pulls it from there."""
        if pushes:
            return NetClient(self.ferry, FarPlace(self.root, self.url()), self.lab.source)
        place = Place(self.near_root, plain=False)
        return NetClient(self.ferry, place, self.url("src") + "/m-0")

    def close(self):
        self.relay.close()
        self.server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ended_well(client, code, source):
    wrong = [] if code == 0 else [f"exit code {code}: {client.said[-600:]}"]
    if code == 0 and not client.place.visible():
        wrong.append("nothing is there")
    if client.place.leftovers():
        wrong.append(f"there is {client.place.leftovers()}")
    return wrong + client.place.wrong(source)


# --- Copies, and a network that misbehaves


def there_and_back(lab):
    with World(lab, "plain", delay_s=0.02) as world:
        for image in (lab.source, lab.whole):
            far, back = f"{world.url()}/{image.stem}", world.near_root / image.name
            wrong = []
            for words in (["copy", image, far], ["copy", far, back]):
                code, said = world.ferry.run(*words)
                wrong += [] if code == 0 else [f"{words[1:]}: exit code {code}, {said}"]
            if not wrong and not filecmp.cmp(image, back, shallow=False):
                wrong.append("what came back differs")
            rate = f"{RATE_BITS // 1_000_000} Mb/s, " if lab.link.devices else ""
            lab.check(f"{image.name} is pushed, pulled back and equal ({rate}40 ms)", wrong)


def trouble(lab, what, pushes, disturb):
    """A copy on which something is done to the network or the server, and which ends well."""
    way = "push" if pushes else "pull"
    with World(lab, f"{disturb.__name__}-{way}") as world:
        client = world.client(pushes)
        process = client.copy("--rate", "12MiB/s")
        told = disturb(world, random.Random(f"{lab.seed} {disturb.__name__} {pushes}"))
        code = client.end(process)
        lab.check(f"{way}, {what.format(told)}", ended_well(client, code, lab.bytes))


def cut(world, rng):
    return misbehave(world, rng, "cut")


def reset(world, rng):
    return misbehave(world, rng, "reset")


def misbehave(world, rng, order):
    count = 0
    for _ in range(4):
        time.sleep(rng.uniform(0.05, 0.35))
        count += world.relay.tell(order)
    return count


def hole(world, rng):
    time.sleep(rng.uniform(0.1, 0.6))
    world.relay.tell("hole")
    time.sleep(3)
    world.relay.tell("mend")
    return 3


def long_hole(world, rng):
    """Longer than either side is patient: both give their connections up."""
    time.sleep(rng.uniform(0.1, 0.6))
    world.relay.tell("hole")
    time.sleep(75)
    world.relay.tell("reset")
    world.relay.tell("mend")
    return 75


def restart(world, rng):
    time.sleep(rng.uniform(0.3, 0.9))
    code = world.server.stop()
    world.server.start()
    return f"exit code {code}"


# --- Kills


def kill_cycle(lab, number):
    if lab.deadline.passed():
        return
    rng = random.Random(f"{lab.seed} {number}")
    pushes = number % 2 == 0
    with World(lab, f"kill-{number}", rng.choice([0, 0.002, 0.02])) as world:
        client = world.client(pushes)
        wrong = kill_again_and_again(lab, world, client, rng)
        wrong = wrong or settled(client.ferry, client.place)
        wrong = wrong or settle(client.ferry, client.place, lab.bytes, client.acks())
        if not wrong:
            source = lab.source if pushes else client.source_path
            wrong, said = complete(client.ferry, client.place, source, lab.bytes, rng)
            with lab.lock:
                lab.resumed += said.get("resumed_bytes", 0) > 0
        lab.tally.note(f"kill cycle {number}, {'push' if pushes else 'pull'}", wrong)
        for path in client.place.root.glob("*/data"):
            path.unlink()


def kill_again_and_again(lab, world, client, rng):
    slow = rng.random() < 0.5
    options = ["--token", "once", "--rate", "3MiB/s" if slow else "16MiB/s"]
    process = client.copy(*options)
    for _ in range(rng.randrange(1, 4)):
        time.sleep(rng.uniform(0, 2 if slow else 0.6))
        victim = rng.choice(["copy", "serve", "both"])
        with lab.lock:
            lab.kills[victim] = lab.kills.get(victim, 0) + (process.poll() is None)
        if victim != "copy":
            world.server.stop(signal.SIGKILL)
        if victim != "serve":
            process.kill()
        time.sleep(rng.choice([0, 0.2]))
        if victim != "copy":
            world.server.start()
        if victim == "serve" and rng.random() < 0.5:
            # It may go on by itself, and is left to its end.
            pass
        else:
            process.kill()
        code = client.end(process)
        if code not in (0, 1, -signal.SIGKILL):
            return [f"after {victim} was killed: exit code {code}"]
        if wrong := client.place.wrong(lab.bytes):
            return [f"after {victim} was killed: {problem}" for problem in wrong]
        if code == 0:
            return []
        if wrong := settled(client.ferry, client.place):
            return wrong
        process = client.resume() if client.job and rng.random() < 0.7 else client.copy(*options)
    process.kill()
    client.end(process)
    return []


# --- Cancels


def cancels(lab):
    for pushes in (True, False):
        for side in ("copying", "serving") if pushes else ("copying",):
            with World(lab, f"cancel-{side}-{pushes}") as world:
                way = "push" if pushes else "pull"
                wrong = cancel_from(lab, world, world.client(pushes), side)
                lab.check(f"{way} cancelled from the {side} side: nothing is left", wrong)


def cancel_from(lab, world, client, side):
    process = client.copy("--rate", "4MiB/s")
    time.sleep(0.6)
    ferry, region = world.ferry, client.place.region
    if side == "serving":
        # On that host the job is one like any other.
        ferry, region = Ferry(lab.binary, lab.work / "other.state"), f"dir://{world.root}"
    code, said = ferry.run("cancel", client.job, "--region", region)
    wrong = [] if code == 0 and said.get("clean") else [f"cancel: exit code {code}, {said}"]
    if client.place.visible() or client.place.leftovers():
        wrong.append(f"there is {client.place.leftovers()}")
    if (code := client.end(process)) != 4:
        wrong.append(f"the copy ends with exit code {code}")
    code, said = world.ferry.run("cancel", client.job, "--region", client.place.region)
    if code != 0 or said.get("answer") != "already_cancelled":
        wrong.append(f"cancel again: exit code {code}, {said}")
    return wrong


# --- Strangers


def idle_sockets(lab):
    with World(lab, "idle") as world, contextlib.ExitStack() as stack:
        client = world.client()
        process = client.copy("--rate", "8MiB/s")
        with lab.link.near.entered():
            address = (world.server.host.address, world.server.port)
            idle = [socket.create_connection(address) for _ in range(IDLE_COUNT)]
        for one in idle:
            stack.enter_context(one)
        # Somebody else comes while all of them are there.
        code, said = world.ferry.run("copy", lab.whole, f"{world.url()}/other")
        wrong = [] if code == 0 else [f"another copy: exit code {code}, {said}"]
        open_now = descriptors(world.server.process.pid)
        code = client.end(process)
        lab.check(
            f"{len(idle)} idle sockets while two copies run ({open_now} descriptors in the server)",
            wrong + ended_well(client, code, lab.bytes),
        )


def strangers(lab):
    other = Authority(lab.binary, lab.work / "other-ca")
    other.issue("alpha")
    lab.authority.issue_expired("late", "alpha")
    lab.authority.issue_expired("late-beta", "beta")
    with World(lab, "strangers") as world:
        image = "n-1"
        cases = [
            ("our certificate is of another authority", other, "alpha", lab.authority, "denied"),
            ("we trust another authority", lab.authority, "alpha", other, "denied"),
            ("our certificate has expired", lab.authority, "late", None, "denied"),
            ("the policy does not name us", lab.authority, "stranger", None, "denied"),
            ("the policy grants other images", lab.authority, "narrow", None, "denied"),
        ]
        for what, authority, name, ca, kind in cases:
            image = "x-1" if name == "narrow" else "n-1"
            ferry = lab.ferry(name, "strange.state", ca, authority)
            refused(lab, world, what, ferry, f"{world.url()}/{image}", kind)
        bare = lab.ferry(state="strange.state")
        for variable in ("CERT", "KEY", "CA"):
            del bare.environ[f"BLOCKFERRY_{variable}"]
        refused(lab, world, "we have no certificate", bare, f"{world.url()}/n-1", "invalid", 2)
        at_the_port(lab, world)
    expired_server(lab)
    something_else(lab)


def expired_server(lab):
    """It does not even start."""
    at = lab.authority.folder
    serve = ["serve", "--listen", "127.0.0.1:0", "--root", f"b={lab.src}", "--policy", lab.policy]
    serve += ["--client-ca", at / "ca.pem", "--cert", at / "late-beta.pem"]
    serve += ["--key", at / "late-beta.key"]
    code, said = Ferry(lab.binary, lab.work / "strange.state").run(*serve)
    error = said.get("error") or {}
    wrong = [] if code == 1 and error.get("kind") == "denied" else [f"exit code {code}, {said}"]
    lab.check(f"serving with an expired certificate: {error.get('message')}", wrong)


def refused(lab, world, what, ferry, target, kind, exit_code=1):
    """The command is refused, in one line that says why; and the server goes on."""
    code, said = ferry.run("copy", lab.source, target)
    error = said.get("error") or {}
    wrong = [] if code == exit_code else [f"exit code {code}: {said}"]
    if error.get("kind") != kind or "\n" in error.get("message", "\n"):
        wrong.append(f"error {error}")
    if world and not wrong:
        wrong = still_serves(lab, world)
    lab.check(f"{what}: {error.get('message')}", wrong)


def still_serves(lab, world):
    if not world.server.lives():
        return ["the server has ended"]
    code, said = world.ferry.run("digest", f"{world.url('src')}/m-0", "--root-only")
    return [] if code == 0 else [f"the server does not serve: exit code {code}, {said}"]


def at_the_port(lab, world):
    """What is no peer is hung up on."""
    noise = random.Random(lab.seed)
    http = b"GET / HTTP/1.1\r\nHost: beta\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n"
    with lab.link.near.entered():
        address = (world.server.host.address, world.server.port)
        spoken = {
            "plain HTTP": plainly(address, http),
            "random bytes": plainly(address, noise.randbytes(1 << 16)),
            "a TLS record that is never finished": plainly(address, b"\x16\x03\x01\x40\x00\x01"),
            "TLS without a certificate": in_tls(lab, address, None, b""),
            "TLS with an expired one": in_tls(lab, address, "late", b""),
            "TLS 1.2": in_tls(lab, address, "alpha", b"", ssl.TLSVersion.TLSv1_2),
            "plain HTTP inside TLS": in_tls(lab, address, "alpha", http),
            "random bytes inside TLS": in_tls(lab, address, "alpha", noise.randbytes(1 << 20)),
        }
    for what, told in spoken.items():
        wrong = still_serves(lab, world)
        if told is None:
            wrong.append("it is not hung up on within 15 s")
        lab.check(f"{what} at the port: {told}", wrong)


def plainly(address, words):
    """What becomes of a connection on which that is said; `None`: it is left open."""
    with socket.create_connection(address, timeout=15) as sock:
        return answer(sock, words)


def in_tls(lab, address, name, words, version=ssl.TLSVersion.TLSv1_3):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version, context.minimum_version = version, ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(lab.authority.folder / "ca.pem")
    if name:
        folder = lab.authority.folder
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    with socket.create_connection(address, timeout=15) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=address[0]) as stream:
                return answer(stream, words)
        except ssl.SSLError as error:
            return f"refused, {error.reason}"
        except OSError as error:
            return f"hung up, {error.strerror}"


def answer(sock, words):
    said, began = 0, time.monotonic()
    try:
        sock.sendall(words)
        while piece := sock.recv(1 << 16):
            said += len(piece)
    except TimeoutError:
        return None
    except ssl.SSLError as error:
        return f"{said} bytes, then refused, {error.reason or error}"
    except OSError as error:
        return f"{said} bytes, then hung up on, {error.strerror}"
    return f"{said} bytes, then hung up on after {time.monotonic() - began:.1f} s"


def something_else(lab):
    """What answers at the port is no daemon of ours, or none that may still do so."""
    late = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = lab.authority.folder
    late.load_cert_chain(folder / "late-beta.pem", folder / "late-beta.key")
    cases = [
        ("they speak plain HTTP", None, b"HTTP/1.1 400 Bad Request\r\n\r\n", "unsupported"),
        ("they speak noise", None, b"\x07" * 99, "unsupported"),
        ("their certificate has expired", late, b"", "denied"),
    ]
    for what, context, words, kind in cases:
        with lab.link.near.entered():
            listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=answer_all, args=(listener, context, words), daemon=True)
        thread.start()
        url = f"ferrys://127.0.0.1:{listener.getsockname()[1]}/b/m-1"
        refused(lab, None, what, lab.ferry(state="strange.state"), url, kind)
        listener.close()


def answer_all(listener, context, words):
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(OSError):
                stream = context.wrap_socket(sock, server_side=True) if context else sock
                stream.sendall(words)
                stream.recv(1 << 16)


# --- The front page


def readme(lab):
    """What README shows works as it is typed; its port is free in a namespace of our own."""
    if not lab.link.devices:
        print("skipped: README as typed, for its port may be taken outside of a namespace")
        return
    text = (REPO / "README.md").read_text()
    block = re.search(r"```sh\n(blockferry cert init .*?)```", text, re.S).group(1)
    folder = lab.work / "readme"
    (folder / "region-b").mkdir(parents=True)
    os.link(lab.source, folder / "disk.raw")
    os.symlink(lab.binary, folder / "blockferry")
    ended = "trap 'kill $(jobs -p); wait' EXIT"
    script = f"set -e; {ended}\n{block}\ncmp disk.raw back.raw"
    environ = {"BLOCKFERRY_STATE_DIR": str(folder / "state")}
    environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        [*lab.link.far.inside, "bash", "-c", script], cwd=folder, capture_output=True, text=True,
        env=os.environ | environ, timeout=60,
    )
    wrong = [] if done.returncode == 0 else [done.stderr[-2000:]]
    if not (folder / "back.raw").exists():
        wrong.append("nothing came back")
    lab.check("README as typed, there and back", wrong)


def everything(lab):
    link = "two network namespaces" if lab.link.devices else "loopback"
    print(f"network: {link}, {lab.cycles} cycles of kills, SEED={lab.seed}", flush=True)
    there_and_back(lab)
    readme(lab)
    disturbances = [
        ("cut four times in the middle ({} connections)", cut),
        ("reset four times ({} connections)", reset),
        ("swallowed for {} s", hole),
        ("the server stopped ({}) and started", restart),
    ]
    if os.environ.get("LAB_LONG"):
        disturbances.append(("swallowed for {} s, then reset", long_hole))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        done = [
            pool.submit(trouble, lab, what, pushes, disturb)
            for what, disturb in disturbances
            for pushes in (True, False)
        ]
        done += [pool.submit(kill_cycle, lab, number) for number in range(lab.cycles)]
        for one in done:
            one.result()
    cancels(lab)
    idle_sockets(lab)
    strangers(lab)
    kills = ", ".join(f"{count} of {who}" for who, count in sorted(lab.kills.items()))
    return (
        f"network: {sum(lab.kills.values())} kills ({kills}),"
        f" {lab.resumed} resumes that went on from a checkpoint"
    )


def main():
    need("openssl", "openssl")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    with contextlib.ExitStack() as stack:
        try:
            link = stack.enter_context(namespaces())
            link.limit(RATE_BITS)
        except Missing as why:
            print(f"skipped: two network namespaces with a rate; loopback instead: {why}")
            if os.environ.get("BLOCKFERRY_REQUIRE_ALL"):
                raise SystemExit(1) from None
            link = loopback()
        lab = Lab(stack.enter_context(workspace()), link)
        summary = everything(lab)
    lab.tally.finish(summary)


if __name__ == "__main__":
    main()
