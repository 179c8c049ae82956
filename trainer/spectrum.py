"""The eigenvalues of a trained student's Koopman operators."""

from __future__ import annotations

import torch
from torch import Tensor

from hkdpipe.trainer.koopman import KoopmanOperator
from hkdpipe.trainer.methods.hkd import HKD


@torch.no_grad()
def pair_eigenvalues(model: HKD) -> dict[int, tuple[Tensor, Tensor]]:
    """alpha and beta of every pair of channels at every location, (C/2, H, W) each.

    By the number of the observable (as in HKD.shapes), of those that have an operator, in that order.
    """
    found = {}
    for name, operator in model.koopman.items():
        assert isinstance(operator, KoopmanOperator)
        channels, height, width = model.shapes[int(name)]
        alpha, beta = (part.expand(channels // 2, height, width) for part in operator.eigenvalues())
        found[int(name)] = (alpha, beta)
    return found
