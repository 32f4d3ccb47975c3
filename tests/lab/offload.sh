#!/usr/bin/env bash
# Copies that move no byte, where the file system can share extents (XFS, Btrfs), and images of up to 64 TiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lab/common.bash

# used_kib -> what the file system has given out, in $used
used_kib() {
    sync -f "$work/mnt"
    used=$(df -k --output=used "$work/mnt" | tail -n 1 | tr -d ' ')
}

truncate -s 300000001 "$work/disk.raw"
head -c 150000000 /dev/urandom | dd of="$work/disk.raw" bs=1M seek=40 conv=notrunc status=none

for kind in xfs btrfs; do
    case $kind in
    xfs) install mkfs.xfs xfsprogs; make=(mkfs.xfs -q -f -m reflink=1) ;;
    btrfs) install mkfs.btrfs btrfs-progs; make=(mkfs.btrfs -q -f) ;;
    esac
    command -v "${make[0]}" >/dev/null || { missing "$kind: ${make[0]} is not installed"; continue; }
    loop 1200M
    "${make[@]}" "$device"
    mount "$device" "$work/mnt" 2>/dev/null || { missing "$kind: the kernel cannot mount it"; continue; }
    region=$work/mnt/region
    mkdir "$region"
    "$ferry" copy "$work/disk.raw" "dir://$region/m-1" --json >"$work/out"
    [ "$(field reused_bytes)" = 0 ]
    data=$(field data_bytes) root=$(field root)
    [ "$data" -gt 0 ]
    used_kib
    before=$used

    # Digests known: nothing is read, nothing is written, and next to nothing is used.
    "$ferry" copy "dir://$region/m-1" "dir://$region/m-2" --json >"$work/out"
    [ "$(field read_bytes) $(field written_bytes)" = "0 0" ]
    [ "$(field root)" = "$root" ]
    [ "$(field reused_bytes)" -ge "$data" ]
    cmp "$work/disk.raw" "$region/m-2/data"
    "$ferry" verify "dir://$region/m-2" >/dev/null
    used_kib
    [ $((used - before)) -lt 20000 ]

    # Digests not known: cloned, and hashed on the way.
    cp --reflink=always "$region/m-2/data" "$work/mnt/plain.raw"
    "$ferry" copy "$work/mnt/plain.raw" "dir://$region/m-3" --verify full --json >"$work/out"
    [ "$(field written_bytes)" = 0 ]
    [ "$(field root)" = "$root" ]
    [ "$(field read_bytes)" -gt 0 ]
    [ "$(field reused_bytes)" = "$data" ]
    cmp "$work/disk.raw" "$region/m-3/data"
    used_kib
    [ $((used - before)) -lt 20000 ]

    # Suspended half way through hashing, resumed by another process: whole all the same.
    "$ferry" copy "$work/mnt/plain.raw" "$work/mnt/slow.raw" --rate 20MiB/s --progress none --json >"$work/out" 2>/dev/null &
    copy=$!
    within 30 copies "$work/mnt/slow.raw"
    sleep 2
    kill -INT "$copy"
    ended "$copy"
    [ "$code" = 3 ]
    job=$(field job)
    "$ferry" limit "$job" --rate none >/dev/null
    "$ferry" resume "$job" --json >"$work/out"
    [ "$(field outcome)" = committed ]
    [ "$(field resumed_bytes)" -gt 0 ]
    cmp "$work/disk.raw" "$work/mnt/slow.raw"

    # Blocks of its own when that is asked for; and one that was cloned goes without its source.
    "$ferry" copy "$work/mnt/plain.raw" "$work/mnt/own.raw" --reflink never --json >"$work/out"
    [ "$(field reused_bytes)" = 0 ]
    [ "$(field written_bytes)" = "$data" ]
    cmp "$work/disk.raw" "$work/mnt/own.raw"
    rm "$work/mnt/plain.raw" "$work/mnt/own.raw" "$work/mnt/slow.raw"
    cmp "$work/disk.raw" "$region/m-3/data"

    # A base beside the destination: what it has alike is shared with it, whether the digests of the source, which
    # lies elsewhere, are known or not.
    rm -rf "$work/next.raw" "$work/a" && mkdir "$work/a" && cp "$work/disk.raw" "$work/next.raw"
    printf x | dd of="$work/next.raw" bs=1 seek=60000000 conv=notrunc status=none
    "$ferry" copy "$work/next.raw" "dir://$work/a/next" >/dev/null
    for source in "dir://$work/a/next" "$work/next.raw"; do
        used_kib
        before=$used
        "$ferry" copy "$source" "dir://$region/m-5" --base m-1 --verify full --json >"$work/out"
        [ "$(field written_bytes)" -le 4194304 ]
        [ "$(field reused_bytes)" -ge $((data - 4194304)) ]
        [ "$source" = "$work/next.raw" ] || [ "$(field read_bytes)" -le 4194304 ]
        cmp "$work/next.raw" "$region/m-5/data"
        used_kib
        [ $((used - before)) -lt 20000 ]
        rm -rf "$region/m-5"
    done
    "$ferry" copy "dir://$work/a/next" "dir://$region/m-5" --base m-1 --reflink never --json >"$work/out"
    used_kib
    [ $((used - before)) -gt 100000 ]
    cmp "$work/next.raw" "$region/m-5/data"

    # An image that is damaged where it lies is not passed on by a clone that is read back.
    chmod u+w "$region/m-1/data"
    printf x | dd of="$region/m-1/data" bs=1 seek=90000000 conv=notrunc status=none
    run copy "dir://$region/m-1" "dir://$region/m-4" --verify full
    [ "$code" = 1 ]
    grep -q '"kind":"corrupt"' "$work/out"
    [ ! -e "$region/m-4" ]
    cancels_clean "dir://$region/m-4"
    # And not taken over from it as a base.
    "$ferry" copy "dir://$work/a/next" "dir://$region/m-6" --base m-1 --json >"$work/out"
    cmp "$work/next.raw" "$region/m-6/data"
    umount "$work/mnt"
    echo "$kind: shared with known digests and without, suspended, resumed, unshared on demand, with a base, damage found"
    passed=$((passed + 1))
