"""Between two tensors."""

import torch
from torch import Tensor


def linear(one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """(K, *S) from `one` (*S) at weight 0 to `other` at weight 1, for weights (K,)."""
    weights = weights.reshape(-1, *[1] * one.ndim)
    return (1 - weights) * one + weights * other


def spherical(one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """The same along the great circle, so that what lies between two noises is as large as they are. `one`
    and `other` must not be parallel."""
    cosine = torch.nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0)
    angle = torch.acos(cosine.clamp(-1, 1)).to(one.dtype)
    weights = weights.reshape(-1, *[1] * one.ndim)
    return (torch.sin((1 - weights) * angle) * one + torch.sin(weights * angle) * other) / torch.sin(angle)
