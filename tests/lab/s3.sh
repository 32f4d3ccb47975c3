#!/usr/bin/env bash
# Object stores that others wrote: the conformance of the store room, regions and plain objects, with copies that
# are killed, stopped, resumed and cancelled (stores/machines.py), on moto (from PyPI), where LAB_LONG or LAB_CEPH is
# set on Ceph RGW (from Debian), and where it is installed (`cargo install garage`) on a cluster of Garage that loses
# nodes meanwhile. What `aws`, `s5cmd` and `rclone` see of it is asked of those of them that are there. A table tells
# which store proved what.
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
    [ ! -d "$work/garage" ] || tests/lab/stores/garage stop "$work/garage" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap clean EXIT
ferry=$(tests/lab/binary)
export BLOCKFERRY_STATE_DIR=$work/state AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
# No profile, session, endpoint or proxy of whoever runs this.
export AWS_CONFIG_FILE=$work/none AWS_SHARED_CREDENTIALS_FILE=$work/none
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3

python=$(tests/lab/stores/python) || { missing "moto and boto3 cannot be installed"; exit 0; }
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
# Other clients of a store: the `aws` of that Python, else that of the host.
aws=(aws)
if "$python" -c 'import awscli' 2>/dev/null; then aws=("$python" -m awscli); fi
export RCLONE_S3_PROVIDER=Other RCLONE_S3_ENV_AUTH=true RCLONE_S3_CHUNK_SIZE=5Mi RCLONE_S3_UPLOAD_CUTOFF=5Mi
is_there() { # is_there TOOL
    case $1 in
    aws) "${aws[@]}" --version ;;
    *) command -v "$1" ;;
    esac >/dev/null 2>&1
}
# client TOOL ENDPOINT, then: list | get KEY FILE | put FILE KEY, which is sent in parts
client() {
    local at=s3://lab-bucket of_rclone=:s3:lab-bucket tool=$1 endpoint=$2
    case "$tool $3" in
    "aws list") "${aws[@]}" --endpoint-url "$endpoint" s3 ls --recursive "$at" ;;
    "aws get") "${aws[@]}" --endpoint-url "$endpoint" s3 cp --only-show-errors "$at/$4" "$5" ;;
    "aws put") "${aws[@]}" --endpoint-url "$endpoint" s3 cp --only-show-errors "$4" "$at/$5" ;;
    "s5cmd list") s5cmd --endpoint-url "$endpoint" ls "$at/*" ;;
    "s5cmd get") s5cmd --endpoint-url "$endpoint" cp "$at/$4" "$5" >/dev/null ;;
    "s5cmd put") s5cmd --endpoint-url "$endpoint" cp --part-size 5 "$4" "$at/$5" >/dev/null ;;
    "rclone list") rclone --config= lsf --recursive "$of_rclone" ;;
    "rclone get") rclone --config= copyto "$of_rclone/$4" "$5" ;;
    "rclone put") rclone --config= copyto "$4" "$of_rclone/$5" ;;
    *) return 2 ;;
    esac
}
checked() { # checked WHAT: it is as it should be
    echo "ok: $store: $1"
    passed=$((passed + 1))
}
reached() { # reached PORT: waits until somebody listens there
    for _ in $(seq 240); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0; sleep 0.5; done
    return 1
}

# written BYTES: waits until the copy in $copy has begun to write so many; how many, is in $seen
written() {
    for _ in $(seq 600); do
        seen=$(grep -os '"written_bytes":[0-9]*' "$work/progress" | tail -n 1 | cut -d: -f2) || true
        if [ "${seen:-0}" -ge "$1" ]; then return 0; fi
        kill -0 "$copy" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}
# caught BYTES ARGS: a copy, killed when it has begun to write so many bytes and has not ended; its job is in $job
caught() {
    local copy code=0 seen
    rm -f "$work/progress"
    "$ferry" copy "${@:2}" --json --progress json >"$work/out" 2>"$work/progress" &
    copy=$!
    pids+=("$copy")
    written "$1" || true
    kill -9 "$copy" 2>/dev/null || true
    wait "$copy" 2>/dev/null || code=$?
    # Its number may be somebody else's from now on.
    unset 'pids[-1]'
    if [ "${seen:-0}" -lt "$1" ] || [ "$code" != 137 ]; then
        echo "the copy wrote ${seen:-nothing} and ended with $code before it was killed:" >&2
        tail -n 3 "$work/progress" "$work/out" >&2
        return 1
    fi
    job=$(grep -o -m 1 '"job":"[0-9a-f]*"' "$work/progress" | head -n 1 | cut -d'"' -f4)
    [ "${#job}" = 32 ]
}
says() { # says TEXT: the last command said so
    grep -qF -- "$1" "$work/out" || { echo "it does not say $1: $(cat "$work/out")" >&2; return 1; }
}
resumed() { # resumed BYTES: so many at least were not sent again
    "$python" -c 'import json, sys
told = json.load(open(sys.argv[1]))
assert told["outcome"] == "committed" and told["resumed_bytes"] >= int(sys.argv[2]), told' "$work/out" "$1"
}

