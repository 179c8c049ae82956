"""scikit-learn's digits, grey and in colours: image sets that need no file."""

import numpy as np
from numpy.typing import NDArray

from hkdpipe.trainer.images.colour import chroma_basis
from hkdpipe.trainer.images.image_sets import Format, register


class Digits(Format):
    names = ("digits", "digits-color")
    words = "'digits', 'digits-color'"
    words_of_classes = "'digits'"

    def images(self, source: str) -> NDArray[np.float32]:
        images = load_digits()[0]
        return images if source == "digits" else tinted(images)

    def labels(self, source: str) -> NDArray[np.int64]:
        return load_digits()[1]


register(Digits())


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """scikit-learn's 1,797 scanned digits (N, 1, 8, 8), values 0..16 scaled to [-1, 1], and their labels."""
    from sklearn.datasets import load_digits as read

    digits = read()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    return images, digits.target.astype(np.int64)


def tinted(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey images (N, 1, H, W) as strokes of one hue each on black: (N, 3, H, W).

    The hues are spread evenly, by turns of the golden angle. All tints have the same luminance, so that the
    luminance of an image is 0.6 times its brightness and says nothing of its hue.
    """
    angles = np.arange(len(images)) * (np.pi * (3 - np.sqrt(5)))
    tints = 0.6 + 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1) @ chroma_basis()
    brightness = (images + 1) / 2
    return (2 * brightness * tints[:, :, None, None] - 1).astype(np.float32)
