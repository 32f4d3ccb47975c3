#!/usr/bin/env bash
# Proves that a source which changes under a read is never committed: see faults/source.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B faults/source.py
