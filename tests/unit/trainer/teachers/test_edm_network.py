"""Against numbers that EDM's own code computed on a CPU from the same random weights."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from edm_fixtures import FAMILIES, OLDER, SMALL, SNAPSHOTS, published
from torch import Tensor, nn

from hkdpipe.manifests.ground import rng
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet, build_unet
from hkdpipe.trainer.teachers.edm.layers import Conv2d, resampling_kernel
from hkdpipe.trainer.teachers.sampler import Churn, sample_stochastic, sample_trajectory
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher

Relative = Callable[[Tensor, Tensor], float]
Randomise = Callable[[nn.Module], None]


@pytest.fixture(scope="module", params=sorted(SNAPSHOTS))
def snapshot(request: pytest.FixtureRequest) -> tuple[Teacher, dict[str, Tensor]]:
    return load_teacher(SNAPSHOTS[request.param]), published(request.param)


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest, randomise: Randomise) -> PreconditionedUNet:
    network = PreconditionedUNet(request.param)
    randomise(network)
    return network.eval().requires_grad_(False)


@contextmanager
def noted_calls(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the module is given first and second, and what it returns."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((*inputs[:2], output))

    hook = module.register_forward_hook(note)
    yield seen
    hook.remove()


def test_denoised_images_are_edms(snapshot: tuple[Teacher, dict[str, Tensor]], relative: Relative) -> None:
    """And so is what the inner network is given, and what it makes of it."""
    teacher, numbers = snapshot
    x, sigma, labels = numbers["x"], numbers["sigma"], numbers.get("labels")
    with noted_calls(teacher.network.model) as seen:
        assert relative(teacher(x, sigma, labels), numbers["D"]) < 1e-5
    for found, name in zip(seen, ("net_in", "c_noise", "F"), strict=True):
        assert relative(found, numbers[name]) < 1e-5
    assert relative(teacher(x, 1.3, labels), numbers["D_scalar_sigma"]) < 1e-5
    if "D_nolabel" in numbers:
        assert relative(teacher(x, sigma), numbers["D_nolabel"]) < 1e-5
    if "D_aug" in numbers:
        augmented = teacher.network(x, sigma, labels, numbers["augment_labels"])
        assert relative(augmented, numbers["D_aug"]) < 1e-5


@pytest.mark.parametrize("steps", [5, 18])
def test_trajectories_are_those_of_edm_at_every_state(
    snapshot: tuple[Teacher, dict[str, Tensor]], relative: Relative, steps: int
) -> None:
    teacher, numbers = snapshot
    states, sigmas = sample_trajectory(teacher, numbers["latents"], steps, numbers.get("labels"))
    torch.testing.assert_close(sigmas, numbers[f"ts_heun{steps}"].double(), rtol=1e-12, atol=0)
    expected = numbers[f"traj_heun{steps}"]
    assert len(states) == steps + 1
    assert max(map(relative, states, expected)) < 1e-4


def test_euler_samples_are_edms(snapshot: tuple[Teacher, dict[str, Tensor]], relative: Relative) -> None:
    teacher, numbers = snapshot
    if "euler18" not in numbers:
        pytest.skip("recorded for EDM's preconditioning alone")
    states, _ = sample_trajectory(
        teacher, numbers["latents"], 18, numbers.get("labels"), solver="euler", keep=[18]
    )
    assert relative(states[0], numbers["euler18"]) < 1e-5


def test_stochastic_samples_are_edms(snapshot: tuple[Teacher, dict[str, Tensor]], relative: Relative) -> None:
    """Whose noise was drawn step by step in float64, from a generator for each image."""
    teacher, numbers = snapshot
    if "churn18" not in numbers:
        pytest.skip("recorded for EDM's preconditioning alone")
    generators = [torch.Generator().manual_seed(seed) for seed in range(10, 14)]

    def draw(step: int) -> Tensor:
        noise = [torch.randn(teacher.image_shape, generator=each, dtype=torch.float64) for each in generators]
        return torch.stack(noise)

    churn = Churn(40, 0.05, 50, 1.003)
    images = sample_stochastic(teacher, numbers["latents"], draw, churn, labels=numbers.get("labels"))
    assert relative(images, numbers["churn18"]) < 1e-5


def golden_network(arch: Architecture) -> PreconditionedUNet:
    """A network whose every weight is a fixed number."""
    network = PreconditionedUNet(arch).eval().requires_grad_(False)
    for index, (name, value) in enumerate(sorted(network.state_dict().items())):
        if name == "u":
            value.copy_(torch.linspace(10, 0, arch.M + 1) ** 2)
        elif not name.endswith("resample_filter"):
            numbers = rng.normal(0, "golden", [index], value.numel()).reshape(value.shape)
            value.copy_(torch.from_numpy(numbers) * (0.2 if value.ndim > 1 else 0.5))
    return network


@pytest.mark.parametrize("name", [*FAMILIES, *OLDER])
def test_networks_still_give_the_recorded_numbers(name: str, fixtures: Path, relative: Relative) -> None:
    """Recorded when the same code agreed with EDM's for all published kinds of networks, to 1e-6."""
    network = golden_network((FAMILIES | OLDER)[name])
    x = torch.from_numpy(rng.normal(0, "golden-x", range(2), 3 * 16 * 16).reshape(2, 3, 16, 16)).float()
    found = network(x, torch.tensor([0.3, 5.0]), torch.eye(4)[:2])
    with np.load(fixtures / "golden-networks.npz") as recorded:
        assert relative(found, torch.from_numpy(recorded[name])) < 1e-5


