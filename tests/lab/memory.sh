#!/usr/bin/env bash
# Proves that a copy needs no more memory than it may, at any size: see memory/limit.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B memory/limit.py
