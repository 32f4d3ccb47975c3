"""The daemon under test: its regions, its configuration, its life and death; and how checks are told."""
import atexit
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request

FERRY = os.environ["FERRY"]
WORK = os.environ["WORK"]
MIB = 1 << 20

passed, failures = 0, []


def check(name, so, seen=None):
    """Prints one line; what is not so is shown with what was seen."""
    global passed
    if so:
        passed += 1
        print("ok      %s" % name, flush=True)
    else:
        failures.append(name)
        print("FAILED  %s%s" % (name, "" if seen is None else ": %r" % (seen,)), flush=True)


def until(what, so, patience=60):
    """Waits until `so()`, and says whether it came to pass."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if so():
            return True
        time.sleep(0.02)
    print("        gave up waiting: %s" % what, flush=True)
    return False


def run(*args):
    """The command, which must succeed."""
    ended = subprocess.run([FERRY, *args], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit("%s: %s" % (" ".join(args), ended.stderr))


class Daemon:
    """`blockferry api` over directory regions, unless `locations` says otherwise, with a state folder that outlives it.

    `top` are further lines of its configuration."""

    def __init__(self, name, regions, images, keys, listeners, sizes={}, locations={}, top=[]):
        self.root = os.path.join(WORK, name)
        self.regions = regions
        os.makedirs(os.path.join(self.root, "state"), mode=0o700)
        for region in regions:
            os.mkdir(self.dir(region))
        self.events = os.path.join(self.root, "events")
        out = ["state_dir = %s" % json.dumps(os.path.join(self.root, "state"))]
        out += ['admin = "127.0.0.1:0"', "share_extents = false", "events_file = %s" % json.dumps(self.events),
                "events_socket = %s" % json.dumps(os.path.join(self.root, "socket")), *top]
        for region, fields in regions.items():
            location = locations.get(region, "dir://" + self.dir(region))
            out += ["[[region]]", 'name = "%s"' % region, 'location = "%s"' % location, fields]
        for key, fields in keys.items():
            out += ["[[key]]", 'id = "%s"' % key, fields]
        for fields in listeners:
            out += ["[[listen]]", 'address = "127.0.0.1:0"', fields]
        self.sources(images, sizes)
        for (region, image), fields in images.items():
            out += ["[[image]]", 'region = "%s"' % region, 'id = "%s"' % image, fields]
        self.config = os.path.join(self.root, "api.toml")
        with open(self.config, "w") as file:
            file.write("\n".join(out) + "\n")
        self.start()

    def dir(self, region):
        return os.path.join(self.root, "region-" + region)

    def data(self, region, image):
        with open(os.path.join(self.dir(region), image, "data"), "rb") as file:
            return file.read()

    def read(self, image, *more):
        """The bytes of an image, by the command, whatever region and key it is under."""
        raw = os.path.join(self.root, "read")
        run("copy", image, raw, "--state-dir", os.path.join(self.root, "cli"), "--progress", "none", *more)
        with open(raw, "rb") as file:
            data = file.read()
        os.remove(raw)
        return data

    def sources(self, images, sizes):
        """Source images: one is copied in from a file, the others of its size are made like it.

        Most have several strips of 4 MiB, so that a copy of one is seen on its way."""
        first = {}
        for (region, image), fields in images.items():
            size = sizes.get(image, 64 << 10 if "small" in image else 48 * MIB)
            place = os.path.join(self.dir(region), image)
            if size not in first:
                raw = os.path.join(self.root, "raw")
                with open(raw, "wb") as file:
                    file.write(os.urandom(size))
                state = os.path.join(self.root, "cli")
                run("copy", raw, "dir://" + place, "--state-dir", state, "--progress", "none")
                first[size] = place
            else:
                shutil.copytree(first[size], place)

    def start(self):
        self.log = open(os.path.join(self.root, "log"), "ab")
        self.process = subprocess.Popen([FERRY, "api", "--config", self.config, "--json"],
                                        stdout=subprocess.PIPE, stderr=self.log)
        # None may outlive the script, however that ends.
        atexit.register(self.process.kill)
        line = self.process.stdout.readline()
        told = json.loads(line) if line else {}
        if not told.get("listening"):
            with open(os.path.join(self.root, "log")) as file:
                raise SystemExit("the daemon does not start: %r\n%s" % (line, file.read()))
        self.admin = told["admin"]
        self.addresses = {(entry["cloud"], entry["region"]): entry["address"] for entry in told["listening"]}

    def at(self, cloud, region=None):
        return self.addresses[cloud, region]

    def kill(self):
        """As a crash."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """In an orderly way; says whether it ended so."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=90)
        return self.process.returncode == 0 and json.loads(out.splitlines()[-1])["ended"]

    def get(self, path):
        with urllib.request.urlopen("http://%s%s" % (self.admin, path), timeout=30) as answer:
            return answer.read().decode()

    def images(self, region):
        """What lies in a region: committed images, and anything of a copy that is not done."""
        stage = os.path.join(self.dir(region), ".blockferry", "stage")
        staged = os.listdir(stage) if os.path.isdir(stage) else []
        return sorted(n for n in os.listdir(self.dir(region)) if not n.startswith(".")), staged

    def told(self):
        with open(self.events) as file:
            return [json.loads(line) for line in file]
