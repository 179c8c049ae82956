from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from hkdpipe.stages.evaluation.seen import quantised
from hkdpipe.stages.shared.picture_grids import (
    CAPTION,
    GAP,
    SIDE,
    beside,
    grid,
    save_animation,
    save_png,
    strip,
    to_uint8,
)


@pytest.fixture
def values() -> torch.Tensor:
    """Around every border between two bytes, at random, and out of range."""
    borders = (torch.arange(-3, 260, dtype=torch.float64) - 128) / 127.5
    around = torch.cat([borders - 1e-6, borders, borders + 1e-6])
    return torch.cat([around, torch.rand(1000) * 4 - 2, torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4])]).float()


def test_bytes_are_rounded_as_edm_rounds_them(values: torch.Tensor) -> None:
    """(x * 127.5 + 128) clipped to 0 .. 255 and cut off, as EDM's generator writes its images."""
    expected = (values * 127.5 + 128).clip(0, 255).to(torch.uint8).numpy()
    found = to_uint8(values.numpy())
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
    assert to_uint8(np.array([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]


def test_every_byte_comes_back_as_itself() -> None:
    pixels = np.arange(256)
    assert np.array_equal(to_uint8((pixels / 127.5 - 1).astype(np.float32)), pixels)


def test_evaluation_measures_the_images_that_files_would_hold(values: torch.Tensor) -> None:
    assert np.array_equal(quantised(values).numpy(), to_uint8(values.numpy()))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_enlarges_every_pixel_row_by_row(channels: int) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (5, channels, 8, 8))
    sheet = np.asarray(grid(images, 3))
    scale = SIDE // 8
    cell = 8 * scale + GAP
    assert sheet.shape == (2 * cell + GAP, 3 * cell + GAP, 3)
    for index, image in enumerate(to_uint8(images)):
        top, left = GAP + index // 3 * cell, GAP + index % 3 * cell
        shown = sheet[top : top + cell - GAP, left : left + cell - GAP]
        for row, column in ((0, 0), (3, 5), (7, 7)):
            block = shown[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
            assert (block == image[:, row, column]).all()
    assert (sheet[cell + GAP :, 2 * cell + GAP :] == 255).all(), "the place of a sixth image is not empty"


def test_large_images_are_not_enlarged() -> None:
    assert grid(np.zeros((1, 3, 64, 64)), 1).size == (64 + 2 * GAP, 64 + 2 * GAP)


def test_captioned_pictures(tmp_path: Path) -> None:
    small, large = (Image.new("RGB", size, "red") for size in ((30, 10), (50, 40)))
    sheet = beside([("one", small), ("two", large)])
    assert sheet.size == (30 + 4 * GAP + 50, 40 + CAPTION)
    assert sheet.getpixel((0, CAPTION)) == sheet.getpixel((79, 39 + CAPTION)) == (255, 0, 0)
    assert sheet.getpixel((29, CAPTION + 10)) == (255, 255, 255)
    assert np.asarray(sheet)[:CAPTION].min() < 128, "there is no caption"
    rows = [np.zeros((3, 1, 8, 8)), np.zeros((3, 1, 8, 8))]
    striped = strip(rows, ["a", "b"], ["80", "1", "0"])
    single = grid(rows[0], 3)
    assert striped.size == (single.width, CAPTION + 2 * (single.height + CAPTION))
    save_png(tmp_path / "strip.png", striped)
    with Image.open(tmp_path / "strip.png") as read:
        assert np.array_equal(np.asarray(read), np.asarray(striped))


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_animations_show_every_frame(tmp_path: Path, form: str) -> None:
    frames = [grid(np.full((2, 1, 8, 8), value), 2) for value in (-1.0, 0.0, 1.0)]
    save_animation(tmp_path / f"moving.{form}", frames, 0.2)
    with Image.open(tmp_path / f"moving.{form}") as read:
        assert (read.format, read.info["loop"]) == (form.upper(), 0)
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(read)]
    assert len(shown) == 3
    for found, expected in zip(shown, frames, strict=True):
        assert np.array_equal(found, np.asarray(expected))
