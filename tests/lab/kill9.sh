#!/usr/bin/env bash
# Kills the real process with SIGKILL at random moments, resumes to the end, and compares with cmp.
# CYCLES (default 25) and SEED may be set; the seed is printed, so that a failure can be repeated.
set -euo pipefail
cd "$(dirname "$0")/../.."
cycles=${CYCLES:-25} seed=${SEED:-$RANDOM}
RANDOM=$seed
echo "kill9: $cycles cycles, SEED=$seed"
cargo build --quiet --release --locked --features cli
ferry=$(realpath "${CARGO_TARGET_DIR:-target}")/release/blockferry
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export BLOCKFERRY_STATE_DIR=$work/state
mkdir "$work/region"

# Data with holes: 96 MiB of noise in a 400 MiB image whose size is a multiple of nothing.
truncate -s 419430411 "$work/disk.raw"
for part in 0 1 2 3 4 5; do
    head -c 16777216 /dev/urandom |
        dd of="$work/disk.raw" bs=1M seek=$((part * 70)) conv=notrunc status=none
done
before=$(stat -c '%Y %s %i' "$work/disk.raw") sum=$(b3sum --no-names "$work/disk.raw")

field() { python3 -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
# Bash reports a killed child on stderr; that is what is wanted here.
kills=0 resumed=0 finished=0
for cycle in $(seq "$cycles"); do
    target=dir://$work/region/m-$cycle
    "$ferry" copy "$work/disk.raw" "$target" --rate 40MiB/s --chunk-size 1MiB \
        --token "cycle-$cycle" --progress none >/dev/null 2>&1 &
    while :; do
        sleep "$((RANDOM % 2)).$(printf '%03d' $((RANDOM % 1000)))"
        if kill -9 $! 2>/dev/null; then kills=$((kills + 1)); fi
        wait $! 2>/dev/null || true
        # Nothing half done is ever visible.
        if [ -e "$work/region/m-$cycle" ]; then
            cmp "$work/disk.raw" "$work/region/m-$cycle/data"
        fi
        job=$("$ferry" jobs --json | python3 -c '
import json, sys
jobs = [j for j in json.load(sys.stdin)["jobs"] if j["destination"] == sys.argv[1]]
print(jobs[0]["job"] if jobs else "")' "$target")
        # Killed before start was acknowledged: the same token starts it.
        [ -n "$job" ] || { "$ferry" copy "$work/disk.raw" "$target" --token "cycle-$cycle" \
            --rate 40MiB/s --chunk-size 1MiB --json >"$work/out"; break; }
        if [ $((RANDOM % 3)) -eq 0 ]; then
            "$ferry" resume "$job" --progress none >/dev/null 2>&1 &
            continue
        fi
        "$ferry" resume "$job" --json >"$work/out" || { cat "$work/out"; exit 1; }
        break
    done
    [ "$(field outcome <"$work/out")" = committed ]
    [ "$(field resumed_bytes <"$work/out")" = 0 ] || resumed=$((resumed + 1))
    cmp "$work/disk.raw" "$work/region/m-$cycle/data"
    [ "$(find "$work/region/.blockferry" -type f | wc -l)" = 0 ]
    rm -rf "$work/region/m-$cycle"
    finished=$((finished + 1))
done
[ "$(stat -c '%Y %s %i' "$work/disk.raw")" = "$before" ]
[ "$(b3sum --no-names "$work/disk.raw")" = "$sum" ]
echo "kill9: $kills kills, $resumed resumes that went on from a checkpoint, source untouched"
echo "$finished passed, 0 failed"
