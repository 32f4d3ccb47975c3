#!/usr/bin/env bash
# Proves on ext4 and XFS that power may fail at any moment: see crash/crash.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B crash/crash.py
