# What the lab's shell scripts share: the binary, a folder, loop devices, and how a missing tool is told.
# Sourced from the top of the repository; ends the script where it may not mount.
[ "$(id -u)" = 0 ] || { echo "skipped: ${0##*/} needs root to mount"; exit 0; }
missing() {
    echo "skipped: $1"
    [ -z "${BLOCKFERRY_REQUIRE_ALL:-}" ] || exit 1
}
install() {
    command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || {
        command -v apt-get >/dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2" >/dev/null
    }
}
cargo build --quiet --release --locked --features cli,clouds,peer
ferry=$(realpath "${CARGO_TARGET_DIR:-target}")/release/blockferry
work=$(mktemp -d) passed=0
devices=()
clean() {
    mountpoint -q "$work/mnt" && umount "$work/mnt"
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
