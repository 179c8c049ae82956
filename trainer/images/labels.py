"""Class numbers as the networks take them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def one_hot(
    classes: NDArray[np.int64] | None, label_dim: int, device: torch.device | str = "cpu"
) -> Tensor | None:
    """Class numbers (N,), each in 0 … label_dim-1, as float32 (N, label_dim); None for None (no classes)."""
    if classes is None:
        return None
    return F.one_hot(torch.from_numpy(classes).to(device), label_dim).float()
