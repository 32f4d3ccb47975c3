#!/usr/bin/env bash
# Proves that a disk that hangs cannot keep a cancel from being decided: see faults/hung.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B faults/hung.py
