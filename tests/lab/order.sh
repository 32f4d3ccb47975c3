#!/usr/bin/env bash
# Proves that the order of system calls is the law's, whatever a file system makes of it: see faults/order.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B faults/order.py
