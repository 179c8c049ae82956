import math

import numpy as np
import pytest
import torch

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox.bands import BANDS, THIRDS, band_masks, band_members
from hkdpipe.trainer.whitebox.cumulative_effect import cumulative_effect, mean_frequency, radial_power
from hkdpipe.trainer.whitebox.koopman_skill import without_evolution


@pytest.fixture
def start(student: HKD) -> list[torch.Tensor]:
    """Observables of three images at the start."""
    x = torch.randn(3, 1, 8, 8) * student.sigma_max
    return student.encode(x, torch.full((3,), student.sigma_max))


def test_cumulative_effect_is_that_of_the_formula(student: HKD, start: list[torch.Tensor]) -> None:
    """With masks that multiply, and the evolution by its closed form in Karras' time."""
    members = [band_members(student, band) for band in THIRDS]
    found = cumulative_effect(student, start, members, [80.0, 2.0, 0.002])
    assert found.shape == (3, 3, 3)
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)

    def evolved(sigma: float) -> list[torch.Tensor]:
        dt = (sigma ** (1 / 7) - high) / (high - low)
        result = []
        for number, z in enumerate(start):
            operator = student.koopman[str(number)]
            real, imaginary = z.double().chunk(2, dim=1)
            power = torch.complex(operator.alpha, -operator.beta).to(torch.complex128) * dt
            turned = torch.complex(real, imaginary) * power.exp()
            result.append(torch.cat([turned.real, turned.imag], dim=1))
        return result

    end = evolved(0.002)
    for band, members_found in zip(THIRDS, found.unbind(1), strict=True):
        masks = band_masks(student, band)

        def images(state: list[torch.Tensor], masks: list[torch.Tensor] = masks) -> torch.Tensor:
            mixed = [m * one + (1 - m) * other for m, one, other in zip(masks, state, end, strict=True)]
            return student.decode([tensor.float() for tensor in mixed])

        left = images([z.double() for z in start])
        for sigma, effect in zip([80.0, 2.0, 0.002], members_found.unbind(1), strict=True):
            expected = ((images(evolved(sigma)) - left) ** 2).sum(dim=(1, 2, 3)).double()
            torch.testing.assert_close(effect, expected, rtol=1e-3, atol=1e-6)
            assert (effect > 0).all() == (sigma < 80)


def test_without_evolution_there_is_no_cumulative_effect(student: HKD, start: list[torch.Tensor]) -> None:
    members = [band_members(student, band) for band in THIRDS]
    assert not cumulative_effect(without_evolution(student), start, members, [2.0, 0.002]).any()


def test_the_effect_of_all_bands_at_the_end_is_that_of_the_evolution(
    student: HKD, start: list[torch.Tensor]
) -> None:
    found = cumulative_effect(student, start, [band_members(student, BANDS["all"])], [0.002])
    end, left = torch.tensor([0.002]), torch.tensor([80.0])
    change = student.decode(student.evolve(start, left, end)) - student.decode(start)
    torch.testing.assert_close(found[:, 0, 0], change.double().square().sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("size", [8, 9])
def test_all_power_is_that_of_the_image(size: int) -> None:
    images = torch.randn(5, 3, size, size)
    expected = images.double().square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(radial_power(images).sum(dim=1), expected)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (3, 0), (0, 2), (1, 2), (3, 4), (4, 4)])
def test_a_wave_has_its_power_at_its_frequency(rows: int, columns: int) -> None:
    angle = 2 * math.pi * (rows * torch.arange(8)[:, None] + columns * torch.arange(8)[None, :]) / 8
    power = radial_power(torch.cos(angle)[None, None])[0]
    assert int(power.argmax()) == round(math.hypot(rows, columns))
    assert float(power.max() / power.sum()) == pytest.approx(1)
    assert mean_frequency(power) == pytest.approx(round(math.hypot(rows, columns)))


def test_rings_are_those_of_brute_force() -> None:
    image = np.random.default_rng(0).normal(size=(6, 6))
    spectrum = np.fft.fft2(image)
    expected = np.zeros(5)
    for row in range(6):
        for column in range(6):
            radius = math.hypot(min(row, 6 - row), min(column, 6 - column))
            expected[round(radius)] += abs(spectrum[row, column]) ** 2 / 36
    np.testing.assert_allclose(radial_power(torch.from_numpy(image)[None, None])[0].numpy(), expected)
    weighted = sum(frequency * power for frequency, power in enumerate(expected)) / expected.sum()
    assert mean_frequency(torch.from_numpy(expected)) == pytest.approx(weighted)
