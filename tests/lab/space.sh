#!/usr/bin/env bash
# Proves that a full file system costs nothing but time: see faults/space.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B faults/space.py
