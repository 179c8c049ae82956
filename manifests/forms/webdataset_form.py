"""The WebDataset form: tar shards of `NNNNNNNNN.json` and `NNNNNNNNN.states.npy`, a pair for each trajectory;
compressed, `NNNNNNNNN.states.blosc`. With a conditional teacher `NNNNNNNNN.cls` holds the class of each, as a
decimal number.

Plain `webdataset.WebDataset` streams them. Every trajectory that is not compressed takes the same number of
bytes in the tar, so one offset and one stride find any of them.
"""

import io
import json
import tarfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.atomic_files import Bytes
from hkdpipe.manifests.places.shard_files import OpenFile
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

_SIZE = slice(124, 135)  # a member's length in its header: octal digits


def shard_file(k: int) -> str:
    """Where shard k lies, relative to the archive."""
    return f"shard-{k:06d}.tar"


def labels_file(plan: Plan, k: int) -> str:
    """'': the classes lie in the shard itself."""
    return ""


def metadata(plan: Plan) -> dict[str, bytes]:
    """None: tar shards need no files beside them."""
    return {}


def member(plan: Plan) -> str:
    """How the name of a trajectory's states ends."""
    return ".states.npy" if plan.codec == "none" else ".states.blosc"


def encode_shard(plan: Plan, k: int, payloads: Sequence[Bytes]) -> tuple[list[Bytes], list[Bytes]]:
    """A shard's file in pieces; and a file of the labels: [], as they are in the shard itself.

    `payloads` are those of the trajectories of shard k. The bytes depend on nothing else but the plan's seed
    and classes and k: those of webdataset's own writer, which takes several times as long.
    """
    start, stop = plan.shard_range(k)
    labels = plan.labels(range(start, stop))
    npy_header = _npy_header(plan)
    pieces: list[Bytes] = []
    for i, payload in enumerate(payloads):
        key = f"{start + i:09d}"
        if labels is not None:
            pieces += _member(f"{key}.cls", str(labels[i]).encode())
        pieces += _member(f"{key}.json", json.dumps({"index": start + i, "seed": plan.seed}).encode())
        pieces += _member(key + member(plan), npy_header, payload)
    length = sum(map(len, pieces)) + 2 * tarfile.BLOCKSIZE
    pieces.append(bytes(2 * tarfile.BLOCKSIZE + -length % tarfile.RECORDSIZE))
    return pieces, []


def spacing(plan: Plan) -> tuple[int, int]:
    """The offset of a shard's first trajectory, and the distance between two, where none is compressed."""
    start, header = _states_start(plan), len(_npy_header(plan))
    return start + header, start + _whole_blocks(header + plan.trajectory_bytes)


def find_payloads(plan: Plan, record: ShardRecord, file: OpenFile) -> NDArray[np.int64]:
    """Offset and length of each trajectory's payload in a shard's file, (n, 2). ValueError if it has none."""
    places = np.empty((record.stop - record.start, 2), dtype=np.int64)
    offset = 0
    for place in places:
        offset += _states_start(plan)
        length = int(file.read(tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)[_SIZE], 8)
        place[:] = offset, length
        offset += _whole_blocks(length)
    return places


def _states_start(plan: Plan) -> int:
    """Where a trajectory's states start behind the end of the trajectory before."""
    # Every member before them is a block of 512 bytes behind its header.
    members = 1 + bool(plan.classes)
    return (2 * members + 1) * tarfile.BLOCKSIZE


def _whole_blocks(size: int) -> int:
    return size + -size % tarfile.BLOCKSIZE


def _npy_header(plan: Plan) -> bytes:
    """What stands before the numbers of a trajectory in an NPY file, version 1.0; nothing if compressed."""
    if plan.codec != "none":
        return b""
    file = io.BytesIO()
    dtype = np.lib.format.dtype_to_descr(plan.stored_dtype.newbyteorder("<"))
    header = {"descr": dtype, "fortran_order": False, "shape": plan.states_shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _member(name: str, *content: Bytes) -> list[Bytes]:
    """A file in a tar: its header, its content, and zeros up to a whole block."""
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, content))
    # Times and names of the machine would make the bytes differ from one run to the next.
    info.uname = info.gname = "hkdpipe"
    info.mode = 0o444
    return [info.tobuf(), *content, bytes(-info.size % tarfile.BLOCKSIZE)]
