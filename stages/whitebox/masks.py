"""Spatial masks: built-in ones, and those of a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.images.image_sets import load_images

MASKS = {
    "lower-half": (2, 4, 0, 4),
    "upper-half": (0, 2, 0, 4),
    "left-half": (0, 4, 0, 2),
    "right-half": (0, 4, 2, 4),
    "lower-left": (2, 4, 0, 2),
    "center": (1, 3, 1, 3),
    "all": (0, 4, 0, 4),
}
"""Top, bottom, left and right, in quarters of the picture."""


def read_mask(source: str, height: int, width: int) -> Tensor:
    """How much each pixel is to change, (H, W) in [0, 1]: one of MASKS, or a grey picture of that size.

    Of a picture, white is 1 and black 0. InputError where it has another size, or colours.
    """
    if source in MASKS:
        mask = torch.zeros(height, width)
        top, bottom, left, right = MASKS[source]
        mask[top * height // 4 : bottom * height // 4, left * width // 4 : right * width // 4] = 1
        return mask
    if not Path(source).is_file():
        raise InputError(f"--mask {source}: no such file; accepted: a grey picture, or {', '.join(MASKS)}")
    images = torch.from_numpy(load_images(source))
    if images.shape != (1, 1, height, width):
        found = "x".join(map(str, images.shape[1:]))
        raise InputError(
            f"--mask {source}: a picture of {found} (channels, height, width); accepted: 1x{height}x{width}, "
            "grey, as the model's images are large"
        )
    return (images[0, 0] + 1) / 2
