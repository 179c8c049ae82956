"""The eigenvalues of a trained student's Koopman operators."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator


@torch.no_grad()
def pair_eigenvalues(model: HKD) -> dict[int, tuple[Tensor, Tensor]]:
    """alpha and beta of every pair of channels at every location, (C/2, H, W) each. By the number of the
    observable (as in HKD.shapes), of those that have an operator, in that order."""
    eigenvalues = {}
    for name, operator in model.koopman.items():
        assert isinstance(operator, KoopmanOperator)
        channels, height, width = model.shapes[int(name)]
        alpha, beta = (part.expand(channels // 2, height, width) for part in operator.eigenvalues())
        eigenvalues[int(name)] = (alpha, beta)
    return eigenvalues


@dataclass(frozen=True)
class LevelSpectrum:
    """The pairs of all tensors of one level: (P, H, W) each, on the CPU."""

    alpha: Tensor
    beta: Tensor

    def propagator(self, dt: float) -> Tensor:
        """Of each pair the eigenvalue exp((alpha + i beta) dt) of exp(A dt); the other is its conjugate."""
        return torch.exp(torch.complex(self.alpha.double(), self.beta.double()) * dt)


def level_spectra(model: HKD) -> dict[int, LevelSpectrum]:
    """By level, which is the height of its tensors, finest first; of those that have an operator."""
    by_level: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for number, (alpha, beta) in pair_eigenvalues(model).items():
        by_level.setdefault(model.shapes[number][1], []).append((alpha.cpu(), beta.cpu()))
    return {
        level: LevelSpectrum(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        for level, pairs in by_level.items()
    }


def whole_evolution(model: HKD) -> float:
    """dt from the start of a trajectory to its end, in the time of the evolution: negative."""
    start, end = (torch.tensor([sigma], dtype=torch.float64) for sigma in (model.sigma_max, model.sigma_min))
    return float(model.tau(end) - model.tau(start))
