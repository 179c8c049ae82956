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

from hkdpipe.manifests.plan import Plan


def shard_file(k: int) -> str:
    """Where shard k lies, relative to the archive."""
    return f"shard-{k:06d}.tar"


def labels_file(plan: Plan, k: int) -> str:
    """'': the classes lie in the shard itself."""
    return ""


def metadata(plan: Plan) -> dict[str, bytes]:
    """None: tar shards need no files beside them."""
    return {}


def encode_shard(plan: Plan, k: int, states: NDArray[Any]) -> tuple[memoryview, int, int, None]:
    """A shard's file, the offset of its first trajectory's states and the distance between two.

    The last value, None, stands for a file of the labels, which are in the shard itself.
    `states` is (n, *plan.states_shape) of `plan.stored_dtype`, n the length of shard k. The bytes depend on
    nothing else but the plan's seed and classes and k.
    """
    from webdataset import TarWriter

    start, stop = plan.shard_range(k)
    classes = plan.labels(range(start, stop))
    buffer = io.BytesIO()
    # Times and names of the machine would make the bytes differ from one run to the next.
    with TarWriter(buffer, encoder=False, mtime=0, user="hkdpipe", group="hkdpipe", mode=0o444) as writer:
        for i, trajectory in enumerate(states):
            label = json.dumps({"index": start + i, "seed": plan.seed}).encode()
            sample = {"__key__": f"{start + i:09d}", "json": label, "states.npy": _npy(trajectory)}
            if classes is not None:
                sample["cls"] = str(classes[i]).encode()
            writer.write(sample)
    offset, stride = _layout(buffer, plan, k, len(states))
    return buffer.getbuffer(), offset, stride, None


def _npy(trajectory: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    little_endian = trajectory.astype(trajectory.dtype.newbyteorder("<"), order="C", copy=False)
    np.lib.format.write_array(file, little_endian, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _layout(buffer: io.BytesIO, plan: Plan, k: int, n: int) -> tuple[int, int]:
    """Offset and stride of the raw states as the tar's own directory gives them."""
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        members = [member for member in tar if member.name.endswith(".states.npy")]
    ends = [member.offset_data + member.size for member in members]
    offset = ends[0] - plan.trajectory_bytes
    # A shard of one trajectory has no distance; any that holds the states will do.
    stride = ends[1] - ends[0] if n > 1 else plan.trajectory_bytes
    if len(ends) != n or any(end != ends[0] + i * stride for i, end in enumerate(ends)):
        raise RuntimeError(
            f"this version of webdataset lays out shard {k} differently from what hkdpipe reads"
        )
    return offset, stride
