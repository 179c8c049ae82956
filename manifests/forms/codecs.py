"""Between the numbers of a trajectory and what a file holds of them, its payload.

With a codec that is one Blosc buffer of shuffled bits: the same numbers give the same bytes wherever the
version of numcodecs is the same. Of quantised residuals it holds what each differs by from the next one, as
they change little from state to state.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.atomic_files import Bytes
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import little_endian

LEVELS = {"lz4": 9, "zstd": 2}
"""Blosc's level for each codec: of real trajectories, a higher one takes much longer for a few percent."""
_SIZES = struct.Struct("<4xI4xI")
"""Blosc's header: bytes of the content, and of header and all, among others."""


def pack(plan: Plan, trajectory: NDArray[Any]) -> Bytes:
    """The payload of a trajectory's numbers, (k, C, H, W) of `plan.stored_dtype`."""
    if plan.encoding == "quantised":
        trajectory = trajectory.copy()
        trajectory[1:-1] -= trajectory[2:]  # where that is beyond int16 it wraps, and back again
    data = little_endian(trajectory)
    if plan.codec == "none":
        return data
    from numcodecs import blosc

    blosc.use_threads = False  # threads put their parts in the order in which they are done
    level, size = LEVELS[plan.codec], plan.stored_dtype.itemsize
    payload: bytes = blosc.compress(data, plan.codec.encode(), level, blosc.BITSHUFFLE, 0, size)
    return payload


def unpack(plan: Plan, payload: bytes) -> NDArray[Any]:
    """The numbers of a trajectory, (k, C, H, W) of `plan.stored_dtype`. ValueError for another payload."""
    dtype = plan.stored_dtype.newbyteorder("<")
    if plan.codec == "none":
        return np.frombuffer(payload, dtype).reshape(plan.states_shape)
    from numcodecs import blosc

    trajectory = np.empty(plan.states_shape, dtype)
    # Blosc itself takes fewer numbers for an answer, and the header's word for where the payload ends.
    sizes = (trajectory.nbytes, len(payload))
    if len(payload) < _SIZES.size or _SIZES.unpack_from(payload) != sizes:
        raise ValueError(f"not {sizes[0]} bytes compressed to {sizes[1]}")
    blosc.use_threads = False  # the readers are threads already
    try:
        blosc.decompress(payload, trajectory)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if plan.encoding == "quantised":
        for state in range(len(trajectory) - 2, 0, -1):
            trajectory[state] += trajectory[state + 1]
    return trajectory
