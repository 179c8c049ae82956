"""Against numbers that EDM's own code computed on a CPU from the same random weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hkdpipe.trainer.networks import Architecture, EDMPrecond, SongUNet, parameters_count
from hkdpipe.trainer.sampler import Churn, sample_stochastic, sample_trajectory
from hkdpipe.trainer.teacher import load_teacher, read_weights

Relative = Callable[[Tensor, Tensor], float]
NAME = "ddpmpp-grey-8px"


@pytest.fixture(scope="module")
def published(fixtures: Path) -> dict[str, Tensor]:
    with np.load(fixtures / f"{NAME}.npz") as arrays:
        return {name: torch.from_numpy(value) for name, value in arrays.items()}


@pytest.fixture(scope="module")
def edm(fixtures: Path) -> EDMPrecond:
    """EDM's weights under EDM's names, neither renamed nor left out."""
    made = EDMPrecond(
        Architecture(img_resolution=8, img_channels=1, model_channels=16, channel_mult=(1, 2), num_blocks=1)
    )
    made.load_state_dict(read_weights(fixtures / f"{NAME}.safetensors", made.state_dict()))
    return made.eval().requires_grad_(False)


def test_denoised_images_are_those_of_edm(
    edm: EDMPrecond, published: dict[str, Tensor], relative: Relative
) -> None:
    x = published["x"]
    assert relative(edm(x, published["sigma"]), published["D"]) < 1e-5
    assert relative(edm(x, 1.3), published["D_scalar_sigma"]) < 1e-5


def test_preconditioning_is_that_of_edm(
    edm: EDMPrecond, published: dict[str, Tensor], relative: Relative
) -> None:
    """What the inner network is given, and what it makes of it."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((*inputs[:2], output))

    hook = edm.model.register_forward_hook(note)
    edm(published["x"], published["sigma"])
    hook.remove()
    for found, name in zip(seen, ("net_in", "c_noise", "F"), strict=True):
        assert relative(found, published[name]) < 1e-5


@pytest.mark.parametrize("steps", [5, 18])
def test_trajectories_are_those_of_edm_at_every_state(
    edm: EDMPrecond, published: dict[str, Tensor], relative: Relative, steps: int
) -> None:
    states, _ = sample_trajectory(edm, published["latents"], steps)
    expected = published[f"traj_heun{steps}"]
    assert len(states) == steps + 1
    assert max(map(relative, states, expected)) < 1e-4


def test_euler_samples_are_those_of_edm(
    edm: EDMPrecond, published: dict[str, Tensor], relative: Relative
) -> None:
    states, _ = sample_trajectory(edm, published["latents"], 18, solver="euler")
    assert relative(states[-1], published["euler18"]) < 1e-5


def test_stochastic_samples_are_those_of_edm(
    edm: EDMPrecond, published: dict[str, Tensor], relative: Relative
) -> None:
    """Whose noise was drawn step by step in float64, from a generator for each image."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(10, 14)]

    def draw(step: int) -> Tensor:
        noise = [torch.randn(1, 8, 8, generator=each, dtype=torch.float64) for each in generators]
        return torch.stack(noise)

    images = sample_stochastic(edm, published["latents"], draw, Churn(40, 0.05, 50, 1.003))
    assert relative(images, published["churn18"]) < 1e-5


def test_encode_and_decode_make_the_forward_pass_bit_for_bit(network: EDMPrecond) -> None:
    unet = network.model
    x, noise_labels = torch.randn(3, 1, 8, 8), torch.tensor([-1.0, 0.0, 1.0])
    emb = unet.embed(noise_labels)
    skips = unet.encode(x, emb)
    assert [tuple(skip.shape[1:]) for skip in skips] == unet.skip_shapes()
    expected = unet(x, noise_labels)
    assert torch.equal(unet.decode(skips, emb), expected)
    encoder, decoder = unet.part("enc"), unet.part("dec")
    halves = encoder.encode(x, encoder.embed(noise_labels))
    assert torch.equal(decoder.decode(halves, decoder.embed(noise_labels)), expected)


def test_parts_share_the_embedding_alone(network: EDMPrecond) -> None:
    whole = dict(network.model.named_parameters())
    encoder, decoder = (
        {name for name, _ in network.model.part(part).named_parameters()} for part in ("enc", "dec")
    )
    assert encoder | decoder == set(whole)
    assert {name.split(".")[0] for name in encoder & decoder} == {"map_layer0", "map_layer1"}
    assert not any(name.startswith("dec.") for name in encoder)
    assert not any(name.startswith("enc.") for name in decoder)


def test_decoding_leaves_the_tensors_of_the_encoder_alone(network: EDMPrecond) -> None:
    emb = network.model.embed(torch.zeros(1))
    skips = network.model.encode(torch.randn(1, 1, 8, 8), emb)
    before = [skip.clone() for skip in skips]
    network.model.decode(skips, emb)
    assert len(skips) == len(before)
    assert all(map(torch.equal, skips, before))


def test_class_embedding_formula(arch: Architecture, relative: Relative) -> None:
    """Sines and cosines of the noise label plus W (one-hot * sqrt(classes)) + b, through two layers."""
    unet = SongUNet(dataclasses.replace(arch, label_dim=4)).double()
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


def test_conditional_network_depends_on_the_class(arch: Architecture, network: EDMPrecond) -> None:
    conditional = EDMPrecond(dataclasses.replace(arch, label_dim=3))
    conditional.load_state_dict(network.state_dict(), strict=False)
    x = torch.randn(1, 1, 8, 8)
    outputs = [conditional(x, 1.0, one_hot[None]) for one_hot in torch.eye(3)]
    assert (outputs[0] - outputs[1]).norm() > 1e-3 * outputs[0].norm()


def test_parameters_of_the_digits_teacher() -> None:
    assert parameters_count(load_teacher("digits").network) == 1_259_393


@pytest.mark.parametrize("sigma_max", [math.inf, 80.0])
def test_architecture_survives_json(arch: Architecture, sigma_max: float) -> None:
    changed = dataclasses.replace(arch, sigma_max=sigma_max)
    assert Architecture.from_json(json.loads(json.dumps(changed.to_json(), allow_nan=False))) == changed
