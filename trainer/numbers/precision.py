"""What rounding GPUs are allowed, and what is exact where the networks compute in half precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """In float32, or in its own type if that is better: for sums, and differences of what is nearly equal."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether GPUs may round what they multiply in float32 to TF32's 10 bits. Unless they are told, they do
    so in convolutions and not elsewhere."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
