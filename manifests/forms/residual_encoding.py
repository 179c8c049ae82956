"""The residual encoding: of a trajectory that starts at sigma_0 * n, the unit noise n is stored in place of
its first state, and r_t = x_t - sigma_t * n in place of each later one.

The residuals are of the images' magnitude at every noise level, so half precision holds them more exactly
than the states themselves, which reach hundreds; and n, which is rounded to half precision before sampling
starts, is held exactly. Quantised, residuals are multiples of 1 / `QUANTA`, held as int16, and n as the bits
of its half precision.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import decode, encode, finite

QUANTA = 1024
"""Steps of a quantised residual in 1; it reaches from -32 to 32."""
NOT_READ = -2
"""In place of a state's number: nothing. Two below the first state's, so that it precedes none."""


def decode_states(
    plan: Plan, states: NDArray[np.int64], stored: Callable[[NDArray[np.int64]], NDArray[Any]]
) -> NDArray[Any]:
    """States `states` (B, k) of B trajectories, (B, k, ...), from what is stored in either encoding.

    `stored` gives what is stored of given states (B, k), (B, k, ...); where the state is `NOT_READ`, any
    numbers. Residuals become states in float32.
    """
    if plan.encoding == "states":
        return decode(stored(states), plan.dtype)
    first = states == 0
    numbers = stored(np.insert(np.where(first, NOT_READ, states), 0, 0, axis=1))
    noise, residuals = numbers[:, :1], numbers[:, 1:]
    quantised = plan.encoding == "quantised"
    if quantised:
        noise = noise.view("<f2")
    levels = np.array(plan.sigmas, dtype=np.float32)[states]
    # Rounded to float32 after the product and after the sum.
    decoded = noise.astype(np.float32) * levels.reshape(*levels.shape, *[1] * (noise.ndim - 2))
    added = residuals.astype(np.float32)
    if quantised:
        added /= QUANTA
    added[first] = -0.0  # changes no number that it is added to
    decoded += added
    return decoded


def stored_noise(plan: Plan, noise: NDArray[np.floating]) -> NDArray[Any]:
    """What stands in place of the first state of trajectories of that unit noise (N, ...)."""
    scale = plan.sigmas[0] if plan.encoding == "states" else 1.0
    return encode(noise.astype(np.float64) * scale, plan.dtype).view(plan.stored_dtype)


def storable(plan: Plan, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the trajectories (N, k, ...), as they are stored, are finite throughout, (N,). Quantised, what
    int16 cannot hold is marked by a noise that is not finite."""
    return finite(stored[:, :1] if plan.encoding == "quantised" else stored, plan.dtype)
