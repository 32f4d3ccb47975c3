"""Copies that share blocks: on a loop-mounted XFS, digests known and unknown."""

import os
import subprocess

import contestants
import inputs
import measure
import places
import report


def measured(options, disk):
    """Two tables: from a committed image, and from a plain file on the same file system."""
    size = options.sizes["random"][0]
    with places.xfs(disk, 3 * size + inputs.GIB) as xfs:
        sizes = options.sizes
        plain = inputs.made("random", xfs.source, sizes, options.seed)
        region = os.path.join(xfs.folder, "committed")
        os.makedirs(region)
        committed = f"dir://{region}/image"
        state = ["--state-dir", os.path.join(xfs.folder, "state"), "--progress", "none"]
        command = [options.blockferry, "copy", plain.path, committed, *state]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return {
            "known": one_table(options, xfs, plain, committed, "--reflink=always"),
            "unknown": one_table(options, xfs, plain, plain.path, "--reflink=never --sparse=never"),
        }


def one_table(options, xfs, plain, source, how):
    """`cp` always reads the plain file: the same bytes, on the same file system."""
    known = source != plain.path
    what = "committed image, digests known" if known else "plain file, digests unknown"
    measure.note(f"xfs: {what}")
    file = os.path.join(xfs.destination, "copy.raw")
    taking_part = [
        contestants.ferry(options, source, xfs.destination),
        contestants.cp(how, plain.path, file),
    ]
    rows = measure.in_turns(options, plain, xfs, "hot", taking_part)
    table = report.judged(plain, xfs, "hot", rows, [])
    return table | {"title": f"{inputs.binary(plain.size)} within one XFS, hot: {what}"}
