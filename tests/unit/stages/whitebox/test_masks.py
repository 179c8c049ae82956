from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.stages.whitebox.masks import MASKS, read_mask


def drawn(name: str) -> list[str]:
    return ["".join(".#"[int(value)] for value in row) for row in read_mask(name, 4, 8)]


def test_built_in_masks() -> None:
    empty, full, left, right = "........", "########", "####....", "....####"
    assert drawn("lower-half") == [empty, empty, full, full]
    assert drawn("upper-half") == [full, full, empty, empty]
    assert drawn("left-half") == [left] * 4
    assert drawn("right-half") == [right] * 4
    assert drawn("lower-left") == [empty, empty, left, left]
    assert drawn("center") == [empty, "..####..", "..####..", empty]
    assert drawn("all") == [full] * 4
    assert len(MASKS) == 7


def test_a_picture_is_a_mask_in_shares_of_white(tmp_path: Path) -> None:
    pixels = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = read_mask(str(tmp_path / "mask.png"), 4, 8)
    torch.testing.assert_close(mask, torch.from_numpy(pixels / 255).float())


def test_masks_that_are_none(tmp_path: Path) -> None:
    Image.new("L", (8, 5)).save(tmp_path / "large.png")
    Image.new("RGB", (8, 4)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (
        ("large.png", r"a picture of 1x5x8 \(channels, height, width\); accepted: 1x4x8, grey, .*"),
        ("colour.png", r"a picture of 3x4x8 \(channels, height, width\); accepted: 1x4x8, grey, .*"),
        ("missing.png", "no such file; accepted: a grey picture, or lower-half, .*, all"),
    ):
        with pytest.raises(InputError, match=f"^mask {tmp_path / name}: {words}"):
            read_mask(str(tmp_path / name), 4, 8)
    with pytest.raises(InputError, match=r"text\.png: not a readable picture"):
        read_mask(str(tmp_path / "text.png"), 4, 8)
