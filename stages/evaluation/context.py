"""What the measurements of one evaluation share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.archive.reader import Archive
from hkdpipe.manifests.ground import rng
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.shared.reporting import Reporter, heed
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.sampler import edm_generators, evaluations, following_noise, sample_trajectory
from hkdpipe.trainer.teachers.teacher import Teacher

STUDENT = "student"
"""The name of its rows."""
Draw = Callable[[int], Tensor]
"""Unit noise (N, C, H, W) of a student's step, 1 the second one."""
Sampler = Callable[[Tensor, Tensor | None, Draw], Tensor]
"""Unit noise (N, C, H, W) and labels (N, label_dim), None of an unconditional teacher, to images."""


def sampler_of(model: Student, steps: int = 1) -> Sampler:
    """A student's, which may be folded."""

    def sample(noise: Tensor, labels: Tensor | None, draw: Draw | None = None) -> Tensor:
        return model.sample(noise, labels, steps, draw)

    return sample


@dataclass(frozen=True)
class Context:
    teacher: Teacher
    student: Student
    archive: Archive
    validation: int
    settings: EvaluationSettings
    out: Path
    device: torch.device
    reporter: Reporter
    stop: Callable[[], bool]
    check_owned: Callable[[], None]
    """Called before a result is written: raises where the folder is another process's now."""
    first: bool = True
    """False for a process that helps another one to compute features, and writes nothing else."""

    def check_stop(self) -> None:
        heed(self.stop, "the rows measured so far are kept")

    @property
    def solver(self) -> str:
        """Of the teacher's sampler."""
        return str(self.archive.plan.sampler["solver"])

    @property
    def predicted(self) -> int:
        """How many of the stored states the student predicts from: all but the end, or the start alone."""
        return len(self.archive.sigmas) - 1 if self.student.between else 1

    def students(self, folded: bool = True) -> list[tuple[str, int, Sampler]]:
        """Name, network evaluations and sampler of the student, for each number of its steps."""
        return [
            (STUDENT, steps, sampler_of(self.student.folded(steps) if folded else self.student, steps))
            for steps in self.settings.student_steps
        ]

    def given(self, start: int, stop: int) -> tuple[Tensor, Tensor | None, Draw]:
        """What a sampler makes these images of."""
        shape, seed = self.student.image_shape, self.settings.seed

        def draw(step: int) -> Tensor:
            values = rng.unit_noise(seed, f"evaluation-step-{step}", range(start, stop), shape)
            return torch.from_numpy(values).to(self.device)

        return self.noise(start, stop), self.told(self.classes(start, stop)), draw

    def noise(self, start: int, stop: int) -> Tensor:
        return evaluation_noise(self.settings, start, stop, self.student.image_shape, self.device)

    def classes(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """The classes (N,) asked for with that noise, drawn of those trained on; None without classes."""
        return evaluation_classes(self.settings, start, stop, self.archive.plan.classes)

    def told(self, classes: NDArray[np.int64] | None) -> Tensor | None:
        """Class numbers as the networks take them."""
        return one_hot(classes, self.archive.plan.label_dim, self.device)

    def teacher_images(
        self, noise: Tensor, labels: Tensor | None, draw: Draw | None = None, *, steps: int, solver: str = ""
    ) -> Tensor:
        """The teacher's own samples, by the archive's solver or another one; no noise is drawn."""
        sampler = {**self.archive.plan.sampler, "steps": steps, "solver": solver or self.solver}
        end, _ = sample_trajectory(self.teacher, noise, labels=labels, **sampler, keep=[steps])
        return end[0]

    def whole_sampler(self) -> tuple[Sampler, int]:
        """The teacher's sampler that made the archive, and its network evaluations."""
        steps = self.archive.plan.sampler["steps"]
        return functools.partial(self.teacher_images, steps=steps), evaluations(steps, self.solver)


def evaluation_noise(
    settings: EvaluationSettings, start: int, stop: int, shape: tuple[int, int, int], device: torch.device
) -> Tensor:
    """The evaluation's unit noise of these images, which no archive and no other sampling uses."""
    if settings.edm_seeds:
        generators = edm_generators(settings.seed, range(start, stop), device)
        return following_noise(generators, shape, torch.float32)
    values = rng.unit_noise(settings.seed, "evaluation", range(start, stop), shape)
    return torch.from_numpy(values).to(device)


def evaluation_classes(
    settings: EvaluationSettings, start: int, stop: int, known: tuple[int, ...]
) -> NDArray[np.int64] | None:
    """The classes (N,) asked for of these images, drawn of those known; None without classes."""
    if not known:
        return None
    return rng.choice(settings.seed, "evaluation-labels", range(start, stop), known)
