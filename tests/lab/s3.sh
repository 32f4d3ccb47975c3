#!/usr/bin/env bash
# Object stores that others wrote: the conformance of the store room, regions and plain objects, with copies that
# are killed, resumed and cancelled, on moto (from PyPI) and, where LAB_LONG or LAB_CEPH is set, on Ceph RGW (from
# Debian). A table tells which store proved what.
#
# Left out of tests/run: it has not been green as a whole yet; `bash tests/lab/s3.sh` runs it by hand
set -euo pipefail
cd "$(dirname "$0")/../.."

set -E
trap 'echo "FAILED ${0##*/} line $LINENO: $BASH_COMMAND" >&2' ERR
missing() {
    echo "skipped: $1"
    [ -z "${BLOCKFERRY_REQUIRE_ALL:-}" ] || exit 1
}
work=$(mktemp -d) pids=() passed=0
clean() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    [ ! -f "$work/ceph/ceph.conf" ] || tests/lab/stores/ceph stop "$work/ceph" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT
# As `cargo test` has built it: nothing is timed here.
cargo build --quiet --locked --all-features
ferry=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/blockferry
export BLOCKFERRY_STATE_DIR=$work/state AWS_REGION=us-east-1
# No profile of whoever runs this.
export AWS_CONFIG_FILE=$work/none AWS_SHARED_CREDENTIALS_FILE=$work/none

# A Python with boto3, which makes buckets and looks at them from outside, and moto.
python=$(python3 -c 'import boto3, moto.server, sys; print(sys.executable)' 2>/dev/null) ||
    python=${BLOCKFERRY_LAB_VENV:-$work/venv}/bin/python
if [ ! -x "$python" ]; then
    python3 -m venv "$work/venv" && "$work/venv/bin/pip" install --quiet 'moto[server]' boto3 ||
        { missing "moto and boto3 cannot be installed"; exit 0; }
fi
free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# peer ENDPOINT CODE: runs Python with a client `s3` of that endpoint
peer() {
    "$python" - "$1" <<PYTHON
import sys, boto3
from botocore.config import Config
s3 = boto3.client("s3", endpoint_url=sys.argv[1], config=Config(s3={"addressing_style": "path"}))
$2
PYTHON
}
reached() { # reached PORT: waits until somebody listens there
    for _ in $(seq 240); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0; sleep 0.5; done
    return 1
}

moves() { # waits until the copy in the background has written something
    for _ in $(seq 300); do
        ! grep -qs '"written_bytes":[1-9]' "$work/progress" || return 0
        sleep 0.1
    done
    echo "nothing is written in 30 s" >&2
    return 1
}

