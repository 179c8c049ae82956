"""Where the networks compute in half precision, what must not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """In float32, or in its own type if that is better: for sums, and differences of what is nearly equal."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 as it is: GPUs round what they multiply to TF32's 10 bits unless they are told not to."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
