"""The latent consistency of HKD, and the gradients of its loss in the operators."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.loop.training_loop import LOG_EVERY
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson, distillation_loss
from hkdpipe.trainer.methods.hkd.hkd import HKD, latent_error
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings, KoopmanSettings, check_options
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import sigma_schedule

Relative = Callable[[Tensor, Tensor], float]
SIGMAS = sigma_schedule(6)
TRAINING = TrainingSettings(perceptual="none", mse_decades=0.0)
HOW = HkdSettings(latent_weight=0.7, times=2)


def batch_of(numbers: list[list[int]]) -> Batch:
    """Trajectories that are straight lines from noise to an image, in float64; the last state follows."""
    which = torch.tensor([[*row, 5] for row in numbers])
    ends, noise = torch.rand(2, len(which), 1, 8, 8, dtype=torch.float64) * 2 - 1
    sigmas = SIGMAS[which]
    return Batch(ends[:, None] + sigmas[:, :, None, None, None] * noise[:, None], which, sigmas, ends)


@pytest.fixture
def working(student: HKD) -> HKD:
    """A student in float64 whose operators are at work."""
    student.options = dataclasses.replace(student.options, hkd=HOW)
    return student.double().requires_grad_(True)


def loss_of(student: HKD, batch: Batch, batch_size: int = 256, **changes: Any) -> dict[str, Tensor]:
    before = student.options
    student.options = dataclasses.replace(before, hkd=dataclasses.replace(HOW, **changes))
    terms = student.loss(student, batch, Lesson(dataclasses.replace(TRAINING, batch_size=batch_size)))
    student.options = before
    return terms


def test_latent_error_is_the_relative_square_of_each_tensor() -> None:
    random = np.random.default_rng(0)
    shapes = [(3, 4, 2, 2), (3, 6, 1, 1)]
    found, target = ([random.normal(size=shape) for shape in shapes] for _ in range(2))
    expected = [
        np.mean([((a[n] - b[n]) ** 2).sum() / (b[n] ** 2).sum() for a, b in zip(found, target, strict=True)])
        for n in range(3)
    ]
    error = latent_error(*([torch.from_numpy(z) for z in side] for side in (found, target)))
    np.testing.assert_allclose(error, expected, rtol=1e-12)
    # Each tensor counts the same, however large its values are.
    scaled = latent_error([torch.from_numpy(z) * 9 for z in found], [torch.from_numpy(z) * 9 for z in target])
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)


@pytest.mark.parametrize("numbers", [[[0, 3], [0, 1], [0, 5]], [[0], [2], [5]]])
def test_consistency_is_the_sum_written_out(working: HKD, numbers: list[list[int]]) -> None:
    batch = batch_of(numbers)
    terms = loss_of(working, batch, times=len(numbers[0]))
    level = SIGMAS[5:6]
    expected = 0.0
    for row, states in enumerate(numbers):
        target = working.encode(batch.states[row, -1:], level)
        for column, number in enumerate(states):
            sigma = SIGMAS[number : number + 1]
            z = working.evolve(working.encode(batch.states[row, column : column + 1], sigma), sigma, level)
            errors = [
                (one - other).square().sum() / other.square().sum()
                for one, other in zip(z, target, strict=True)
            ]
            share = 1 if number == 0 else 1 / max(1, len(states) - 1)
            expected += share * torch.stack(errors).mean().item() / len(numbers)
    assert terms["latent"].item() == pytest.approx(expected, rel=1e-9)
    drawn = batch.with_states(slice(-1))
    images = distillation_loss(working, drawn, Lesson(TRAINING))
    assert terms["mse"].item() == pytest.approx(images["mse"].item(), rel=1e-9)
    assert terms["loss"].item() == pytest.approx((images["loss"] + 0.7 * expected).item(), rel=1e-9)


def test_no_error_at_the_last_state_itself(working: HKD) -> None:
    assert loss_of(working, batch_of([[5], [5]]), times=1)["latent"].item() == 0


def test_target_has_no_gradient(working: HKD) -> None:
    """The gradient is that towards the observables of a frozen copy of the student."""
    batch = batch_of([[0, 3], [0, 1]])
    loss_of(working, batch)["latent"].backward()
    found = [parameter.grad for parameter in working.encoder.parameters()]
    frozen = copy.deepcopy(working).requires_grad_(False)
    sigma = batch.sigmas[:, :-1].flatten()
    z = working.observe(batch.states[:, :-1].flatten(0, 1), sigma)
    targets = frozen.observe(batch.states[:, -1], batch.sigmas[:, -1])
    repeated = [target.repeat_interleave(2, dim=0) for target in targets]
    expected = torch.autograd.grad(latent_error(z, repeated).sum() / 2, list(working.encoder.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_target_of_a_state_above_sigma_min_is_evolved_to_it(working: HKD) -> None:
    """As where the archive leaves out the last state before the end."""
    batch = batch_of([[0]])
    batch.sigmas[:, -1] = 3.0
    z = working.observe(batch.states[:, 0], batch.sigmas[:, 0])
    target = working.evolve(
        working.encode(batch.states[:, 1], batch.sigmas[:, 1]), SIGMAS[:1] * 0 + 3, SIGMAS[5:6]
    )
    error = loss_of(working, batch, times=1)["latent"].item()
    assert error == pytest.approx(latent_error(z, target).item(), rel=1e-9)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_every_fourth_trajectory_stands_for_the_others(working: HKD, batch_size: int) -> None:
    """By position, in steps of up to 64: four shifted batches compare all, parts of a batch what it does."""
    batch = batch_of([[0, 3], [0, 1], [0, 4], [0, 2], [0, 1], [0, 3]])

    def latent(first: int, rows: slice) -> Tensor:
        placed = dataclasses.replace(batch, positions=np.arange(first, first + 6))
        chosen = placed.of_trajectories(np.arange(6)[rows])
        return len(chosen.ends) / 6 * loss_of(working, chosen, batch_size=batch_size)["latent"]

    whole = [latent(first, slice(None)) for first in range(8, 12)]
    torch.testing.assert_close(torch.stack(whole).mean(), loss_of(working, batch)["latent"])
    fifth = batch.of_trajectories(np.array([3]))
    torch.testing.assert_close(whole[1], 4 / 6 * loss_of(working, fifth)["latent"])
    for first, found in enumerate(whole, 8):
        torch.testing.assert_close(latent(first, slice(4)) + latent(first, slice(4, None)), found)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 6])
def test_no_batch_is_so_small_that_its_operators_do_not_learn(working: HKD, batch_size: int) -> None:
    working.options = HkdOptions()
    batch = batch_of([[0, 3]] * batch_size)
    for step in (3, 7, 11, 15):
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        terms = loss_of(working, dataclasses.replace(batch, positions=positions), batch_size=batch_size)
        assert terms["latent"] > 0


def test_a_part_without_compared_trajectories_gives_the_operators_no_gradient(working: HKD) -> None:
    """But one of zero, as the processes of a training add up all gradients."""
    working.options = HkdOptions()
    batch = dataclasses.replace(batch_of([[0, 3], [0, 1]]), positions=np.array([49, 50]))
    terms = loss_of(working, batch, batch_size=16)
    assert terms["latent"] == 0
    terms["loss"].backward()
    for parameter in working.koopman.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_gradient_of_the_consistency_in_closed_form(relative: Relative) -> None:
    """With y = exp(A dt) z and e = y - t: d|e|^2/d alpha = 2 dt e . y, d|e|^2/d beta = 2 dt e . J y, where J
    turns a pair (real, imaginary) into (imaginary, -real)."""
    operator = KoopmanOperator(6, 3, 2).double()
    with torch.no_grad():
        operator.alpha.uniform_(-1, 1)
        operator.beta.uniform_(-3, 3)
    z, target = torch.randn(2, 4, 6, 3, 2, dtype=torch.float64)
    dt = torch.tensor([-1.0, -0.4, 0.0, 0.3], dtype=torch.float64)
    latent_error([operator(z, dt)], [target]).sum().backward()
    alpha, beta = np.zeros((3, 3, 2)), np.zeros((3, 3, 2))
    scale, turn = (values.detach().numpy() for values in (operator.alpha, operator.beta))
    for n, (state, end) in enumerate(zip(z.numpy(), target.numpy(), strict=True)):
        step = float(dt[n])
        factor = np.exp((scale - 1j * turn) * step)
        evolved = factor * (state[:3] + 1j * state[3:])
        error = evolved - (end[:3] + 1j * end[3:])
        alpha += 2 * step * (error.conj() * evolved).real / (end**2).sum()
        beta += 2 * step * (error.conj() * (-1j * evolved)).real / (end**2).sum()
    assert operator.alpha.grad is not None
    assert operator.beta.grad is not None
    assert relative(operator.alpha.grad, torch.from_numpy(alpha)) < 1e-12
    assert relative(operator.beta.grad, torch.from_numpy(beta)) < 1e-12


def absolute_error(a: Tensor, b: Tensor) -> Tensor:
    return (a - b.repeat_interleave(len(a) // len(b), dim=0)).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("part", ["alpha", "beta"])
@pytest.mark.parametrize("latent_weight", [0.0, 0.7])
def test_gradients_of_the_loss_in_the_operators_match_finite_differences(
    working: HKD, part: str, latent_weight: float
) -> None:
    """Of the whole loss, in float64, along random directions of each tensor's parameters."""
    batch = batch_of([[0, 3], [0, 1]])
    hkd = HkdSettings(latent_weight=latent_weight, times=2)
    working.options = dataclasses.replace(working.options, hkd=hkd)
    if not latent_weight:
        batch = batch.with_states(slice(-1))

    def value() -> Tensor:
        return working.loss(working, batch, Lesson(TrainingSettings(), absolute_error, 0.4))["loss"]

    value().backward()
    for name, operator in working.koopman.items():
        parameter = getattr(operator, part)
        direction = torch.randn_like(parameter)
        expected = (parameter.grad * direction).sum().item()
        sides = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                parameter += step * direction
                sides.append(value().item())
        with torch.no_grad():
            parameter += 1e-5 * direction
        found = (sides[0] - sides[1]) / 2e-5
        assert math.isfinite(expected)
        assert expected != 0
        assert found == pytest.approx(expected, rel=1e-5), f"tensor {name}"


