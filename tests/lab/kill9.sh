#!/usr/bin/env bash
# Proves that the process may be killed at any moment: see faults/kill9.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B faults/kill9.py
