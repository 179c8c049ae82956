from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.images.colour import LUMINANCE
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.whitebox.bands import BANDS, Band, band_masks
from hkdpipe.trainer.whitebox.editing import (
    Observed,
    at_every_level,
    complete,
    content_kept,
    editing_levels,
    inject,
    keep_luminance,
    keep_pixels,
)

LEVELS = [80.0, 2.0, 0.3]
BOTTOM = torch.arange(8)[:, None].expand(8, 8) >= 4
RATIOS = (0.0, 0.3, 1.0)
MIDDLE = 3.0


def noises(channels: int, count: int = 3) -> list[Tensor]:
    return [torch.randn(count, channels, 8, 8) for _ in LEVELS]


def other(arch: Architecture, **changes: int) -> HKD:
    network = PreconditionedUNet(replace(arch, **changes))
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return HKD.from_teacher(network, HkdOptions()).requires_grad_(False)


def algorithm_4(
    model: HKD, reference: Tensor, basis: Tensor, unknown: Tensor, noise: list[Tensor], start: list[float]
) -> Tensor:
    """Consistency Models' algorithm 4 as printed, with an invertible A and a mask of what is unknown."""

    def transformed(images: Tensor, matrix: Tensor) -> Tensor:
        return torch.einsum("kc,nchw->nkhw", matrix, images)

    def combined(known: Tensor, found: Tensor) -> Tensor:
        both = transformed(known, basis) * ~unknown + transformed(found, basis) * unknown
        return transformed(both, torch.linalg.inv(basis))

    y = combined(reference, torch.zeros_like(reference))
    x = y + start[0] * noise[0]
    x = combined(y, model.predict(x, torch.full((len(x),), start[0])))
    for level, z in zip(start[1:], noise[1:], strict=True):
        x = combined(y, model.predict(x + level * z, torch.full((len(x),), level)))
    return x


def test_inpainting_is_algorithm_4(student: HKD) -> None:
    reference, noise = torch.randn(3, 1, 8, 8), noises(1)
    found = complete(student, keep_pixels(reference, BOTTOM), noise.__getitem__, LEVELS)
    expected = algorithm_4(student, reference, torch.eye(1), BOTTOM, noise, LEVELS)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:, :, ~BOTTOM], reference[:, :, ~BOTTOM])
    assert (found[:, :, BOTTOM] != reference[:, :, BOTTOM]).all()


def test_colorization_is_algorithm_4_in_an_orthogonal_luminance_basis(arch: Architecture) -> None:
    """Whatever the other two vectors of the basis are: by QR of the luminance and two random vectors."""
    model, reference, noise = other(arch, img_channels=3), torch.randn(3, 3, 8, 8), noises(3)
    found = complete(model, keep_luminance(reference), noise.__getitem__, LEVELS)
    columns = np.column_stack([LUMINANCE, np.random.default_rng(0).normal(size=(3, 2))])
    basis = torch.from_numpy(np.linalg.qr(columns)[0].T).float()
    unknown = torch.tensor([False, True, True])[:, None, None]
    expected = algorithm_4(model, reference, basis, unknown, noise, LEVELS)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    weights = torch.tensor([0.299, 0.587, 0.114])
    for images in (found - reference, found - expected):
        assert torch.einsum("c,nchw->nhw", weights, images).abs().max() < 1e-5
    assert (found - reference).abs().max() > 0.1


def test_known_whole_images_come_back_and_unknown_ones_are_sampled(student: HKD) -> None:
    reference, noise = torch.randn(3, 1, 8, 8), noises(1)
    nothing, everything = torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8, dtype=torch.bool)
    kept = complete(student, keep_pixels(reference, nothing), noise.__getitem__, LEVELS)
    assert torch.equal(kept, reference)
    made = complete(student, keep_pixels(reference, everything), noise.__getitem__, LEVELS[:1])
    assert torch.equal(made, student.sample(noise[0]))


def test_completions_are_told_their_classes(arch: Architecture) -> None:
    model, noise = other(arch, label_dim=4), noises(1)
    keep = keep_pixels(torch.randn(3, 1, 8, 8), BOTTOM)
    one, changed = (
        complete(model, keep, noise.__getitem__, LEVELS, torch.eye(4)[[0, 1, number]]) for number in (2, 3)
    )
    assert torch.equal(one[:2], changed[:2])
    assert not torch.allclose(one[2], changed[2])


def test_levels_are_the_start_and_then_even_in_karras_time(student: HKD) -> None:
    levels = editing_levels(student, 9, 2.0, 0.1)
    assert (len(levels), levels[0], levels[1], levels[-1]) == pytest.approx((9, 80.0, 2.0, 0.1))
    np.testing.assert_allclose(np.diff(np.power(levels[1:], 1 / 7), 2), 0, atol=1e-12)
    for highest, lowest in ((2.0, 0.001), (81.0, 0.1), (0.1, 2.0)):
        with pytest.raises(
            UsageError, match=f"got {lowest:g} and {highest:g}; accepted: .* from 0.002 to 80"
        ):
            editing_levels(student, 9, highest, lowest)