done

# 64 TiB, which ext4 refuses: planned, hashed and published in memory that does not grow with it.
if command -v mkfs.xfs >/dev/null; then
    loop 600M
    mkfs.xfs -q -f -m reflink=0 "$device"
    mount "$device" "$work/mnt"
    mkdir "$work/mnt/region"
    truncate -s 64T "$work/mnt/huge.raw"
    for tib in 0 1 17 42 63; do
        head -c 8000000 /dev/urandom | dd of="$work/mnt/huge.raw" bs=1M seek=$((tib * 1048576 + 77)) conv=notrunc status=none
    done
    began=$(date +%s%N)
    "$ferry" copy "$work/mnt/huge.raw" "dir://$work/mnt/region/huge" --json >"$work/out" &
    copy=$!
    peak=0
    until [ ! -e "/proc/$copy/status" ]; do
        now=$(awk '/^RssAnon/ {print $2}' "/proc/$copy/status" 2>/dev/null || true)
        peak=$((${now:-0} > peak ? ${now:-0} : peak))
        sleep 0.02
    done
    ended "$copy"
    [ "$code" = 0 ]
    ms=$((($(date +%s%N) - began) / 1000000))
    [ "$(field image_bytes)" = $((64 << 40)) ]
    [ "$(field chunks)" = $((1 << 20)) ]
    [ "$(field read_bytes)" -lt 50000000 ]
    # The table of 2^20 chunks is 32 MiB where all are data; here next to none is.
    [ "$peak" -gt 0 ]
    [ "$peak" -lt 65536 ]
    for tib in 0 1 17 42 63; do
        cmp -i $((tib * 1048576 + 77))M -n 8M "$work/mnt/huge.raw" "$work/mnt/region/huge/data"
    done
    [ "$(du -k "$work/mnt/region/huge/data" | cut -f1)" -lt 60000 ]
    umount "$work/mnt"
    echo "64 TiB on XFS: copied in $ms ms, at most $peak KiB of memory"
    passed=$((passed + 1))
else
    missing "64 TiB: mkfs.xfs is not installed"
fi
echo "$passed passed, 0 failed"
