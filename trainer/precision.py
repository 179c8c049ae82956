"""Where the networks compute in half precision, what must not."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """In float32, or in its own type if that is better: for sums, and differences of what is nearly equal."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
