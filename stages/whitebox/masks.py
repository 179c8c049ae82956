"""Spatial masks: built-in ones, and those of a picture."""

from pathlib import Path

import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, Name
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


def read_mask(mask: str, height: int, width: int) -> Tensor:
    """How much each pixel is to change, (H, W) in [0, 1]: one of MASKS, or a grey picture of that size, of
    which white is 1 and black 0. InputError where it has another size, or colours."""
    if mask in MASKS:
        pixels = torch.zeros(height, width)
        top, bottom, left, right = MASKS[mask]
        pixels[top * height // 4 : bottom * height // 4, left * width // 4 : right * width // 4] = 1
        return pixels
    if not Path(mask).is_file():
        accepted = f"a grey picture, or {', '.join(MASKS)}"
        raise InputError(Name("mask"), f" {mask}: no such file; accepted: {accepted}")
    images = torch.from_numpy(load_images(mask))
    if images.shape != (1, 1, height, width):
        shape = "x".join(map(str, images.shape[1:]))
        accepted = f"1x{height}x{width}, grey, as the model's images are large"
        got = f" {mask}: a picture of {shape} (channels, height, width); accepted: {accepted}"
        raise InputError(Name("mask"), got)
    return (images[0, 0] + 1) / 2
