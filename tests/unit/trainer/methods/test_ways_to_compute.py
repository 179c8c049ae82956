"""Settings that change how fast a step is and how much memory it takes: the step itself stays what it is."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_kdm import TINY
from torch import Tensor, nn

from hkdpipe.trainer.loop.checkpoint import save_checkpoint, snapshot
from hkdpipe.trainer.loop.training_loop import LoopSettings, new_state, step
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdSettings
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.methods.kd.kd import KD
from hkdpipe.trainer.methods.kdm.kdm import KDM
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.edm.layers import UNetBlock

Randomise = Callable[[nn.Module], None]
Change = Callable[[nn.Module], None]
Students = Mapping[str, Student]
TRAINING = TrainingSettings(perceptual="none")
Relative = Callable[[Tensor, Tensor], float]
LOOP = LoopSettings(
    budget=100, batch_size=3, schedule="constant", checkpoint_every=100, keep_checkpoints=1, workers=0
)


@pytest.fixture
def students(student: HKD, network: PreconditionedUNet, randomise: Randomise) -> Students:
    """At work, by their methods."""
    kdm = KDM.from_teacher(network, KdmOptions(replace(TINY, operator="factorised")))
    randomise(kdm)
    return {"hkd": student, "kd": KD.from_teacher(network), "kdm": kdm}


def a_batch() -> Batch:
    """Each trajectory's start, a state in between and the last one, for the latent consistency."""
    sigmas = torch.tensor([[80.0, 5.0, 0.002]]).expand(3, -1)
    states = torch.randn(3, 3, 1, 8, 8) * sigmas[:, :, None, None, None]
    ends = torch.randn(3, 1, 8, 8)
    return Batch(states, torch.tensor([[0, 9, 17]]).expand(3, -1), sigmas, ends, None, np.arange(3))


def descend(student: Student, change: Change, steps: int = 2) -> Student:
    """The student after some steps of plain descent, computed in a way of its own."""
    model = copy.deepcopy(student).requires_grad_(True)
    change(model)
    state = new_state(model, torch.optim.SGD(model.parameters(), lr=0.01, fused=True), [0.5])

    def loss(module: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return model.loss(module, batch, Lesson(TRAINING, progress=progress))

    generator = torch.random.get_rng_state()
    for _ in range(steps):
        terms = step(state, [(1.0, a_batch())], loss, LOOP, 0.0, World())
        assert terms["loss"].isfinite()
    torch.random.set_rng_state(generator)
    return model


def with_latent_weight(student: Student, weight: float) -> Student:
    if isinstance(student, HKD):
        student.options = replace(student.options, hkd=HkdSettings(latent_weight=weight))
    return student


def weights(student: Student) -> Tensor:
    return torch.cat([value.detach().flatten() for value in student.parameters()])


def channels_last(student: nn.Module) -> None:
    student.to(memory_format=torch.channels_last)


def recompute(student: nn.Module) -> None:
    for module in student.modules():
        if isinstance(module, UNetBlock):
            module.recompute = True


@pytest.mark.parametrize(("method", "latent_weight"), [("hkd", 0.1), ("hkd", 0.0), ("kd", 0.0), ("kdm", 0.0)])
@pytest.mark.parametrize(("change", "tolerance"), [(channels_last, 1e-12), (recompute, 0.0)])
def test_steps_are_the_same(
    students: Students,
    relative: Relative,
    change: Change,
    tolerance: float,
    method: str,
    latent_weight: float,
) -> None:
    """In float64, beside whose roundings a wrong layout shows."""
    student = with_latent_weight(students[method].double(), latent_weight)
    plain, changed = (weights(descend(student, way)) for way in (lambda model: None, change))
    moved = plain - weights(student)
    assert moved.norm() > 0
    assert relative(changed - weights(student), moved) <= tolerance


@pytest.mark.parametrize("method", ["hkd", "kd", "kdm"])
def test_blocks_that_are_recomputed_keep_less(students: Students, method: str) -> None:
    """Bytes kept for the backward pass."""
    kept: dict[bool, int] = {}
    for again in (False, True):
        model = copy.deepcopy(students[method]).requires_grad_(True)
        if again:
            recompute(model)
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.predict(torch.randn(64, 1, 8, 8), torch.full((64,), 80.0))
        kept[again] = sum(sizes.values())
    assert kept[True] < 0.5 * kept[False]


def test_a_checkpoint_of_channels_last_is_like_any_other(student: HKD, tmp_path: Path) -> None:
    channels_last(student)
    state = new_state(student, torch.optim.SGD(student.parameters(), lr=0.1, fused=True), [0.5])
    path = save_checkpoint(tmp_path, snapshot(state), {}, 1)
    saved = load_file(path / "weights.safetensors")
    assert saved.keys() == student.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())


def test_evolution_is_in_float32_of_parameters_in_bfloat16() -> None:
    """The closed form in float64 of the parameters as they are; in their own precision it is 1e-3 off."""
    operator = KoopmanOperator(6, 3, 2)
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.copy_(torch.randn_like(parameter))
    operator.to(torch.bfloat16)
    z, dt = torch.randn(2, 6, 3, 2), torch.tensor([-0.7, 0.3])
    alpha, beta = operator.alpha.double(), operator.beta.double()
    generator = torch.complex(alpha, -beta)[None] * dt.double()[:, None, None, None]
    expected = torch.complex(*z.double().chunk(2, dim=1)) * generator.exp()
    found = torch.complex(*operator(z, dt).double().chunk(2, dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("latent_weight", [0.1, 0.0])
def test_compiled_steps_are_the_same(student: HKD, relative: Relative, latent_weight: float) -> None:
    with_latent_weight(student, latent_weight)
    plain = weights(descend(student, lambda model: None)) - weights(student)
    compiled = descend(student, lambda model: model.compile())
    assert relative(weights(compiled) - weights(student), plain) < 1e-4
    assert compiled.state_dict().keys() == student.state_dict().keys()


@pytest.mark.slow
def test_the_forward_pass_is_compiled_as_one_graph(student: HKD) -> None:
    student.requires_grad_(True)
    torch._dynamo.reset()
    found = torch._dynamo.explain(student)(torch.randn(2, 1, 8, 8), torch.tensor([80.0, 5.0]))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
