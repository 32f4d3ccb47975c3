"""Runs the scenarios that are asked for, of each cloud and of what all have: one line a check."""
import sys

import daemon

CLOUDS = ["alibaba", "baidu", "huawei", "encryption", "store", "readme"]

for cloud in sys.argv[1:] or CLOUDS:
    __import__(cloud).run()
print("%d passed, %d failed" % (daemon.passed, len(daemon.failures)))
sys.exit(1 if daemon.failures else 0)
