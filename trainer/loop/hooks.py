"""What happens in every training step beside the descent: clipping, averages, targets that follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hkdpipe.trainer.loop.checkpoint import TrainingState


class Hook:
    """Does nothing at either place; a hook overrides what it is for. All processes call the same hooks."""

    def before_step(self, parameters: Sequence[Tensor], norm: Tensor) -> None:
        """With the gradients of the whole batch, and their norm; `parameters` are those that have one."""

    def after_step(self, state: TrainingState[Any]) -> None:
        """Once the optimiser has moved the weights; `state.step` still counts the steps before this one."""


@dataclass(frozen=True)
class ClipGradient(Hook):
    """No gradient is longer than `longest`."""

    longest: float

    def before_step(self, parameters: Sequence[Tensor], norm: Tensor) -> None:
        nn.utils.clip_grads_with_norm_(parameters, self.longest, norm)


@dataclass(frozen=True)
class AfterStep(Hook):
    """Calls `call` with the number of the step, from 1."""

    call: Callable[[int], None]

    def after_step(self, state: TrainingState[Any]) -> None:
        self.call(state.step + 1)


@dataclass(frozen=True)
class AverageWeights(Hook):
    """The averages of the state follow its weights."""

    @torch.no_grad()
    def after_step(self, state: TrainingState[Any]) -> None:
        """ema <- decay * ema + (1 - decay) * model for parameters, a copy for buffers."""
        for ema, average in state.averages.items():
            decay = average_decay(ema, state.step)
            torch._foreach_lerp_(list(average.parameters()), list(state.model.parameters()), 1 - decay)
            for kept, buffer in zip(average.buffers(), state.model.buffers(), strict=True):
                kept.copy_(buffer)


def average_decay(ema: float, step: int) -> float:
    """Decay of the average at a step (counted from 0): short at first, so that the start is forgotten."""
    return min(ema, (1 + step) / (10 + step))
