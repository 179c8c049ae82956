import dataclasses
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.generation.generate import make_plan, sample_shard
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import sigma_schedule
from hkdpipe.trainer.teachers.teacher import Teacher

SETTINGS = GenerationSettings(count=3, steps=6, shard_size=3, batch_size=2)


def teacher(about: dict[str, Any] | None = None, **limits: float) -> Teacher:
    arch = Architecture(8, 1, model_channels=16, channel_mult=(1,), num_blocks=1, **limits)
    return Teacher(PreconditionedUNet(arch), "somewhere", about or {})


def test_the_noise_levels_are_those_that_the_network_allows() -> None:
    plan = make_plan(teacher(sigma_min=0.02, sigma_max=50.0), SETTINGS)
    assert plan.schedule == {"sigma_min": 0.02, "sigma_max": 50.0, "rho": 7.0}
    assert plan.sigmas == tuple(sigma_schedule(6, 0.02, 50.0).tolist())


def test_stored_steps_name_their_noise_levels() -> None:
    plan = make_plan(teacher(), dataclasses.replace(SETTINGS, store_steps=(0, 2, 6), solver="euler"))
    assert plan.sigmas == tuple(sigma_schedule(6)[[0, 2, 6]].tolist())
    assert plan.sampler["solver"] == "euler"


@pytest.mark.parametrize(
    ("own", "given", "expected"), [("CC0", "other", "CC0"), ("", "other", "other"), (None, "", "")]
)
def test_the_licence_that_a_teacher_names_wins(own: str | None, given: str, expected: str) -> None:
    about = {} if own is None else {"licence": own}
    assert make_plan(teacher(about), SETTINGS, given).teacher["licence"] == expected


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_the_states_of_stored_steps_are_those_of_the_whole_trajectory(solver: str) -> None:
    def denoiser(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        return x / (2 + sigma**2)

    def states(store_steps: tuple[int, ...]) -> NDArray[Any]:
        settings = dataclasses.replace(SETTINGS, store_steps=store_steps, solver=solver)
        plan: Plan = make_plan(teacher(), settings)
        pieces = sample_shard(cast(Teacher, denoiser), plan, 0, torch.device("cpu"))
        return np.concatenate(list(pieces))

    assert np.array_equal(states((0, 1, 4, 6)), states(())[:, [0, 1, 4, 6]])
