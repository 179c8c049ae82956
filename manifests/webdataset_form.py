"""The WebDataset form: tar shards of `NNNNNNNNN.json` and `NNNNNNNNN.states.npy`, a pair for each trajectory.
With a conditional teacher `NNNNNNNNN.cls` holds the class of each, as a decimal number.

Plain `webdataset.WebDataset` streams them. Every trajectory takes the same number of bytes in the tar, so
one offset and one stride find any of them.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.files import Bytes
from hkdpipe.manifests.plan import Plan
from hkdpipe.manifests.state_type import little_endian


def shard_file(k: int) -> str:
    """Where shard k lies, relative to the archive."""
    return f"shard-{k:06d}.tar"


def labels_file(plan: Plan, k: int) -> str:
    """'': the classes lie in the shard itself."""
    return ""


def metadata(plan: Plan) -> dict[str, bytes]:
    """None: tar shards need no files beside them."""
    return {}


def encode_shard(plan: Plan, k: int, states: NDArray[Any]) -> tuple[list[Bytes], int, int, list[Bytes]]:
    """A shard's file in pieces, the offset of its first trajectory's states and the distance between two.

    The last value is a file of the labels: [], as they are in the shard itself.
    `states` is (n, *plan.states_shape) of `plan.stored_dtype`, n the length of shard k. The bytes depend on
    nothing else but the plan's seed and classes and k: those of webdataset's own writer, which takes several
    times as long.
    """
    start, stop = plan.shard_range(k)
    labels = plan.labels(range(start, stop))
    npy_header = _npy_header(plan)
    pieces: list[Bytes] = []
    for i, trajectory in enumerate(states):
        key = f"{start + i:09d}"
        if labels is not None:
            pieces += _member(f"{key}.cls", str(labels[i]).encode())
        pieces += _member(f"{key}.json", json.dumps({"index": start + i, "seed": plan.seed}).encode())
        pieces += _member(f"{key}.states.npy", npy_header, little_endian(trajectory))
    # Every member before the first states is a block of 512 bytes behind its header.
    members = 1 + (labels is not None)
    offset = members * 2 * tarfile.BLOCKSIZE + tarfile.BLOCKSIZE + len(npy_header)
    stride = sum(map(len, pieces)) // len(states)
    length = stride * len(states) + 2 * tarfile.BLOCKSIZE
    pieces.append(bytes(2 * tarfile.BLOCKSIZE + -length % tarfile.RECORDSIZE))
    return pieces, offset, stride, []


def _npy_header(plan: Plan) -> bytes:
    """What stands before the numbers of a trajectory in an NPY file, version 1.0."""
    file = io.BytesIO()
    dtype = np.lib.format.dtype_to_descr(plan.stored_dtype.newbyteorder("<"))
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": plan.states_shape}
    )
    return file.getvalue()


def _member(name: str, *content: Bytes) -> list[Bytes]:
    """A file in a tar: its header, its content, and zeros up to a whole block."""
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, content))
    # Times and names of the machine would make the bytes differ from one run to the next.
    info.uname = info.gname = "hkdpipe"
    info.mode = 0o444
    return [info.tobuf(), *content, bytes(-info.size % tarfile.BLOCKSIZE)]
