"""Sampled trajectories as an archive stores them, computed where they were sampled."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.forms.residual_encoding import QUANTA
from hkdpipe.manifests.plan.plan import Plan

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}


def stored_numbers(states: Tensor, noise: Tensor, plan: Plan) -> NDArray[Any]:
    """What the archive stores of trajectories (N, k, C, H, W), float64, and their unit noise (N, C, H, W), in
    `plan.stored_dtype`: the same as `manifests` would make of it."""
    if plan.encoding != "states":
        levels = torch.tensor(plan.sigmas, dtype=torch.float32, device=states.device)
        # Less the very product, in float32, that readers add.
        states = states - levels[:, None, None, None] * noise.float()[:, None]
        states[:, 0] = noise
    if plan.encoding == "quantised":
        return _quantised(states[:, 1:] * QUANTA, noise)
    stored = states.to(_DTYPES[plan.dtype]).contiguous().cpu()
    return (stored.view(torch.uint16) if plan.dtype == "bfloat16" else stored).numpy()


def _quantised(residuals: Tensor, noise: Tensor) -> NDArray[Any]:
    """Residuals (N, k - 1, C, H, W) in steps, rounded to int16, behind the bits of their noise as float16:
    NaN where int16 cannot hold all of a trajectory, which is refused when it is written."""
    held = (residuals.abs() < 2**15 - 1).flatten(1).all(dim=1)
    bits = noise.half().where(held[:, None, None, None], torch.nan).view(torch.int16)
    return torch.cat([bits[:, None], residuals.round().to(torch.int16)], dim=1).cpu().numpy()
