import contextlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.trainer.losses.perceptual import (
    BACKBONES,
    SMALLEST_SIDE,
    normalised_difference,
    perceptual_distance,
)
from hkdpipe.trainer.metrics.digits_classifier import load_classifier

Relative = Callable[[Tensor, Tensor], float]
CPU = torch.device("cpu")
# The lpips package asks torchvision for its trunks in an old way.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")


def lpips_network(name: str, heads: bool = True) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return lpips.LPIPS(net=name, pnet_rand=True, lpips=heads, verbose=False).eval().requires_grad_(False)


def backbone_weights(name: str) -> dict[str, Tensor]:
    """A backbone's state dict: random features; of the classifier, which LPIPS lacks, one number."""
    with torch.device("meta"):
        empty = getattr(torchvision.models, BACKBONES[name][0])(weights=None).state_dict()
    weights = {}
    for key, value in empty.items():
        fan_in = max(1, value[0].numel())
        random = torch.randn(value.shape) * (2 / fan_in) ** 0.5 if key.startswith("features.") else None
        weights[key] = torch.zeros(1).expand(value.shape) if random is None else random
    return weights


@pytest.mark.parametrize("name", list(BACKBONES))
def test_lpips_is_that_of_the_package_with_the_same_trunk(
    tmp_path: Path, name: str, relative: Relative
) -> None:
    weights = backbone_weights(name)
    torch.save(weights, tmp_path / "trunk.pth")
    distance = perceptual_distance(name, str(tmp_path / "trunk.pth"), 3, CPU)
    assert distance is not None
    reference = lpips_network(name)
    convolutions = [module for module in reference.net.modules() if isinstance(module, nn.Conv2d)]
    # The features' tensors are in the order of the layers: a weight and a bias for each convolution.
    features = [value for key, value in weights.items() if key.startswith("features.")]
    for convolution, weight, bias in zip(convolutions, features[::2], features[1::2], strict=True):
        convolution.load_state_dict({"weight": weight, "bias": bias})
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    found = distance(a, b)
    assert found.shape == (2,)
    assert relative(found, reference(a, b).flatten()) < 1e-6
    assert distance(a, a).tolist() == [0, 0]
    small = torch.rand(2, 1, 8, 8, requires_grad=True)
    distance(small, -small.detach()).sum().backward()
    assert small.grad is not None
    assert small.grad.isfinite().all()
    assert distance(small.detach(), -small.detach()).min() > 0
    enlarged = nn.functional.interpolate(b, 128, mode="nearest").mean(1, keepdim=True)
    grey = torch.cat([enlarged] * 3, dim=1)
    assert relative(distance(enlarged, 0 * enlarged), reference(grey, 0 * grey).flatten()) < 1e-6
    # Smaller images are enlarged to the size asked for, others left as they are.
    resized = perceptual_distance(name, str(tmp_path / "trunk.pth"), 3, CPU, size=40)
    assert resized is not None
    assert torch.equal(resized(a, b), distance(a, b))
    little = nn.functional.interpolate(torch.rand(4, 3, 9, 9), 20)
    bigger = nn.functional.interpolate(little, (40, 40), mode="bilinear", antialias=True)
    expected = reference(bigger[:2], bigger[2:]).flatten()
    assert relative(resized(little[:2], little[2:]), expected) < 1e-6
    assert relative(distance(little[:2], little[2:]), expected) > 1e-3


def test_normalised_difference_is_lpips_with_weights_of_one(relative: Relative) -> None:
    """The lpips package without its linear heads sums the same squares over the same features."""
    network = lpips_network("squeeze", heads=False)
    a, b = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    features = [list(network.net(network.scaling_layer(images))) for images in (a, b)]
    assert relative(normalised_difference(*features), network(a, b).flatten()) < 1e-3


def test_normalised_difference_formula() -> None:
    """The sum over layers of the mean over pixels of |a/|a| - b/|b||^2, written out."""
    layers = [np.random.default_rng(size).normal(size=(2, 3, 5, size, 2)) for size in (4, 2)]
    expected = np.zeros(3)
    for one, other in layers:
        for image in range(3):
            pixels = [
                np.sum((u / np.sqrt(u @ u) - v / np.sqrt(v @ v)) ** 2)
                for u, v in zip(one[image].reshape(5, -1).T, other[image].reshape(5, -1).T, strict=True)
            ]
            expected[image] += sum(pixels) / len(pixels)
    one_side, other_side = ([torch.from_numpy(layer[side]) for layer in layers] for side in (0, 1))
    np.testing.assert_allclose(normalised_difference(one_side, other_side), expected, rtol=1e-6)


