"""The distillation loss d = lambda1 MSE + lambda2 perceptual, and how the times share it (appendix D.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hkdpipe.trainer.perceptual import Distance
from hkdpipe.trainer.settings import TrainingSettings


@dataclass(frozen=True)
class Batch:
    """States of trajectories and where they end."""

    states: Tensor
    """(B, s, C, H, W)"""
    sigmas: Tensor
    """(B, s)"""
    ends: Tensor
    """(B, C, H, W)"""
    labels: Tensor | None = None
    """(B, label_dim), one-hot; None of an unconditional teacher."""

    def to(self, device: torch.device) -> Batch:
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(self.states.to(device), self.sigmas.to(device), self.ends.to(device), labels)


def mse_weight(progress: float, decades: float) -> float:
    """lambda1 = 10^(-decades * progress): depends on the share of the budget seen, so resuming keeps it."""
    return float(10 ** (-decades * progress))


def time_weights(times: int) -> Tensor:
    """Weights (s,) of a trajectory's times: 1 for the start, 1/(s-1) for each time in between."""
    weights = torch.ones(times)
    weights[1:] = 1 / max(1, times - 1)
    return weights


def distillation_loss(
    model: nn.Module, batch: Batch, distance: Distance | None, training: TrainingSettings, progress: float
) -> dict[str, Tensor]:
    """Means over the batch: 'loss' to descend and its parts 'mse' and 'perceptual', unweighted.

    With one time per trajectory: d of that time. With s: d of the start plus the mean of the others.
    """
    count, times = batch.sigmas.shape
    ends = batch.ends.repeat_interleave(times, dim=0)
    labels = None if batch.labels is None else batch.labels.repeat_interleave(times, dim=0)
    images = model(batch.states.flatten(0, 1), batch.sigmas.flatten(), labels)
    share = (time_weights(times).to(images) / count).repeat(count)
    mse = ((images - ends.to(images)) ** 2).mean(dim=(1, 2, 3)) @ share
    loss = mse_weight(progress, training.mse_decades) * mse
    terms = {"mse": mse}
    if distance is not None:
        terms["perceptual"] = distance(images, ends).to(share) @ share
        loss = loss + training.perceptual_weight * terms["perceptual"]
    return {"loss": loss, **terms}
