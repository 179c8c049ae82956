import numpy as np
import pytest
import torch
from working_student import working_student

from hkdpipe.stages.whitebox import band_measurements
from hkdpipe.stages.whitebox.band_measurements import band_effect, cumulative_shares, generated, low_share
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox.bands import BANDS, THIRDS, Band


@pytest.fixture
def model() -> HKD:
    return working_student(3)


NOISE = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32))
LABELS = torch.eye(3)[[0, 2, 1, 1, 0]]


def test_what_is_measured_is_what_is_sampled(model: HKD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(band_measurements, "PART", 2)
    parts = list(generated(model, NOISE, LABELS))
    assert [len(part.images) for part in parts] == [2, 2, 1]
    images = torch.cat([part.images for part in parts])
    torch.testing.assert_close(images, model.sample(NOISE, LABELS), rtol=1e-4, atol=1e-5)


def test_a_bands_effect_is_that_of_brute_force(model: HKD, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one level, with channels set to 0 pair by pair by the rank of their alpha."""
    whole = model.sample(NOISE, LABELS)
    observables = model.observe(NOISE * 80, torch.full((5,), 80.0), LABELS)
    numbers = [number for number, shape in enumerate(model.shapes) if shape[1] == 4]
    ranked = sorted(
        (float(value), number, pair, y, x)
        for number in numbers
        for pair, rows in enumerate(model.koopman[str(number)].alpha)
        for y, row in enumerate(rows)
        for x, value in enumerate(row)
    )
    alone, without = ([tensor.clone() for tensor in observables] for _ in range(2))
    energy = {True: 0.0, False: 0.0}
    for rank, (_, number, pair, y, x) in enumerate(ranked):
        inside = rank < round(len(ranked) / 4)
        channels = [pair, pair + model.shapes[number][0] // 2]
        energy[inside] += float(observables[number][:, channels, y, x].square().sum())
        (without if inside else alone)[number][:, channels, y, x] = 0
    monkeypatch.setattr(band_measurements, "PART", 3)
    found = band_effect(model, list(generated(model, NOISE, LABELS)), Band(0, 0.25), 4)
    lost = whole - model.decode(without, LABELS)
    assert found.share == pytest.approx(energy[True] / sum(energy.values()), rel=1e-4)
    assert found.alone == pytest.approx(
        float((model.decode(alone, LABELS) - whole).square().mean()), rel=1e-3
    )
    assert found.without == pytest.approx(float(lost.square().mean()), rel=1e-3)
    power = np.abs(np.fft.fft2(lost[:, 0].numpy())) ** 2
    frequencies = np.fft.fftfreq(8, 1 / 8)
    radius = np.round(np.hypot(frequencies[:, None], frequencies[None, :]))
    assert found.frequency == pytest.approx((power * radius).sum() / power.sum(), rel=1e-3)
    assert found.low == pytest.approx(power[:, radius <= 1].sum() / power.sum(), rel=1e-3)


def test_the_band_of_everything_leaves_nothing_out(model: HKD) -> None:
    parts = list(generated(model, NOISE, LABELS))
    found = band_effect(model, parts, BANDS["all"], None)
    assert (found.share, found.alone) == (1, 0)
    nothing = model.decode([torch.zeros_like(tensor) for tensor in parts[0].end], LABELS)
    assert found.without == pytest.approx(float((nothing - parts[0].images).square().mean()), rel=1e-4)


@pytest.mark.parametrize(("size", "highest"), [(8, 1), (32, 4), (64, 8)])
def test_low_frequencies_are_a_quarter_of_those_along_an_axis(size: int, highest: int) -> None:
    power = torch.ones(round(size / 2 * 2**0.5) + 1)
    assert low_share(power, size) == pytest.approx((highest + 1) / len(power))


def test_cumulative_shares_are_of_the_mean_over_images(model: HKD, monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas = [80.0, 1.0, 0.002]
    whole = cumulative_shares(model, list(generated(model, NOISE, LABELS)), THIRDS, sigmas)
    monkeypatch.setattr(band_measurements, "PART", 2)
    effect, share = cumulative_shares(model, list(generated(model, NOISE, LABELS)), THIRDS, sigmas)
    torch.testing.assert_close((effect, share), whole, rtol=1e-3, atol=1e-7)
    assert not share[:, 0].any(), "at the start there is no effect to share"
    torch.testing.assert_close(share.sum(dim=0)[1:], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(share[:, 1:], effect[:, 1:] / effect[:, 1:].sum(dim=0))
