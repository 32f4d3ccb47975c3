#!/usr/bin/env bash
# Proves that copies between daemons keep their promises on a real network: network/network.py.
cd "$(dirname "$0")" && PYTHONPATH=. exec python3 -B network/network.py
