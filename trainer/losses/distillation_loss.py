"""The distance d = lambda1 MSE + lambda2 perceptual of images, and its mean over the times (appendix D.4)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hkdpipe.trainer.losses.perceptual import Distance, difference
from hkdpipe.trainer.numbers.precision import exact
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.families import TeacherNetwork


@dataclass(frozen=True)
class Batch:
    """States of trajectories and where they end; as an archive stores them, or in float32 or better."""

    states: Tensor
    """(B, s, C, H, W)"""
    numbers: Tensor
    """(B, s): which ones of the stored states they are, 0 the start."""
    sigmas: Tensor
    """(B, s)"""
    ends: Tensor
    """(B, C, H, W)"""
    labels: Tensor | None = None
    """(B, label_dim), one-hot; None of an unconditional teacher."""
    positions: NDArray[np.int64] | None = None
    """(B,) in the sequence of samples: what a loss draws is a function of them. None outside of training."""
    real: Tensor | None = None
    """(B, C, H, W) in [-1, 1]: real images, of methods that learn from them."""
    real_labels: Tensor | None = None
    """(B, label_dim), one-hot: the classes of the real images; None where they are not known."""

    def to(self, device: torch.device) -> Batch:
        """On a device, and there in float32: fewer bytes go to it, and no thread that reads computes."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
        for name in {"states", "ends", "real"} & moved.keys():
            moved[name] = exact(moved[name])
        return dataclasses.replace(self, **moved)

    def flat(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Every state by itself: states (B s, C, H, W), sigmas (B s,) and labels (B s, label_dim)."""
        times = self.sigmas.shape[1]
        labels = None if self.labels is None else self.labels.repeat_interleave(times, dim=0)
        return self.states.flatten(0, 1), self.sigmas.flatten(), labels

    def with_states(self, which: slice) -> Batch:
        """With some of the s states alone."""
        chosen = {name: getattr(self, name)[:, which] for name in ("states", "numbers", "sigmas")}
        return dataclasses.replace(self, **chosen)

    def of_trajectories(self, which: NDArray[np.int64]) -> Batch:
        """Some of the B trajectories alone, by their rows."""
        rows = {name: value[which] for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **rows)


def mse_decay(progress: float, decades: float) -> float:
    """10^(-decades * progress), of lambda1: depends on the share of the budget seen, so resuming keeps it."""
    return float(10 ** (-decades * progress))


def time_weights(numbers: Tensor, between: float) -> Tensor:
    """Weights (B, s), float64: 1 of a start, which has number 0, `between` of the mean of the others."""
    others = between / max(1, numbers.shape[1] - 1)
    return torch.full_like(numbers, others, dtype=torch.float64).masked_fill(numbers == 0, 1.0)


def shares(batch: Batch, between_weight: float) -> Tensor:
    """What each of the B s states, those of a trajectory together, adds to a mean over the batch: (B s,)."""
    return (time_weights(batch.numbers, between_weight) / len(batch.numbers)).flatten()


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Of (N,) and (N,). A dot product is what autocast would compute in its low precision."""
    return (values * weights).sum()


@dataclass(frozen=True)
class Lesson:
    """What a step of a training has beside its batch."""

    training: TrainingSettings
    distance: Distance | None = None
    """The perceptual distance of the settings; None without one."""
    progress: float = 0.0
    """The share of the budget that was seen before the step."""
    teacher: TeacherNetwork | None = None
    """For methods that ask the teacher while they learn: frozen."""


def distillation_loss(
    model: nn.Module, batch: Batch, lesson: Lesson, between_weight: float = 1.0
) -> dict[str, Tensor]:
    """`image_terms` of the images that model(states, sigmas, labels) makes of every state of the batch. With
    one time per trajectory: d of that time. With s: d of the start plus the mean of the others."""
    states, sigmas, labels = batch.flat()
    images = model(states, sigmas, labels)
    return image_terms(images, batch.ends, shares(batch, between_weight), lesson)


def image_terms(images: Tensor, ends: Tensor, share: Tensor, lesson: Lesson) -> dict[str, Tensor]:
    """'loss', which is d, and its parts 'mse' and 'perceptual', unweighted.

    images (N, C, H, W), of one or more states of each trajectory, and the trajectories' ends (B, C, H, W);
    share (N,) is what each image adds to the sums, which are in float32 or better.
    """
    images, training = exact(images), lesson.training
    share = share.to(images)
    mse = weighted_sum((difference(images, ends.to(images)) ** 2).mean(dim=(1, 2, 3)), share)
    loss = training.mse_weight * mse_decay(lesson.progress, training.mse_decades) * mse
    terms = {"mse": mse}
    if lesson.distance is not None:
        terms["perceptual"] = weighted_sum(lesson.distance(images, ends).to(share), share)
        loss = loss + training.perceptual_weight * terms["perceptual"]
    return {"loss": loss, **terms}