def observed(model: HKD, seed: int, sigma: float = 80.0) -> Observed:
    x = sigma * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Observed(model.encode(x, torch.tensor([sigma])), sigma)


def decoded(model: HKD, one: Observed) -> Tensor:
    return model.decode(model.evolve(one.z, torch.tensor([one.sigma]), torch.tensor([model.sigma_min])))


def test_evolving_in_two_steps_is_evolving_in_one(student: HKD) -> None:
    one = observed(student, 0)
    between = Observed(one.at(student, MIDDLE), MIDDLE)
    for tensor, direct in zip(between.at(student, 0.002), one.at(student, 0.002), strict=True):
        torch.testing.assert_close(tensor, direct, atol=1e-5, rtol=1e-5)
    back = Observed(one.at(student, 0.002), 0.002).at(student, 80.0)
    for tensor, start in zip(back, one.z, strict=True):
        torch.testing.assert_close(tensor, start, atol=1e-5, rtol=1e-5)


def test_ratio_0_is_the_original_bit_for_bit_and_ratio_1_of_everything_the_reference(student: HKD) -> None:
    """The reference being another sample, or a picture whose observables evolve backwards."""
    weights = at_every_level(band_masks(student, BANDS["all"]), torch.ones(8, 8))
    original = observed(student, 0)
    for reference in (observed(student, 1), observed(student, 1, 0.002)):
        edited = inject(student, original, reference, MIDDLE, weights, (0.0, 1.0))
        assert torch.equal(edited[:1], decoded(student, original))
        torch.testing.assert_close(edited[1:], decoded(student, reference), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(edited[0], edited[1], atol=0.01)


def test_injection_is_mixing_at_the_intermediate_state(student: HKD) -> None:
    """Evolve both, z <- (1 - r) z + r z_ref in the band and the mask, evolve on, decode."""
    masks = band_masks(student, Band(0, 0.4))
    painted = BOTTOM.float()
    edited = inject(
        student, observed(student, 0), observed(student, 1), MIDDLE, at_every_level(masks, painted), RATIOS
    )
    start, middle, end = (torch.tensor([sigma]) for sigma in (80.0, MIDDLE, 0.002))
    own, others = (student.evolve(observed(student, seed).z, start, middle) for seed in (0, 1))
    for ratio, image in zip(RATIOS, edited, strict=True):
        mixed = []
        for mask, z, z_ref in zip(masks, own, others, strict=True):
            half = z.shape[2] // 2
            z = z.clone()
            inside = (mask > 0)[:, half:].expand_as(z[0, :, half:])
            z[0, :, half:][inside] = ((1 - ratio) * z + ratio * z_ref)[0, :, half:][inside]
            mixed.append(z)
        expected = student.decode(student.evolve(mixed, middle, end))
        torch.testing.assert_close(image[None], expected, atol=1e-4, rtol=1e-4)


def test_the_time_of_an_edit_does_not_matter(student: HKD) -> None:
    """Bands and masks scale whole blocks of the operator, and so commute with the evolution."""
    weights = at_every_level(band_masks(student, BANDS["middle"]), BOTTOM.float())
    edits = [
        inject(student, observed(student, 0), observed(student, 1), sigma, weights, (0.7,))
        for sigma in (80.0, MIDDLE, 0.002)
    ]
    for edited in edits[1:]:
        torch.testing.assert_close(edited, edits[0], atol=1e-4, rtol=1e-4)


def test_masks_of_images_are_averaged_to_every_level() -> None:
    painted = torch.zeros(8, 8)
    painted[4:, :3] = 1
    masks = [torch.ones(4, 8, 8), torch.ones(6, 4, 4), torch.zeros(2, 4, 4)]
    found = at_every_level(masks, painted)
    assert torch.equal(found[0], painted.expand(4, 8, 8))
    assert found[1][0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0.5, 0, 0], [1, 0.5, 0, 0]]
    assert not found[2].any()


def test_content_kept_by_frequency() -> None:
    """The original and the reference differ by a constant, a wave of 8 pixels and one of 4."""
    across = torch.arange(8) * (2 * torch.pi / 8)
    slow, fast = torch.cos(across).expand(8, 8)[None], torch.cos(2 * across).expand(8, 8)[None]
    original = torch.randn(1, 8, 8)
    reference = original + 0.5 + slow + fast
    edited = torch.stack([original, reference, original + fast, original + 0.5, original + 0.5 * fast])
    low, high = content_kept(edited, original, reference)
    # Energies: the constant's is 1/4, that of a wave 1/2.
    np.testing.assert_allclose(low, [1, 0, 1, 2 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(high, [1, 0, 0, 1, 0.75], atol=1e-6)
