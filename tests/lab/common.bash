# What the lab's shell scripts share: the binary, a folder, loop devices, and how a missing tool is told.
# Sourced from the top of the repository, with `set -euo pipefail`; ends the script where it may not mount.
#
# An assertion is a line of its own: `[ A ] && [ B ]` does not end a script when A fails, whatever `set -e` is set.
set -E
trap 'echo "FAILED ${0##*/} line $LINENO: $BASH_COMMAND" >&2' ERR
missing() {
    echo "skipped: $1"
    [ -z "${BLOCKFERRY_REQUIRE_ALL:-}" ] || exit 1
}
[ "$(id -u)" = 0 ] || { missing "${0##*/} needs root to mount"; exit 0; }
install() {
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || {
        command -v apt-get >/dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2" >/dev/null
    } || true
}
ferry=$(tests/lab/binary)
work=$(mktemp -d) passed=0
devices=()
clean() {
    ! mountpoint -q "$work/mnt" || umount "$work/mnt"
    for device in "${devices[@]}"; do losetup -d "$device" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
export BLOCKFERRY_STATE_DIR=$work/state PATH=$PATH:/usr/sbin:/sbin
mkdir "$work/mnt"
loop() { # loop SIZE -> a loop device, in $device
    truncate -s "$1" "$work/back.${#devices[@]}"
    # Not the first free one: whoever else asks for that at the same moment looks into ours.
    local try
    for try in {0..63}; do
        device=/dev/loop$((192 + ($$ + try) % 64))
        losetup "$device" "$work/back.${#devices[@]}" 2>"$work/losetup" && break
        if [ "$try" = 63 ] || ! grep -q 'resource busy' "$work/losetup"; then
            cat "$work/losetup" >&2
            return 1
        fi
    done
    devices+=("$device")
}
field() { # field NAME: a field of the JSON that the last command wrote
    python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/out" "$1"
}
run() { # run ARGS: the command, its JSON in $work/out and its exit code in $code
    code=0
    "$ferry" "$@" --json >"$work/out" || code=$?
}
ended() { # ended PID: waits for a copy in the background; its exit code in $code
    code=0
    wait "$1" || code=$?
}
within() { # within SECONDS COMMAND...: asks until it succeeds, and fails when it does not in time
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        if ((SECONDS > end)); then
            echo "not in time: $*" >&2
            return 1
        fi
        sleep 0.1
    done
}
copies() { # copies WHERE: whether a copy is under way there
    "$ferry" jobs "$1" --json | grep -q copying
}
cancels_clean() { # cancels_clean WHERE: cancels what is under way there, and nothing is left of it
    "$ferry" cancel "$1" --json >"$work/cancel"
    grep -q '"clean":true' "$work/cancel"
}