head -c 20000003 /dev/urandom >"$work/disk.raw"
rows=() cancelled=()
# on MACHINE ARGS: the command on a machine that shares nothing with the others but the store. Where heads cannot be
# kept in the store, there is but one that may write.
on() { BLOCKFERRY_STATE_DIR="$work/machine-${only:-$1}" "$ferry" "${@:2}" --json >"$work/out"; }
# regions ENDPOINT WORDS FENCING: images below a prefix, as three machines see it
regions() {
    local image="s3://lab-bucket/region" words=$2 ending job only=
    if [ "$3" = none ]; then words+="&fencing=none" only=a; fi
    on a copy "$work/disk.raw" "$image/m-1$words"
    on b copy "$image/m-1$words" "$work/back.raw"
    cmp "$work/disk.raw" "$work/back.raw"
    on b verify "$image/m-1$words"
    on b copy "$image/m-1$words" "s3://lab-bucket/other/m-1$words"
    on c verify "s3://lab-bucket/other/m-1$words"
    checked "an image goes up, down and to another region"
    for ending in resume cancel; do
        # Of the first megabytes at least one is there when the fourth begins.
        BLOCKFERRY_STATE_DIR=$work/machine-a caught $((4 << 20)) "$work/disk.raw" "$image/$ending$words" \
            --rate 4MiB/s --chunk-size 1MiB
        if [ "$ending" = resume ]; then
            on b jobs "$image$words"
            says "$job"
            on b limit "$image/resume$words" --rate none
            on b resume "$job" --region "$image$words"
            resumed $((1 << 20))
            rm "$work/back.raw"
            on c copy "$image/resume$words" "$work/back.raw"
            cmp "$work/disk.raw" "$work/back.raw"
        else
            on b cancel "$image/cancel$words"
            says '"answer":"cancelled","decided":true,"clean":true'
            cancelled+=("$job")
        fi
        checked "an image whose owner was killed: $ending on another machine"
    done
    on c recover "$image$words" --apply --grace-hours 0
    says '"late":[]'
    peer "$1" 'keys = [o["Key"] for o in s3.list_objects_v2(Bucket="lab-bucket", Prefix="region/")["Contents"]]
# Beside images only how heads are kept is on record. A head is one object, or one for each of its states.
keys = [k.split("/") for k in keys if k != "region/way"]
assert all(k[:2] == ["region", "images"] for k in keys), keys
heads = {k[2] for k in keys if k[3].split(".")[0] == "head"}
rest = [k[2] for k in keys if k[3].split(".")[0] != "head"]
assert heads == {"cancel", "m-1", "resume"}, keys
assert sorted(rest) == ["m-1"] * (1 + 5) + ["resume"] * (1 + 20), keys'
    checked "of the region there is what its heads name, and nothing else"
    rm "$work/back.raw"
}
# seen_by TOOL ENDPOINT WORDS: what another client sees of all that, and what it writes itself
seen_by() {
    local key object="by-$1.raw"
    client "$1" "$2" list >"$work/list"
    # Who does not see what is there proves nothing by what it does not see.
    for key in dir/disk.raw resume.raw region/images/m-1/head region/images/resume/head; do
        grep -qF "$key" "$work/list"
    done
    if grep -F "${cancelled[@]/#/-e}" "$work/list"; then return 1; fi
    client "$1" "$2" get dir/disk.raw "$work/peer.raw"
    cmp "$work/disk.raw" "$work/peer.raw"
    client "$1" "$2" put "$work/disk.raw" "$object"
    # The ETag of what came in parts tells how many there were.
    peer "$2" "etag = s3.head_object(Bucket='lab-bucket', Key='$object')['ETag']
assert '-' in etag, etag"
    "$ferry" copy "s3+raw://lab-bucket/$object$3" "$work/back.raw" --json >"$work/out"
    cmp "$work/disk.raw" "$work/back.raw"
    rm "$work/peer.raw" "$work/back.raw"
    checked "$1 sees nothing of what was cancelled, reads our plain object, and we read its one"
}
# examine NAME ENDPOINT [REGION]: everything that is asked of one store
examine() {
    local store=$1 words="?endpoint=$2&region=${3:-us-east-1}&allow_http=true"
    export AWS_REGION=${3:-us-east-1} AWS_DEFAULT_REGION=${3:-us-east-1}
    export RCLONE_S3_REGION=$AWS_REGION RCLONE_S3_ENDPOINT=$2
    peer "$2" 's3.create_bucket(Bucket="lab-bucket")'
    BLOCKFERRY_LAB_S3="s3://lab-bucket/conform$words" cargo test --quiet --locked --all-features \
        --test it store::conformance::a_server_of_the_lab -- --nocapture \
        >"$work/conform.log" 2>&1 || { grep -A 3 panicked "$work/conform.log" || tail -n 40 "$work/conform.log"; return 1; }
    # A test of another name, or one that was skipped, proves nothing.
    grep -q 'test result: ok. 1 passed' "$work/conform.log"
    grep -q '^Proven {' "$work/conform.log"
    checked "the store conforms"
    "$ferry" probe "s3://lab-bucket/probe$words" --json >"$work/probe.json"
    rows+=("$("$python" - "$1" "$work/probe.json" <<'PYTHON'
import json, sys
told = json.load(open(sys.argv[2]))
cells = ["yes" if proven else "no" for proven in told["proven"].values()]
print("| " + " | ".join([sys.argv[1], *cells, told["fencing"]]) + " |")
PYTHON
    )")
    local fencing
    fencing=$(grep -o '"fencing":"[a-z]*"' "$work/probe.json" | cut -d'"' -f4)
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
    checked "a plain object goes up and down, and boto3 reads the same"

    # Killed in the middle, resumed; killed in the middle, cancelled: nothing is left.
    local ending job
    cancelled=(cancel.raw)
    for ending in resume cancel; do
        # When the second of three parts begins, the first is there and on record. Any of them may be the
        # first; the smallest is the last one of the image.
        caught $(((8 << 20) + 1)) "$work/disk.raw" "s3+raw://lab-bucket/$ending.raw$words" --rate 2MiB/s
        if [ "$ending" = resume ]; then
            "$ferry" limit "$job" --rate none --json >"$work/out"
            "$ferry" resume "$job" --json >"$work/out"
            resumed $((3 << 20))
            peer "$2" "s3.download_file('lab-bucket', 'resume.raw', '$work/peer.raw')"
            cmp "$work/disk.raw" "$work/peer.raw"
        else
            "$ferry" cancel "$job" --json >"$work/out"
            says '"answer":"cancelled","decided":true,"clean":true'
        fi
        checked "a plain object whose copy was killed: $ending"
    done
    peer "$2" 'keys = [o["Key"] for o in s3.list_objects_v2(Bucket="lab-bucket").get("Contents", [])]
assert sorted(keys) == ["dir/disk.raw", "resume.raw"], keys
uploads = s3.list_multipart_uploads(Bucket="lab-bucket").get("Uploads", [])
assert not uploads, uploads'
    checked "of plain objects there is what was committed, and no upload"
    regions "$2" "$words" "$fencing"

    local tool
    for tool in aws s5cmd rclone; do
        if is_there "$tool"; then
            seen_by "$tool" "$2" "$words"
        else
            echo "left out: $tool is not installed"
        fi
    done
    PYTHONPATH=tests/lab "$python" -B tests/lab/stores/machines.py "$ferry" "$work" "$1" "$2" "$words" "$fencing" |
        tee "$work/machines.log"
    passed=$((passed + $(grep -c '^ok: ' "$work/machines.log")))
}
# outlives DESTINATION CHUNK_SIZE: a copy goes on while one node of three is dead, and waits while a second is stopped
outlives() {
    local copy seen back=$work/back.raw
    rm -f "$work/progress"
    "$ferry" copy "$work/disk.raw" "$1" --rate 2MiB/s --chunk-size "$2" --json --progress json \
        >"$work/out" 2>"$work/progress" &
    copy=$!
    pids+=("$copy")
    written $((1 << 20))
    tests/lab/stores/garage signal "$work/garage" 3 KILL
    written $((9 << 20))
    tests/lab/stores/garage signal "$work/garage" 2 STOP
    sleep 15
    kill -0 "$copy"
    tests/lab/stores/garage signal "$work/garage" 2 CONT
    wait "$copy"
    unset 'pids[-1]'
    says '"outcome":"committed"'
    "$ferry" copy "$1" "$back" --json >"$work/out"
    tests/lab/stores/garage revive "$work/garage" 3
    cmp "$work/disk.raw" "$back"
    rm "$back"
    checked "a copy to ${1%%\?*} outlives the death of one node and the silence of another"
}

port=$(free_port)
"$python" -c 'from moto.server import main; main()' -H 127.0.0.1 -p "$port" >"$work/moto.log" 2>&1 &
pids+=($!)
reached "$port"
AWS_ACCESS_KEY_ID=lab AWS_SECRET_ACCESS_KEY=lab examine moto "http://127.0.0.1:$port"

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

if command -v garage >/dev/null; then
    read -r endpoint id secret < <(tests/lab/stores/garage start "$work/garage" 2>"$work/garage.log")
    export AWS_ACCESS_KEY_ID=$id AWS_SECRET_ACCESS_KEY=$secret
    store=Garage
    examine "$store" "$endpoint" garage
    words="?endpoint=$endpoint&region=garage&allow_http=true"
    outlives "s3+raw://lab-bucket/outlives.raw$words" 8MiB
    outlives "s3://lab-bucket/alone/outlives$words&fencing=none" 1MiB
else
    echo "left out: Garage is not installed (cargo install garage)"
fi

printf '%s\n' "$header" "${rows[@]}"
echo "s3: $passed checks on ${#rows[@]} stores, all as it should be"