def test_encode_and_decode_make_the_forward_pass_bit_for_bit(family: PreconditionedUNet) -> None:
    unet = family.model
    x, noise_labels, labels = torch.randn(3, 3, 16, 16), torch.tensor([-1.0, 0.0, 1.0]), torch.eye(4)[:3]
    emb = unet.embed(noise_labels, labels)
    skips = unet.encode(x, emb)
    assert [tuple(skip.shape[1:]) for skip in skips] == unet.shapes()
    expected = unet(x, noise_labels, labels)
    assert torch.equal(unet.decode(skips, emb), expected)
    encoder, decoder = unet.part("enc"), unet.part("dec")
    halves = encoder.encode(x, encoder.embed(noise_labels, labels))
    assert torch.equal(decoder.decode(halves, decoder.embed(noise_labels, labels)), expected)


def test_parts_share_the_embedding_alone(family: PreconditionedUNet) -> None:
    whole = dict(family.model.named_parameters())
    encoder, decoder = (
        {name for name, _ in family.model.part(part).named_parameters()} for part in ("enc", "dec")
    )
    assert encoder | decoder == set(whole)
    assert all(name.startswith("map_") for name in encoder & decoder)
    assert not any(name.startswith(("dec.", "out_")) for name in encoder)
    assert not any(name.startswith("enc.") for name in decoder)


def test_decoding_leaves_the_tensors_of_the_encoder_alone(network: PreconditionedUNet) -> None:
    emb = network.model.embed(torch.zeros(1))
    skips = network.model.encode(torch.randn(1, 1, 8, 8), emb)
    before = [skip.clone() for skip in skips]
    network.model.decode(skips, emb)
    assert len(skips) == len(before)
    assert all(map(torch.equal, skips, before))


