from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hkdpipe.manifests.archive.reading_order import training_indices
from hkdpipe.trainer.losses.denoising_loss import edm_loss, read_noisy_images
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet


@pytest.mark.parametrize("label_dim", [0, 3])
def test_edm_loss_is_the_unit_weight_loss_of_the_inner_network(
    arch: Architecture, randomise: Callable[[nn.Module], None], label_dim: int
) -> None:
    """lambda c_out^2 = 1, so the loss is the mean square of F - (y - c_skip x) / c_out (EDM, equation 8)."""
    network = PreconditionedUNet(replace(arch, label_dim=label_dim)).double()
    randomise(network)
    labels = torch.eye(3).double()[[0, 1, 2, 2, 1, 0]] if label_dim else None
    clean, noise = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.1, 0.3, 1.0, 5.0, 60.0], dtype=torch.float64)
    x, level = clean + noise * sigma[:, None, None, None], sigma[:, None, None, None]
    total = level**2 + 0.25
    inner = network.model(x / total.sqrt(), sigma.log() / 4, labels)
    target = (clean - 0.25 / total * x) / (0.5 * level / total.sqrt())
    expected = (inner - target).square().mean()
    found = edm_loss(network, (clean, noise, sigma, labels), 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


SETTINGS = TeacherTrainingSettings(seed=5)


def images(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(count, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [(SETTINGS, -1.2, 1.2), (TeacherTrainingSettings(noise_mean=0.3, noise_std=0.5), 0.3, 0.5)],
)
def test_log_normal_noise_levels(settings: TeacherTrainingSettings, mean: float, std: float) -> None:
    """Mean and deviation of ln sigma, unit noise: within five standard errors."""
    count = 4000
    _, noise, sigma, _ = read_noisy_images(images(10), settings, None, 0, count)
    logs = sigma.double().log()
    assert abs(logs.mean() - mean) < 5 * std / count**0.5
    assert abs(logs.std() - std) < 5 * std / (2 * count) ** 0.5
    assert abs(((logs - logs.mean()) ** 3).mean() / std**3) < 5 * (6 / count) ** 0.5
    assert abs(noise.double().mean()) < 5 / noise.numel() ** 0.5
    assert abs(noise.double().std() - 1) < 5 / (2 * noise.numel()) ** 0.5


def test_noisy_images_depend_on_the_position_alone() -> None:
    data, labels = images(10), torch.arange(20.0).reshape(10, 2)
    whole = read_noisy_images(data, SETTINGS, labels, 0, 25)
    parts = [read_noisy_images(data, SETTINGS, labels, *part) for part in ((0, 9), (9, 10), (10, 25))]
    for index, values in enumerate(whole):
        assert values is not None
        assert values.dtype == torch.float32
        assert torch.equal(torch.cat([part[index] for part in parts]), values)  # type: ignore[misc]
    order = training_indices(5, 0, 25, 0, 10)
    assert np.array_equal(whole[0].numpy(), data[order])
    assert torch.equal(whole[3], labels[order])  # type: ignore[arg-type]
    assert read_noisy_images(data, SETTINGS, None, 0, 25)[3] is None
    assert sorted(order[:10].tolist()) == list(range(10))
    other = replace(SETTINGS, seed=6)
    assert not torch.equal(read_noisy_images(data, other, None, 0, 25)[1], whole[1])