@pytest.mark.parametrize("times", [1, 4])
def test_last_state_is_read_where_the_consistency_needs_it(student: HKD, times: int) -> None:
    positions, drawn = np.arange(300), []
    for weight in (0.0, 0.1):
        student.options = HkdOptions(HkdSettings(times=times, latent_weight=weight))
        drawn.append(student.draw_states(0, positions, SIGMAS.numpy()))
    assert [states.shape for states in drawn] == [(300, times), (300, times + 1)]
    assert np.array_equal(drawn[0], drawn[1][:, :-1])
    assert (drawn[1][:, -1] == 5).all()


def test_consistency_needs_states_in_between() -> None:
    check_options(
        HkdOptions(HkdSettings(latent_weight=0.0), KoopmanSettings(learns_from="all")), "there are none"
    )
    check_options(HkdOptions(HkdSettings(latent_weight=0.5)))
    told = r'latent_weight: got 0\.5; accepted: 0, with learns_from = "all", as there are none'
    with pytest.raises(UsageError, match=told):
        check_options(HkdOptions(HkdSettings(latent_weight=0.5)), "there are none")


def apart_settings(student: HKD, learns_from: str) -> KoopmanSettings:
    return dataclasses.replace(student.options.koopman, learns_from=learns_from)


def gradients(student: HKD, value: Tensor) -> dict[str, Tensor]:
    named = dict(student.named_parameters())
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def test_operators_that_learn_from_the_latents_alone(working: HKD) -> None:
    """Their gradient is the latent term's, that of the networks the images'; the terms are the same."""
    batch = batch_of([[0, 2], [0, 4]])
    together = loss_of(working, batch)
    of_latent, of_images = (gradients(working, together[name]) for name in ("latent", "mse"))
    working.options = dataclasses.replace(working.options, koopman=apart_settings(working, "latent"))
    apart = loss_of(working, batch)
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, rtol=1e-12, atol=0)
    found = gradients(working, apart["loss"])
    assert found.keys() == of_images.keys()
    for name, grad in found.items():
        expected = 0.7 * of_latent[name] if name.startswith("koopman") else of_images[name]
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)
        assert grad.abs().max() > 0


