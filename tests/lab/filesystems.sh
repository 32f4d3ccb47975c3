#!/usr/bin/env bash
# Copies, resumes and cancels on real file systems on loop devices: ext4, XFS, Btrfs; and onto a bare device.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lab/common.bash

truncate -s 200000001 "$work/disk.raw"
head -c 20000000 /dev/urandom | dd of="$work/disk.raw" bs=1M seek=3 conv=notrunc status=none
head -c 5000000 /dev/urandom | dd of="$work/disk.raw" bs=1M seek=150 conv=notrunc status=none

for kind in ext4 xfs btrfs; do
    case $kind in
    ext4) install mkfs.ext4 e2fsprogs; make=(mkfs.ext4 -q -F) ;;
    xfs) install mkfs.xfs xfsprogs; make=(mkfs.xfs -q -f) ;;
    btrfs) install mkfs.btrfs btrfs-progs; make=(mkfs.btrfs -q -f) ;;
    esac
    command -v "${make[0]}" >/dev/null || { missing "$kind: ${make[0]} is not installed"; continue; }
    loop 600M
    "${make[@]}" "$device"
    mount "$device" "$work/mnt" 2>/dev/null || { missing "$kind: the kernel cannot mount it"; continue; }
    region=$work/mnt/region
    mkdir "$region"
    "$ferry" copy "$work/disk.raw" "dir://$region/m-1" --verify full --json >"$work/out"
    cmp "$work/disk.raw" "$region/m-1/data"
    "$ferry" copy "dir://$region/m-1" "$work/mnt/back.raw" --json >"$work/out"
    cmp "$work/disk.raw" "$work/mnt/back.raw"
    # Holes stay holes: 25 MB of data, not 200.
    [ "$(du -k "$region/m-1/data" | cut -f1)" -lt 40000 ]
    "$ferry" copy "$work/disk.raw" "dir://$region/m-2" --rate 4MiB/s --progress none 2>/dev/null &
    copy=$!
    within 30 copies "dir://$region"
    cancels_clean "dir://$region/m-2"
    ended "$copy"
    [ "$code" = 4 ]
    [ "$(find "$region" -type f | wc -l)" = 2 ]
    # Twice as large as what is left: no space, nothing lost, cancel is clean.
    head -c 700000000 /dev/zero | tr '\0' x >"$work/large.raw"
    run copy "$work/large.raw" "dir://$region/m-3"
    [ "$code" = 1 ]
    grep -q '"kind":"no_space"' "$work/out"
    cancels_clean "dir://$region/m-3"
    [ "$(find "$region" -type f | wc -l)" = 2 ]
    rm "$work/large.raw"
    umount "$work/mnt"
    echo "$kind: copied, verified, holes kept, cancelled, no space"
    passed=$((passed + 1))
done

# A bare device that held something else: no stale byte stays, and a rollback leaves zeros.
loop 256M
head -c 268435456 /dev/zero | tr '\0' y | dd of="$device" bs=1M status=none
run copy "$work/disk.raw" "$device"
[ "$code" = 2 ]
grep -q destructive "$work/out"
head -c 268435456 /dev/zero | tr '\0' y | cmp - "$device"
"$ferry" copy "$work/disk.raw" "$device" --destructive --verify full --json >"$work/out"
cmp -n 200000001 "$work/disk.raw" "$device"
"$ferry" forget "$(field job)"
# Data between zeros, written ones and holes, within a chunk and across chunks.
truncate -s 60000001 "$work/patchy.raw"
for ((at = 1; at < 900; at += 3 + at % 5)); do
    from=/dev/urandom
    ((at % 4)) || from=/dev/zero
    dd if=$from of="$work/patchy.raw" bs=64K seek=$at count=$((1 + at % 3)) conv=notrunc status=none
done
for chunk in 64KiB 1MiB 4MiB; do
    head -c 60000001 /dev/zero | tr '\0' y | dd of="$device" bs=1M conv=fsync status=none
    "$ferry" copy "$work/patchy.raw" "$device" --destructive --chunk-size $chunk --json >"$work/out"
    cmp -n 60000001 "$work/patchy.raw" "$device"
    "$ferry" forget "$(field job)"
done
"$ferry" copy "$work/disk.raw" "$device" --destructive --rate 4MiB/s --progress none 2>/dev/null &
copy=$!
within 30 copies "$device"
kill -9 "$copy"
ended "$copy"
[ "$code" = 137 ]
cancels_clean "$device"
cmp -n 200000001 /dev/zero "$device"
echo "block device: overwritten whole, killed, rolled back to zeros"
passed=$((passed + 1))
echo "$passed passed, 0 failed"
