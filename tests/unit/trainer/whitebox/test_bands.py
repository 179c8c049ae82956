import pytest
import torch

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.whitebox.bands import (
    BANDS,
    THIRDS,
    Band,
    band_masks,
    masked,
    operator_levels,
    parse_band,
)

UNEVEN = (Band(0, 0.21), Band(0.21, 0.6), Band(0.6, 1))


def made(network: PreconditionedUNet, **settings: object) -> HKD:
    model = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(**settings))).requires_grad_(False)  # type: ignore[arg-type]
    for parameter in model.koopman.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def observables(model: HKD) -> list[torch.Tensor]:
    x = torch.randn(2, 1, 8, 8) * model.sigma_max
    return model.observe(x, torch.full((2,), model.sigma_max))


def test_all_bands_kept_give_the_models_output_bit_for_bit(student: HKD) -> None:
    noise = torch.randn(2, 1, 8, 8)
    z = student.observe(noise * student.sigma_max, torch.full((2,), student.sigma_max))
    assert torch.equal(student.decode(masked(z, band_masks(student, BANDS["all"]))), student.sample(noise))


@pytest.mark.parametrize("bands", [THIRDS, UNEVEN])
@pytest.mark.parametrize("sharing", ["location", "channel", "low-rank"])
def test_bands_that_tile_the_quantiles_sum_to_everything(
    network: PreconditionedUNet, bands: tuple[Band, ...], sharing: str
) -> None:
    """Pairs of equal alpha, too: those that locations share, and those of an idle operator."""
    for model in (made(network, sharing=sharing), HKD.from_teacher(network, HkdOptions())):
        z = observables(model)
        parts = [masked(z, band_masks(model, band)) for band in bands]
        for whole, *pieces in zip(z, *parts, strict=True):
            assert torch.equal(sum(pieces), whole)
            assert (torch.stack(pieces) != 0).sum(0).max() == 1


@pytest.mark.parametrize("band", [*THIRDS, *UNEVEN])
def test_a_band_has_the_pairs_between_its_quantiles(student: HKD, band: Band) -> None:
    """By brute force: each pair counted among the alphas of its level."""
    masks = band_masks(student, band)
    assert [mask.shape for mask in masks] == student.shapes
    for level in (8, 4):
        numbers = [n for n, shape in enumerate(student.shapes) if shape[1] == level]
        alphas = [student.koopman[str(n)].alpha for n in numbers]
        everything = torch.cat([alpha.flatten() for alpha in alphas])
        for number, alpha in zip(numbers, alphas, strict=True):
            below = (everything < alpha.unsqueeze(-1)).sum(-1) / len(everything)
            # A pair counts at its rank; a band's borders, at the nearest pair.
            half = 0.5 / len(everything)
            expected = ((below > band.low - half) & (below < band.high - half)).to(masks[number])
            assert torch.equal(masks[number], torch.cat([expected, expected]))


def test_with_a_level_the_others_are_kept_whole(student: HKD) -> None:
    band = BANDS["smallest"]
    everywhere = band_masks(student, band)
    for level in (8, 4):
        for shape, mask, other in zip(
            student.shapes, band_masks(student, band, level), everywhere, strict=True
        ):
            assert torch.equal(mask, other if shape[1] == level else torch.ones(shape))


@pytest.mark.parametrize("level", [None, 4])
def test_without_a_band_all_is_kept_but_the_band(network: PreconditionedUNet, level: int | None) -> None:
    model = made(network, hierarchy="full")
    band = BANDS["middle"]
    alone, others = (band_masks(model, band, level, without) for without in (False, True))
    for shape, one, other in zip(model.shapes, alone, others, strict=True):
        expected = 1 if level in (None, shape[1]) else 2
        assert torch.equal(one + other, torch.full(shape, float(expected)))


def test_observables_without_an_operator_are_kept_whole(network: PreconditionedUNet) -> None:
    model = made(network, hierarchy="bottleneck")
    assert operator_levels(model) == [4]
    *skips, bottleneck = band_masks(model, BANDS["largest"])
    assert all(mask.all() for mask in skips)
    assert bottleneck.mean() == pytest.approx(1 / 3, abs=0.01)
    *skips, bottleneck = band_masks(model, BANDS["largest"], without=True)
    assert all(mask.all() for mask in skips)
    assert bottleneck.mean() == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("text", "band"), [("smallest", BANDS["smallest"]), ("all", Band(0, 1)), ("0.2:0.5", Band(0.2, 0.5))]
)
def test_bands_are_read_and_written(text: str, band: Band) -> None:
    assert parse_band(text) == band
    assert str(band) == text


@pytest.mark.parametrize("text", ["0.5:0.2", "0.3:0.3", "-0.1:0.5", "0.5:1.2", "nan:1", "0:nan"])
def test_bands_of_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=rf"^band: got {text}; accepted: quantiles from 0 to 1"):
        parse_band(text)


@pytest.mark.parametrize("text", ["", "low", "0.5", "0:1:2", "a:b"])
def test_what_is_no_band_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^band: got '{text}'; accepted: smallest, middle, largest, all, or"
    ):
        parse_band(text)


def test_bands_and_levels_that_a_model_does_not_have_are_refused(network: PreconditionedUNet) -> None:
    model = made(network)
    with pytest.raises(UsageError, match=r"^level: got 5; accepted: 8, 4$"):
        band_masks(model, BANDS["all"], 5)
    with pytest.raises(UsageError, match=r"^band: got 0\.5:0\.50001; accepted at level 8: at least 0\.0"):
        band_masks(model, Band(0.5, 0.50001))
    with pytest.raises(UsageError, match=r"^model: it has no operator \(hierarchy = 'none'\)"):
        band_masks(made(network, hierarchy="none"), BANDS["all"])