def test_operators_that_learn_alone_do_so_in_every_fourth_step(working: HKD) -> None:
    """In the other steps nothing but the images' loss is computed, and Adam passes over the operators."""
    batch = batch_of([[0, 2], [0, 4], [0, 1], [0, 3]])
    images = loss_of(working, batch.with_states(slice(-1)), latent_weight=0.0)["loss"]
    for learns_from, expected in (("latent", [3, 7]), ("all", list(range(8)))):
        working.options = dataclasses.replace(working.options, koopman=apart_settings(working, learns_from))
        steps = []
        for step in range(8):
            positions = np.arange(8 * step, 8 * step + 8)
            parts = [
                loss_of(working, dataclasses.replace(batch, positions=part), batch_size=8)
                for part in (positions[:4], positions[4:])
            ]
            compared = ["latent" in terms for terms in parts]
            assert compared[0] == compared[1], "the parts of a batch differ"
            if compared[0]:
                steps.append(step)
                continue
            for terms in parts:
                torch.testing.assert_close(terms["loss"], images, rtol=1e-12, atol=0)
                assert not any(name.startswith("koopman") for name in gradients(working, terms["loss"]))
        assert steps == expected
    # So that what is logged has it.
    assert LOG_EVERY % HkdSettings().latent_every == 0


def test_operators_need_something_to_learn_from(student: HKD) -> None:
    student.options = HkdOptions(HkdSettings(latent_weight=0.0))
    with pytest.raises(UsageError, match=r"learns_from: got 'latent'; accepted with latent_weight"):
        student.parameter_groups(TRAINING)
    student.options = HkdOptions()
    assert len(student.parameter_groups(TRAINING)) == 2


def test_without_operators_there_is_no_consistency(network: PreconditionedUNet) -> None:
    """Not even where it has a weight: the last state is read in vain."""
    idle = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(hierarchy="none"))).double()
    batch = batch_of([[0, 3], [0, 1]])
    terms = loss_of(idle, batch)
    assert "latent" not in terms
    assert torch.equal(terms["loss"], loss_of(idle, batch.with_states(slice(-1)), latent_weight=0.0)["loss"])
    assert len(idle.parameter_groups(TRAINING)) == 1