head -c 20000003 /dev/urandom >"$work/disk.raw"
rows=()
# on MACHINE ARGS: the command on a machine that shares nothing with the others but the store
on() { BLOCKFERRY_STATE_DIR="$work/machine-$1" "$ferry" "${@:2}" --json >"$work/out"; }
# regions ENDPOINT WORDS: images below a prefix, as three machines see it
regions() {
    local image="s3://lab-bucket/region" words=$2 ending copy job
    on a copy "$work/disk.raw" "$image/m-1$words"
    on b copy "$image/m-1$words" "$work/back.raw"
    cmp "$work/disk.raw" "$work/back.raw"
    on b verify "$image/m-1$words"
    on b copy "$image/m-1$words" "s3://lab-bucket/other/m-1$words"
    on c verify "s3://lab-bucket/other/m-1$words"
    for ending in resume cancel; do
        rm -f "$work/progress"
        BLOCKFERRY_STATE_DIR=$work/machine-a "$ferry" copy "$work/disk.raw" "$image/$ending$words" --rate 4MiB/s \
            --chunk-size 1MiB --json --progress json >"$work/out" 2>"$work/progress" &
        copy=$!
        moves
        kill -9 "$copy"
        wait "$copy" 2>/dev/null || true
        job=$(grep -o '"job":"[0-9a-f]*"' "$work/progress" | head -n 1 | cut -d'"' -f4)
        if [ "$ending" = resume ]; then
            on b jobs "$image$words"
            grep -q "$job" "$work/out"
            on b limit "$image/resume$words" --rate none
            on b resume "$job" --region "$image$words"
            rm "$work/back.raw"
            on c copy "$image/resume$words" "$work/back.raw"
            cmp "$work/disk.raw" "$work/back.raw"
        else
            on b cancel "$image/cancel$words"
            grep -q '"answer":"cancelled","decided":true,"clean":true' "$work/out"
        fi
    done
    on c recover "$image$words" --apply --grace-hours 0
    grep -q '"late":\[\]' "$work/out"
    peer "$1" 'keys = [o["Key"] for o in s3.list_objects_v2(Bucket="lab-bucket", Prefix="region/")["Contents"]]
heads = [k for k in keys if "/head" in k]
rest = [k for k in keys if "/head" not in k]
assert heads == [f"region/images/{i}/head" for i in ("cancel", "m-1", "resume")], heads
assert all(k.split("/")[2] in ("m-1", "resume") for k in rest), rest
assert len(rest) == 2 + 5 + 20, rest'
    rm "$work/back.raw"
}
# examine NAME ENDPOINT: everything that is asked of one store
examine() {
    local words="?endpoint=$2&region=us-east-1&allow_http=true"
    peer "$2" 's3.create_bucket(Bucket="lab-bucket")'
    BLOCKFERRY_LAB_S3="s3://lab-bucket/conform$words" cargo test --quiet --locked --all-features \
        --test it store::conformance::a_server_of_the_lab -- --nocapture \
        >"$work/conform.log" 2>&1 || { tail -n 40 "$work/conform.log"; return 1; }
    "$ferry" probe "s3://lab-bucket/probe$words" --json >"$work/probe.json"
    rows+=("$("$python" - "$1" "$work/probe.json" <<'PYTHON'
import json, sys
told = json.load(open(sys.argv[2]))
cells = ["yes" if proven else "no" for proven in told["proven"].values()]
print("| " + " | ".join([sys.argv[1], *cells, told["fencing"]]) + " |")
PYTHON
    )")
    header=$("$python" - "$work/probe.json" <<'PYTHON'
import json, sys
names = ["store", *json.load(open(sys.argv[1]))["proven"], "fencing"]
print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
PYTHON
    )

    # A plain object, up and down; another client reads the same.
    "$ferry" copy "$work/disk.raw" "s3+raw://lab-bucket/dir/disk.raw$words" --json >"$work/out"
    "$ferry" copy "s3+raw://lab-bucket/dir/disk.raw$words" "$work/back.raw" --json >"$work/out"
    cmp "$work/disk.raw" "$work/back.raw"
    peer "$2" "s3.download_file('lab-bucket', 'dir/disk.raw', '$work/peer.raw')"
    cmp "$work/disk.raw" "$work/peer.raw"
    rm "$work/back.raw" "$work/peer.raw"

    # Killed in the middle, resumed; killed in the middle, cancelled: nothing is left.
    for ending in resume cancel; do
        rm -f "$work/progress"
        "$ferry" copy "$work/disk.raw" "s3+raw://lab-bucket/$ending.raw$words" --rate 4MiB/s --json \
            --progress json >"$work/out" 2>"$work/progress" &
        local copy=$!
        moves
        kill -9 "$copy"
        wait "$copy" 2>/dev/null || true
        local job
        job=$(grep -o '"job":"[0-9a-f]*"' "$work/progress" | head -n 1 | cut -d'"' -f4)
        if [ "$ending" = resume ]; then
            "$ferry" limit "$job" --rate none --json >"$work/out" 2>&1 || true
            "$ferry" resume "$job" --json >"$work/out"
            peer "$2" "s3.download_file('lab-bucket', 'resume.raw', '$work/peer.raw')"
            cmp "$work/disk.raw" "$work/peer.raw"
        else
            "$ferry" cancel "$job" --json >"$work/out"
        fi
    done
    peer "$2" 'keys = [o["Key"] for o in s3.list_objects_v2(Bucket="lab-bucket").get("Contents", [])]
assert sorted(keys) == ["dir/disk.raw", "resume.raw"], keys
uploads = s3.list_multipart_uploads(Bucket="lab-bucket").get("Uploads", [])
assert not uploads, uploads'
    regions "$2" "$words"
    passed=$((passed + 1))
}

if "$python" -c 'import moto.server' 2>/dev/null; then
    port=$(free_port)
    "$python" -c 'from moto.server import main; main()' -H 127.0.0.1 -p "$port" >"$work/moto.log" 2>&1 &
    pids+=($!)
    reached "$port"
    AWS_ACCESS_KEY_ID=lab AWS_SECRET_ACCESS_KEY=lab examine moto "http://127.0.0.1:$port"
else
    missing "moto is not installed"
fi

long=${LAB_LONG:-${LAB_CEPH:-}}
if [ -n "$long" ] && ! command -v radosgw >/dev/null && command -v apt-get >/dev/null; then
    apt-get update -qq >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ceph-mon ceph-mgr ceph-osd radosgw ceph-common ceph-base >/dev/null 2>&1 || true
fi
if [ -z "$long" ]; then
    echo "left to LAB_LONG=1: Ceph RGW"
elif command -v radosgw >/dev/null && [ "$(id -u)" = 0 ]; then
    if endpoint=$(tests/lab/stores/ceph start "$work/ceph" 2>"$work/ceph.log"); then
        AWS_ACCESS_KEY_ID=LABKEY AWS_SECRET_ACCESS_KEY=LABSECRET examine "Ceph RGW" "$endpoint"
    else
        tail -n 5 "$work/ceph.log"
        missing "Ceph did not start"
    fi
else
    missing "Ceph (radosgw) is not installed"
fi

[ "$passed" -gt 0 ] || { missing "no store was there to be examined"; exit 0; }
printf '%s\n' "$header" "${rows[@]}"
echo "s3: $passed stores, all as it should be"