def test_half_precision_is_close_to_single(family: PreconditionedUNet, relative: Relative) -> None:
    """The inner network computes in the precision of its input, from weights in single precision."""
    x, noise_labels = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 1.0])
    single, half = family.model(x, noise_labels), family.model(x.half(), noise_labels)
    assert half.dtype == torch.float16
    assert 1e-6 < relative(half, single) < 0.02


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_resampling_filters_are_adjoint_and_keep_constants(
    taps: tuple[int, ...], kernel: int, relative: Relative
) -> None:
    """Upsampling is four times the transpose of downsampling: <up x, y> = 4 <x, down y>."""
    up, down = (
        Conv2d(2, 2, 0, up=direction == "up", down=direction == "down", resample_filter=taps)
        for direction in ("up", "down")
    )
    small, large = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 8, 8)
    torch.testing.assert_close((up(small) * large).sum(), 4 * (small * down(large)).sum())
    assert resampling_kernel(taps).sum() == 1
    if kernel:
        both = Conv2d(2, 3, kernel, up=True, resample_filter=taps)
        torch.nn.init.normal_(both.bias)  # type: ignore[arg-type]
        apart = nn.functional.conv2d(up(small), both.weight, both.bias, padding=kernel // 2)  # type: ignore[arg-type]
        assert relative(both(small), apart) < 1e-6


def test_dropout_is_for_training_alone(arch: Architecture) -> None:
    network = PreconditionedUNet(dataclasses.replace(arch, dropout=0.5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(network.train()(x, 1.0), network(x, 1.0))
    assert torch.equal(network.eval()(x, 1.0), network(x, 1.0))


def test_class_embedding_formula(arch: Architecture, relative: Relative) -> None:
    """Sines and cosines of the noise label plus W (one-hot * sqrt(classes)) + b, through two layers."""
    unet = build_unet(dataclasses.replace(arch, label_dim=4)).double()
    assert unet.map_label is not None
    torch.nn.init.normal_(unet.map_label.bias)
    label, width = 0.7, 16
    rates = [10000 ** (-k / (width // 2 - 1)) for k in range(width // 2)]
    waves = [math.sin(label * rate) for rate in rates] + [math.cos(label * rate) for rate in rates]
    noise = torch.tensor([label], dtype=torch.float64)

    def expected(classes: Tensor) -> Tensor:
        assert unet.map_label is not None
        mapped = unet.map_label.weight @ (classes * 2) + unet.map_label.bias
        hidden = torch.tensor(waves, dtype=torch.float64) + mapped
        for layer in (unet.map_layer0, unet.map_layer1):
            hidden = layer.weight @ hidden + layer.bias
            hidden = hidden / (1 + (-hidden).exp())
        return hidden[None]

    one_hot = torch.eye(4).double()[2]
    assert relative(unet.embed(noise, one_hot[None]), expected(one_hot)) < 1e-6
    assert relative(unet.embed(noise), expected(torch.zeros(4).double())) < 1e-6


def test_conditional_networks_depend_on_the_class(family: PreconditionedUNet) -> None:
    x = torch.randn(1, 3, 16, 16)
    outputs = [family(x, 1.0, one_hot[None]) for one_hot in torch.eye(4)]
    assert (outputs[0] - outputs[1]).norm() > 1e-3 * outputs[0].norm()


def test_iddpm_rounds_to_the_nearest_level_of_its_table() -> None:
    network = golden_network(OLDER["iddpm"])
    table = network.state_dict()["u"].double()
    between = (table[:-1] * 0.8 + table[1:] * 0.2).float()
    assert torch.equal(network.round_sigma(between).double(), table[:-1])
    x = torch.randn(1, 3, 16, 16)
    with noted_calls(network.model) as seen:
        network(x, float(between[40]))
    assert seen[1].tolist() == [99 - 40]


def test_parameters_of_the_digits_teacher() -> None:
    assert load_teacher("digits").network.parameter_count() == 1_259_393


@pytest.mark.parametrize("arch", [*FAMILIES.values(), *OLDER.values()])
@pytest.mark.parametrize("sigma_max", [math.inf, 80.0])
def test_architecture_survives_json(arch: Architecture, sigma_max: float) -> None:
    changed = dataclasses.replace(arch, sigma_max=sigma_max)
    assert Architecture.from_json(json.loads(json.dumps(changed.to_json(), allow_nan=False))) == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "VGG"}, "model_type: got 'VGG'; accepted: SongUNet, DhariwalUNet"),
        ({"encoder_type": "skip"}, "encoder_type: got 'skip'; accepted: standard, residual"),
        ({"img_resolution": 15}, "img_resolution: got 15; accepted: what can be halved 1 times"),
        (
            {"model_type": "DhariwalUNet", "embedding_type": "fourier"},
            "embedding_type: got 'fourier'; DhariwalUNet has 'positional'",
        ),
    ],
)
def test_impossible_architectures(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]
