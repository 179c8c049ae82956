import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from edm_fixtures import FAMILIES, OLDER
from torch import nn

from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.methods.kd.kd import KD
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import noise_levels, sigma_schedule

Randomise = Callable[[nn.Module], None]
ANY = {"edm": FAMILIES["ddpmpp"], **OLDER}


def teacher_of(arch: Architecture, randomise: Randomise) -> PreconditionedUNet:
    teacher = PreconditionedUNet(arch).requires_grad_(False).eval()
    randomise(teacher)
    if teacher.u is not None:
        teacher.u.copy_(torch.linspace(157, 0, len(teacher.u)))
    return teacher


@pytest.mark.parametrize("arch", ANY.values(), ids=ANY)
def test_untrained_student_is_the_teachers_denoiser(arch: Architecture, randomise: Randomise) -> None:
    """At the level at which trajectories start, and at any other; without its dropout and augmentations."""
    teacher = teacher_of(dataclasses.replace(arch, dropout=0.5, augment_dim=9, use_fp16=True), randomise)
    student = KD.from_teacher(teacher, None, sigma_min=0.002, sigma_max=70.03).train()
    noise, labels = torch.randn(3, 3, 16, 16), torch.eye(4)[:3]
    start = noise_levels(teacher, 5, 0.002, 70.03, 7.0)[0].item()
    assert torch.equal(student.sample(noise, labels), teacher(noise * start, start, labels))
    x, sigmas = noise * 2, torch.tensor([0.5, 2.0, 7.0])
    assert torch.equal(student(x, sigmas, labels), teacher(x, sigmas, labels))
    assert not torch.equal(student(x, sigmas, labels), teacher(x, sigmas, labels.flip(0)))


def test_only_the_start_is_read(network: PreconditionedUNet) -> None:
    drawn = KD.from_teacher(network).draw_states(0, np.arange(7), sigma_schedule(18).numpy())
    assert drawn.tolist() == [[0]] * 7


def test_loss_is_that_of_the_denoiser_at_the_start(network: PreconditionedUNet) -> None:
    student = KD.from_teacher(network)
    noise, ends = torch.randn(2, 4, 1, 8, 8)
    zeros = torch.zeros(4, 1, dtype=torch.int64)
    batch = Batch(noise[:, None] * 80, zeros, torch.full((4, 1), 80.0), ends)
    terms = student.loss(student, batch, Lesson(TrainingSettings(method="kd")))
    expected = nn.functional.mse_loss(network(noise * 80, 80.0), ends)
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("preconditioning", ANY)
def test_export_is_read_back_by_its_method(
    tmp_path: Path, arch: Architecture, preconditioning: str, randomise: Randomise
) -> None:
    teacher = teacher_of(dataclasses.replace(arch, preconditioning=preconditioning), randomise)
    student = KD.from_teacher(teacher, None, sigma_max=70.03)
    randomise(student)
    student.save(tmp_path / "export", {})
    read = load_model(tmp_path / "export")
    assert type(read) is KD
    assert read.config() == student.config()
    noise = torch.randn(2, 1, 8, 8)
    assert torch.equal(read.sample(noise), student.sample(noise))
