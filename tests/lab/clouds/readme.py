"""The README's section "Behind a cloud API": its configuration starts, and its calls work as typed."""
import os
import re
import subprocess
import sys

from daemon import FERRY, WORK, Daemon, check, until

HERE = os.path.dirname(os.path.abspath(__file__))


def run():
    with open(os.path.join(HERE, "..", "..", "..", "README.md")) as file:
        section = file.read().split("## Behind a cloud API\n", 1)[1].split("\n## ", 1)[0]
    shell = section.split("```sh\n", 1)[1].split("```", 1)[0]
    code = section.split("```python\n", 1)[1].split("```", 1)[0]
    image = re.search(r"\bid=(\S+)", shell).group(1)
    root = os.path.join(WORK, "readme")
    for region in ("hz", "sh"):
        os.makedirs(os.path.join(root, region))
    raw = os.path.join(root, "raw")
    with open(raw, "wb") as file:
        file.write(os.urandom(1 << 20))
    subprocess.run([FERRY, "copy", raw, "dir://%s/hz/%s" % (root, image), "--state-dir", root + "/cli", "--progress", "none"],
                   check=True, stdout=subprocess.DEVNULL)
    config = shell.split("<<END\n", 1)[1].split("\nEND\n", 1)[0].replace("$PWD", root).replace("$id", image)
    daemon = Daemon.__new__(Daemon)
    daemon.root, daemon.config = root, os.path.join(root, "api.toml")
    with open(daemon.config, "w") as file:
        # The same on free ports.
        file.write(re.sub(r"(127\.0\.0\.1):\d+", r"\1:0", config))
    daemon.start()
    for (cloud, _), address in daemon.addresses.items():
        wanted = re.search(r'cloud = "%s".*?(127\.0\.0\.1:\d+)' % cloud, config).group(1)
        code = code.replace(wanted, address)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    check("README: its calls work as typed", told.returncode == 0 and len(told.stdout.splitlines()) == 3, told)
    count = lambda region: len([name for name in os.listdir(os.path.join(root, region)) if not name.startswith(".")])
    check("README: and their copies arrive", until("copies", lambda: (count("sh"), count("hz")) == (2, 2)),
          (count("sh"), count("hz")))
    check("README: its daemon ends in an orderly way", daemon.stop())
