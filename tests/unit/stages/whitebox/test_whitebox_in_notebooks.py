from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from working_student import working_student

from hkdpipe.stages.settings.completion_settings import CompletionSettings
from hkdpipe.stages.whitebox.notebook import edit, inpaint, mask_bands, spectrum
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox.bands import BANDS, Band


@pytest.fixture
def model() -> HKD:
    return working_student()


def test_spectrum_has_the_pairs_of_each_level(model: HKD, tmp_path: Path) -> None:
    spectra, figure = spectrum(model)
    assert {level: len(spectrum.alpha) for level, spectrum in spectra.items()} == {8: 16, 4: 24}
    figure.savefig(tmp_path / "spectrum.png")
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000


def test_images_of_bands(model: HKD) -> None:
    noise = torch.randn(3, 1, 8, 8)
    images, figure = mask_bands(model, noise, [BANDS["all"], Band(0, 0.4)])
    assert list(images) == ["whole", "all", "0:0.4"]
    assert torch.equal(images["whole"], model.sample(noise))
    assert torch.equal(images["all"], images["whole"])
    assert not torch.equal(images["0:0.4"], images["whole"])
    assert isinstance(figure, Figure)


def test_edits_go_from_one_image_to_the_other(model: HKD) -> None:
    one, other = torch.randn(2, 1, 1, 8, 8)
    images, figure = edit(model, one, other, ratios=(0, 0.5, 1), band=BANDS["all"], mask="all")
    assert torch.equal(images[:1], model.sample(one))
    torch.testing.assert_close(images[2:], model.sample(other), rtol=1e-3, atol=1e-4)
    assert isinstance(figure, Figure)


def test_completions_keep_what_is_known(model: HKD) -> None:
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    found, figure = inpaint(model, images, "lower-half", CompletionSettings(count=3, steps=4))
    assert found.shape == (3, 2, 1, 8, 8)
    for completion in found:
        assert torch.equal(completion[..., :4, :], images[..., :4, :])
        assert not torch.equal(completion[..., 4:, :], images[..., 4:, :])
    assert not torch.equal(found[0], found[1])
    assert isinstance(figure, Figure)
