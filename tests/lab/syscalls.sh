#!/usr/bin/env bash
# Proves that any system call may fail, or be the last one: see faults/syscalls.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B faults/syscalls.py
