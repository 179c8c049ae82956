import numpy as np
import torch
from PIL import Image

from hkdpipe.trainer.images.colour import LUMINANCE, chroma, chroma_basis, into_gamut, luminance


def colours(spread: float) -> torch.Tensor:
    return spread * torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_luminance_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float64)
    found = luminance(torch.from_numpy(pixels).double().permute(2, 0, 1)[None])
    assert np.abs(found[0, 0].numpy() - expected).max() <= 1  # Pillow rounds


def test_the_basis_is_orthonormal_and_orthogonal_to_luminance() -> None:
    basis = np.concatenate([chroma_basis(), LUMINANCE[None] / np.linalg.norm(LUMINANCE)])
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-15)
    assert chroma_basis()[0].argmax() == 0


def test_luminance_and_chroma_together_are_the_colour() -> None:
    images = colours(1.0)
    found = torch.einsum("kc,nkhw->nchw", torch.from_numpy(chroma_basis()), chroma(images))
    # The chroma is that of a colour less its grey, which has components along the luminance alone and none.
    grey = luminance(images)
    along = torch.from_numpy(LUMINANCE / (LUMINANCE**2).sum())[:, None, None]
    leftover = (images - grey) - found
    torch.testing.assert_close(leftover, along * luminance(leftover), atol=1e-12, rtol=0)
    torch.testing.assert_close(luminance(found), torch.zeros_like(grey), atol=1e-12, rtol=0)
    torch.testing.assert_close(images, grey + found, atol=1e-12, rtol=0)
    torch.testing.assert_close(chroma(grey.expand_as(images)), torch.zeros(50, 2, 4, 4).double())


def test_gamut_keeps_luminance_and_hue_and_goes_to_its_edge() -> None:
    images = colours(0.8)
    grey = luminance(images)
    images = images[(grey.abs() < 1).flatten(1).all(dim=1)]
    grey = luminance(images)
    found = into_gamut(images)
    outside = (images.abs() > 1).any(dim=1)
    assert 0.1 < outside.float().mean() < 0.9
    assert found.abs().max() <= 1
    torch.testing.assert_close(luminance(found), grey, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.abs().amax(dim=1)[outside], torch.ones(int(outside.sum())).double())
    inside = ~outside[:, None].expand_as(images)
    torch.testing.assert_close(found[inside], images[inside], atol=1e-12, rtol=0)
    one, other = chroma(images), chroma(found)
    cross = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
    torch.testing.assert_close(cross, torch.zeros_like(cross), atol=1e-12, rtol=0)
    assert ((one * other).sum(dim=1) >= 0).all()


def test_gamut_of_a_luminance_outside_is_black_or_white() -> None:
    images = torch.tensor([[1.5, 1.2, 1.1], [-1.0, -1.4, -1.2]])[:, :, None, None]
    assert torch.equal(into_gamut(images).flatten(1), torch.tensor([[1.0] * 3, [-1.0] * 3]))
