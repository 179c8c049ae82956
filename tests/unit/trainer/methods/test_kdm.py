import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.methods.kdm.discriminator import PatchDiscriminator
from hkdpipe.trainer.methods.kdm.kdm import KDM
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions, KdmSettings
from hkdpipe.trainer.methods.kdm.latent_map import DenseMap, FactorisedMap
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet

Randomise = Callable[[nn.Module], None]
Relative = Callable[[Tensor, Tensor], float]
TINY = KdmSettings(width=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
TRAINING = TrainingSettings(method="kdm", seed=5, mse_weight=0.7, perceptual_weight=2.5)


def kdm(network: PreconditionedUNet, randomise: Randomise, **changes: Any) -> KDM:
    """At work, in float64."""
    student = KDM.from_teacher(network, KdmOptions(dataclasses.replace(TINY, **changes))).double()
    randomise(student)
    return student


def test_folded_student_has_one_matrix(network: PreconditionedUNet, randomise: Randomise) -> None:
    student = kdm(network, randomise, operator="factorised").eval()
    folded, noise = student.folded(), torch.randn(3, 1, 8, 8)
    assert isinstance(folded.map, DenseMap)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert isinstance(student.map, FactorisedMap), "the student itself stays as it is"
    torch.testing.assert_close(folded.sample(noise), student.sample(noise), rtol=1e-12, atol=1e-12)
    counts = [sum(map(torch.numel, model.parameters())) for model in (folded, student)]
    assert counts[0] < 0.8 * counts[1]


@pytest.mark.parametrize("operator", ["dense", "factorised"])
def test_folding_leaves_the_student_as_it_is(
    network: PreconditionedUNet, randomise: Randomise, operator: str
) -> None:
    """It may be in training: nothing of it is frozen, or shared with the folded one."""
    student = kdm(network, randomise, operator=operator).requires_grad_(True)
    folded = student.folded()
    assert all(parameter.requires_grad for parameter in student.parameters())
    own = {id(parameter) for parameter in student.parameters()}
    assert not own & {id(parameter) for parameter in folded.parameters()}


def conditional(arch: Architecture) -> PreconditionedUNet:
    return PreconditionedUNet(dataclasses.replace(arch, label_dim=3))


def batch_of(count: int, labels: Tensor | None = None, start: int = 0) -> Batch:
    noise, ends = torch.randn(2, count, 1, 8, 8, dtype=torch.float64)
    zeros = torch.zeros(count, 1, dtype=torch.int64)
    sigmas, positions = torch.full((count, 1), 80.0), np.arange(start, start + count)
    return Batch(80 * noise[:, None], zeros, sigmas, ends, labels, positions)


def absolute_error(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean(dim=(1, 2, 3))


def complex_matrix(parts: Tensor) -> Any:
    return parts[0].detach().numpy() + 1j * parts[1].detach().numpy()


@pytest.fixture
def factorised(randomise: Randomise) -> FactorisedMap:
    made = FactorisedMap(5).double()
    randomise(made)
    return made


def test_factorised_map_is_the_products_real_part(factorised: FactorisedMap, relative: Relative) -> None:
    p, q = complex_matrix(factorised.left), complex_matrix(factorised.right)
    modulus = 1 / (1 + np.exp(-factorised.free_modulus.detach().numpy()))
    diagonal = np.diag(modulus * np.exp(1j * factorised.phase.detach().numpy()))
    matrix = (p @ diagonal @ q).real
    assert np.abs((p @ diagonal @ q).imag).max() > 0.1
    z = torch.randn(7, 5, dtype=torch.float64)
    expected = z.numpy() @ matrix.T + factorised.bias.detach().numpy()
    assert relative(factorised(z), torch.from_numpy(expected)) < 1e-13
    assert relative(factorised.dense()(z), torch.from_numpy(expected)) < 1e-13


def test_penalties_of_the_factorised_map(factorised: FactorisedMap) -> None:
    p, q = complex_matrix(factorised.left), complex_matrix(factorised.right)
    inverse = sum(np.linalg.norm(product - np.eye(5)) ** 2 for product in (p @ q, q @ p)) / 5
    found = {name: value.item() for name, value in factorised.penalties().items()}
    modulus = np.mean((1 - np.abs(factorised.eigenvalues().detach().numpy())) ** 2)
    assert found == pytest.approx({"inverse": inverse, "modulus": modulus}, rel=1e-12)
    assert found["inverse"] > 0.01
    assert DenseMap(5).penalties() == {}


def test_factorised_map_starts_with_inverse_factors() -> None:
    """And with eigenvalues of sigmoid(3) = 0.9526 all over the circle."""
    made = FactorisedMap(400)
    assert made.penalties()["inverse"].item() < 1e-10
    eigenvalues = made.eigenvalues().detach()
    assert eigenvalues.abs().numpy() == pytest.approx(0.952574, abs=1e-6)
    assert stats.kstest(eigenvalues.angle().numpy() / np.pi, "uniform", (-1, 2)).pvalue > 0.01


@pytest.mark.parametrize("free", [-100.0, 0.0, 3.0, 100.0])
def test_eigenvalues_stay_in_the_unit_circle(free: float) -> None:
    made = FactorisedMap(6).double()
    with torch.no_grad():
        made.free_modulus.fill_(free)
        made.phase.uniform_(-20, 20)
    moduli = made.eigenvalues().abs()
    assert (moduli <= 1).all()
    torch.testing.assert_close(moduli, torch.full_like(moduli, 1 / (1 + np.exp(-free))))


def test_dense_map_is_affine_and_starts_as_the_identity(relative: Relative, randomise: Randomise) -> None:
    made, z = DenseMap(5).double(), torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(made(z), z)
    randomise(made)
    assert relative(made(z), z @ made.weight.T + made.bias) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factorised_map_stays_float32_under_autocast(dtype: torch.dtype) -> None:
    made, z = FactorisedMap(5), torch.randn(3, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mapped, penalty = made(z), made.penalties()["inverse"]
    assert mapped.dtype == dtype
    assert torch.equal(mapped, made(z.float()).to(dtype))
    assert torch.equal(penalty, made.penalties()["inverse"])


@pytest.mark.parametrize("projection", [0, 6])
@pytest.mark.parametrize("operator", ["dense", "factorised"])
def test_sample_decodes_what_the_raw_start_leads_to(
    network: PreconditionedUNet, randomise: Randomise, operator: str, projection: int
) -> None:
    student = kdm(network, randomise, operator=operator, projection=projection).eval()
    noise = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    picture = student.noise_encoder.unet(80 * noise, torch.zeros(3, dtype=torch.float64))
    assert picture.shape == (3, 1, 8, 8)
    z = student.noise_encoder.projection(picture.flatten(1))
    assert z.shape == (3, projection or 64)
    mapped = student.map(z)
    back = student.decoder.projection(mapped).view(3, 1, 8, 8)
    expected = student.decoder.unet(back, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(student.sample(noise), expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("operator", ["dense", "factorised"])
@pytest.mark.parametrize("adversarial_weight", [0.0, 0.3])
@pytest.mark.parametrize("classes", [None, [2, 0, 1, 1]])
def test_loss_is_the_sum_written_out(
    arch: Architecture,
    network: PreconditionedUNet,
    randomise: Randomise,
    operator: str,
    adversarial_weight: float,
    classes: list[int] | None,
) -> None:
    labels = None if classes is None else torch.eye(3)[classes].double()
    student = kdm(
        network if classes is None else conditional(arch),
        randomise,
        operator=operator,
        adversarial_weight=adversarial_weight,
        inverse_weight=0.2,
        modulus_weight=0.4,
        control=True,
    )
    batch, progress = batch_of(4, labels), 0.3
    terms = student.loss(student, batch, Lesson(TRAINING, absolute_error, progress))
    noise = student.latent_noise(batch, 5) * 0.4
    z = student.image_encoder(batch.ends, labels)
    reached = student.map(student.noise_encoder(batch.states[:, 0], labels))
    if labels is not None:
        assert student.control is not None
        reached = reached + labels @ student.control.weight.T
    images = {
        "reconstruction": student.decoder(z + noise[:, 0], labels),
        "generated": student.decoder(reached + noise[:, 1], labels),
    }
    expected = {"latent": ((z - reached) ** 2).mean().item()}
    for name, made in images.items():
        mse = ((made - batch.ends) ** 2).mean().item()
        perceptual = (made - batch.ends).abs().mean().item()
        expected[name] = 0.7 * 10 ** (-3 * progress) * mse + 2.5 * perceptual
    total = sum(expected.values())
    expected["mse"] = ((images["generated"] - batch.ends) ** 2).mean().item()
    expected["perceptual"] = (images["generated"] - batch.ends).abs().mean().item()
    del expected["generated"]
    if operator == "factorised":
        expected |= {name: value.item() for name, value in student.map.penalties().items()}
        total += 0.2 * expected["inverse"] + 0.4 * expected["modulus"]
    if adversarial_weight:
        assert student.discriminator is not None
        entropy = nn.BCEWithLogitsLoss()
        of_real, of_fake = (student.discriminator(i) for i in (batch.ends, images["generated"]))
        ones, zeros = torch.ones_like(of_fake), torch.zeros_like(of_fake)
        expected["adversarial"] = entropy(of_fake, ones).item()
        expected["discriminator"] = (entropy(of_real, ones) + entropy(of_fake, zeros)).item() / 2
        total += adversarial_weight * expected["adversarial"] + expected["discriminator"]
    expected["loss"] = total
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_term_of_the_loss_is_in_low_precision(
    network: PreconditionedUNet, randomise: Randomise, dtype: torch.dtype
) -> None:
    student, batch = kdm(network, randomise, operator="factorised").float(), batch_of(4)
    batch = dataclasses.replace(batch, states=batch.states.float(), ends=batch.ends.float())
    with torch.autocast("cpu", dtype):
        terms = student.loss(student, batch, Lesson(TRAINING, absolute_error, 0.0))
    assert {"latent", "adversarial", "discriminator"} < terms.keys()
    assert {value.dtype for value in terms.values()} == {torch.float32}


@pytest.mark.parametrize("operator", ["dense", "factorised"])
def test_every_weight_learns(network: PreconditionedUNet, randomise: Randomise, operator: str) -> None:
    student = kdm(network, randomise, operator=operator)
    student.loss(student, batch_of(4), Lesson(TRAINING, absolute_error, 0.0))["loss"].backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_neither_side_of_the_adversarial_term_moves_the_other(
    network: PreconditionedUNet, randomise: Randomise
) -> None:
    student = kdm(network, randomise)
    terms = student.loss(student, batch_of(4), Lesson(TRAINING, absolute_error, 0.0))
    for term, own in (("adversarial", False), ("discriminator", True)):
        student.zero_grad()
        terms[term].backward(retain_graph=True)
        moved = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved
        assert {name.startswith("discriminator.") for name in moved} == {own}
        assert own or any(name.startswith("noise_encoder.") for name in moved)
        assert not any(name.startswith("image_encoder.") for name in moved)


def test_gradient_of_the_deception_is_that_through_a_frozen_discriminator() -> None:
    made = PatchDiscriminator(2, 8).double()
    fake = torch.randn(3, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(made.deception(fake).sum(), fake)[0]
    logits = made.requires_grad_(False)(fake)
    expected = torch.autograd.grad(-logits.sigmoid().log().mean(dim=(1, 2, 3)).sum(), fake)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [8, 32])
def test_discriminator_judges_patches(size: int) -> None:
    made = PatchDiscriminator(3, 8)
    assert made(torch.randn(2, 3, size, size)).shape == (2, 1, size // 4, size // 4)
    assert len([layer for layer in made.layers if isinstance(layer, nn.Conv2d)]) == 4


def test_latent_noise_is_standard_normal_and_a_function_of_seed_and_position(
    network: PreconditionedUNet, randomise: Randomise
) -> None:
    student = kdm(network, randomise)
    whole = student.latent_noise(batch_of(60), 5)
    assert whole.shape == (60, 2, 64)
    assert stats.kstest(whole.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(whole[:, 0].flatten(), whole[:, 1].flatten())[0, 1]) < 0.06
    parts = [student.latent_noise(batch_of(20, start=start), 5) for start in (0, 20, 40)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(student.latent_noise(batch_of(60), 6), whole)


def test_latents_get_no_noise_in_sampling(network: PreconditionedUNet, randomise: Randomise) -> None:
    student, quiet = (kdm(network, randomise, noise=noise) for noise in (0.4, 0.0))
    quiet.load_state_dict(student.state_dict())
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(student.sample(noise), student.sample(noise))
    assert torch.equal(student.sample(noise), quiet.sample(noise))
    batch = batch_of(3)
    found = [
        model.loss(model, batch, Lesson(TRAINING, None, 0.0))["mse"].item() for model in (student, quiet)
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("control", [False, True])
def test_classes_reach_all_the_networks(arch: Architecture, randomise: Randomise, control: bool) -> None:
    student = kdm(conditional(arch), randomise, control=control).eval()
    x, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.eye(3).double()
    other = labels.roll(1, dims=0)
    for part in (student.image_encoder, student.noise_encoder):
        assert not torch.equal(part(x, labels), part(x, other))
    z = student.evolve(x, labels)
    assert not torch.equal(student.decoder(z, labels), student.decoder(z, other))
    assert (student.control is not None) == control
    if student.control is not None:
        moved = z - student.map(student.noise_encoder(x, labels))
        torch.testing.assert_close(moved, student.control.weight.T)
        fresh = KDM.from_teacher(conditional(arch), KdmOptions(dataclasses.replace(TINY, control=True)))
        assert fresh.control is not None
        assert not fresh.control.weight.any()


def test_only_the_networks_decay(network: PreconditionedUNet, randomise: Randomise) -> None:
    student = kdm(network, randomise, operator="factorised")
    decaying, others = student.parameter_groups(TrainingSettings(weight_decay=0.1, learning_rate=0.02))
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0)
    assert decaying["lr"] == others["lr"] == 0.02
    of_others = {id(parameter) for parameter in others["params"]}
    names = {name.split(".")[0] for name, p in student.named_parameters() if id(p) in of_others}
    assert names == {"map", "discriminator"}
    held = [id(p) for group in (decaying, others) for p in group["params"]]
    assert sorted(held) == sorted(map(id, student.parameters()))


@pytest.mark.parametrize("preconditioning", ["edm", "iddpm"])
def test_export_is_read_back(tmp_path: Path, arch: Architecture, preconditioning: str) -> None:
    """Of a teacher of any preconditioning, whose table of noise levels says where trajectories start."""
    teacher = PreconditionedUNet(dataclasses.replace(arch, preconditioning=preconditioning, M=4))
    if teacher.u is not None:
        teacher.u.copy_(torch.tensor([100.0, 79.0, 1.0, 0.1, 0.0]))
    student = KDM.from_teacher(
        teacher, KdmOptions(dataclasses.replace(TINY, operator="factorised", projection=6))
    )
    assert student.sigma_max == (80 if preconditioning == "edm" else 79)
    student.save(tmp_path / "export", {})
    read = load_model(tmp_path / "export")
    assert type(read) is KDM
    assert read.config() == student.config()
    noise = torch.randn(2, 1, 8, 8)
    assert torch.equal(read.sample(noise), student.sample(noise))


def test_networks_that_do_not_fit_the_images(network: PreconditionedUNet) -> None:
    with pytest.raises(UsageError, match="kdm: img_resolution: got 8; accepted: what can be halved 4 times"):
        KDM.from_teacher(network, KdmOptions(dataclasses.replace(TINY, channel_mult=(1,) * 5)))
