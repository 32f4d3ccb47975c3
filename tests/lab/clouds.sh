#!/usr/bin/env bash
# Proves that the vendors' own SDKs get from `blockferry api` what they get from their clouds: see clouds/run.
exec "$(dirname "$0")/clouds/run"
