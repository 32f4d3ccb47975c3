#!/usr/bin/env bash
# Proves that a file system may be shut down under a copy: see crash/shutdown.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B crash/shutdown.py