def test_normalised_difference_of_equals_is_zero() -> None:
    features = [torch.randn(2, 5, 4, 4), torch.zeros(2, 3, 2, 2)]
    assert normalised_difference(features, features).tolist() == [0, 0]


def test_gradient_is_finite_at_all_zero_features() -> None:
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    normalised_difference([features], [torch.ones(1, 4, 2, 2)]).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.abs().min() > 0


def test_distance_by_name() -> None:
    assert perceptual_distance("none", "", 3, CPU) is None
    a, b = torch.rand(2, 3, 1, 8, 8) * 2 - 1
    classifier = load_classifier("digits-classifier-loss")
    distance = perceptual_distance("digits", "", 1, CPU)
    assert distance is not None
    expected = normalised_difference(classifier.features(a), classifier.features(b))
    assert torch.equal(distance(a, b), expected)
    with pytest.raises(UsageError, match="'digits' compares images of 1 or 3 channels, these have 2"):
        perceptual_distance("digits", "", 2, CPU)


def test_pseudo_huber_is_the_norm_of_a_large_difference_and_the_square_of_a_small_one() -> None:
    a, b = torch.rand(2, 3, 2, 5, 4, dtype=torch.float64)
    distance = perceptual_distance("pseudo-huber", "", 2, CPU)
    assert distance is not None
    norms = np.linalg.norm((a - b).numpy().reshape(3, -1), axis=1)
    np.testing.assert_allclose(distance(a, b), np.hypot(norms, 0.03) - 0.03, rtol=1e-12)
    assert distance(a, a).tolist() == [0, 0, 0]
    small = 1e-4 * (b - a) / torch.from_numpy(norms)[:, None, None, None]
    np.testing.assert_allclose(distance(a, a + small), 1e-8 / 0.06, rtol=1e-4)


@pytest.mark.parametrize(("name", "smallest"), SMALLEST_SIDE.items())
def test_smallest_size_of_lpips(name: str, smallest: int, tmp_path: Path) -> None:
    """The backbone makes something of images of that size; smaller ones are refused."""
    torch.save(backbone_weights(name), tmp_path / "trunk.pth")
    distance = perceptual_distance(name, str(tmp_path / "trunk.pth"), 3, CPU, size=smallest)
    assert distance is not None
    assert distance(*torch.rand(2, 1, 3, 8, 8)).isfinite().all()
    message = f"perceptual_size: got {smallest - 1}; accepted: at least {smallest} for '{name}'"
    with pytest.raises(UsageError, match=message):
        perceptual_distance(name, "", 3, CPU, size=smallest - 1)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_missing_backbone_names_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError) as raised:
        perceptual_distance(name, "", 3, CPU)
    assert str(raised.value).startswith(f"{tmp_path / 'checkpoints' / BACKBONES[name][1]}: missing")
    with pytest.raises(InputError, match=f"{tmp_path / 'given'}: missing"):
        perceptual_distance(name, str(tmp_path / "given"), 3, CPU)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"these are words\n",
        b"<html>404</html>",
        pickle.dumps([1]),
        saved({"features.0.weight": torch.zeros(300)})[:-200],
        saved(torch.zeros(3)),
        saved({"other": torch.zeros(3)}),
    ],
    ids=["empty", "text", "web-page", "pickle", "truncated", "tensor", "other-names"],
)
def test_wrong_or_damaged_backbone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "trunk.pth"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"trunk\.pth: not torchvision's squeezenet1_1 weights \(.+\)$"):
        perceptual_distance("squeeze", str(file), 3, CPU)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_backbone_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, hostile: tuple[object, Path], form: str
) -> None:
    code, proof = hostile
    file = tmp_path / "trunk.pth"
    file.write_bytes(saved({"features.0.weight": code}) if form == "torch" else pickle.dumps(code, 2))
    with pytest.raises(InputError, match="not torchvision's"):
        perceptual_distance("squeeze", str(file), 3, CPU)
    assert not proof.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(file, weights_only=False)
    assert proof.exists(), "the file holds no code that a careless reader would run"
