"""What the Koopman operators of a trained student do: their skill, their size, the student without them."""

import copy
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.whitebox.spectrum import pair_eigenvalues

AT_ONCE = 64
"""Trajectories, whose observables are larger than the images they are of."""

WITHOUT_EVOLUTION = "_without_evolution"
"""Ends the names of what is measured with A = 0."""


def has_operator(student: Student) -> TypeGuard[HKD]:
    """Whether there is an A that could be at work."""
    return isinstance(student, HKD) and len(student.koopman) > 0


@torch.no_grad()
def koopman_skill(
    model: HKD, states: Tensor, sigmas: Sequence[float], labels: Tensor | None = None
) -> dict[int, list[float]]:
    """1 - |exp(A dt) E(x_t) - E(x_end)|^2 / |E(x_t) - E(x_end)|^2 of every stored state but the last of them.

    `states` (N, n, C, H, W) are those of N trajectories at the noise levels `sigmas`, which decrease and are
    above 0; the last one is the end. By level, which is the height of its tensors, finest first; the squares
    are summed over trajectories and over the tensors of a level. 1: evolving leads to the observables of the
    end; 0: it is no better than leaving them as they are, as without an operator (which gives exactly 0).
    """
    levels = list(dict.fromkeys(height for _, height, _ in model.shapes))
    errors, changes = np.zeros((2, len(sigmas) - 1, len(levels)))
    for start in range(0, len(states), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        of_states = _errors_and_changes(model, states[some], sigmas, None if labels is None else labels[some])
        for state, (error, change) in enumerate(of_states):
            errors[state] += [error[level] for level in levels]
            changes[state] += [change[level] for level in levels]
    return dict(zip(levels, (1 - errors / changes).T.tolist(), strict=True))


def _errors_and_changes(
    model: HKD, states: Tensor, sigmas: Sequence[float], labels: Tensor | None
) -> Iterator[tuple[dict[int, float], dict[int, float]]]:
    """Both squares of the skill, by level, of every stored state but the last of them."""

    def observables(state: int) -> list[Tensor]:
        return model.encode(states[:, state], states.new_full((len(states),), sigmas[state]), labels)

    end, targets = states.new_tensor([sigmas[-1]]), observables(len(sigmas) - 1)
    for state, sigma in enumerate(sigmas[:-1]):
        observed = observables(state)
        reached = model.evolve(observed, states.new_tensor([sigma]), end)
        yield squared_errors(reached, targets), squared_errors(observed, targets)


def squared_errors(one: Sequence[Tensor], other: Sequence[Tensor]) -> dict[int, float]:
    """|one - other|^2 by level, which is the height of its tensors."""
    sums: dict[int, float] = {}
    for a, b in zip(one, other, strict=True):
        sums[a.shape[2]] = sums.get(a.shape[2], 0.0) + float((a - b).double().square().sum())
    return sums


def without_evolution(model: HKD) -> HKD:
    """A copy with A = 0, whose observables stay as they are."""
    idle = copy.deepcopy(model)
    with torch.no_grad():
        for operator in idle.koopman.values():
            assert isinstance(operator, KoopmanOperator)
            operator.alpha.zero_()
            operator.beta.zero_()
    return idle


def largest_eigenvalues(model: HKD) -> dict[int, tuple[float, float]]:
    """The largest |alpha| and |beta| of every level that has an operator, by the height of its tensors."""
    largest: dict[int, tuple[float, float]] = {}
    for number, eigenvalues in pair_eigenvalues(model).items():
        level = model.shapes[number][1]
        alpha, beta = (float(part.abs().max()) for part in eigenvalues)
        known = largest.get(level, (0.0, 0.0))
        largest[level] = (max(alpha, known[0]), max(beta, known[1]))
    return largest
