"""Numbers that papers report, to stand beside measured ones; nothing here was measured by hkdpipe."""

from __future__ import annotations

import re
from typing import Any

HKD = "arXiv 2510.12220"
PUBLISHED = "fid"
"""What these numbers are."""
OTHERS = f"as listed in {HKD}"

# Name, network evaluations, FID of 50,000 images, source.
_CIFAR10 = (
    ("HKD", 1, 3.30, HKD),
    ("EDM", 35, 1.97, OTHERS),
    ("EDM", 15, 5.62, OTHERS),
    ("DDPM", 1000, 3.17, OTHERS),
    ("DDIM", 100, 4.16, OTHERS),
    ("DDIM", 10, 13.36, OTHERS),
    ("iCT-deep", 1, 2.51, OTHERS),
    ("iCT", 1, 2.83, OTHERS),
    ("2-rectified flow++", 1, 3.38, OTHERS),
    ("CD", 1, 3.55, OTHERS),
    ("ECM", 1, 3.60, OTHERS),
    ("DMD", 1, 3.77, OTHERS),
    ("2-rectified flow", 1, 4.85, OTHERS),
    ("3-rectified flow", 1, 5.21, OTHERS),
    ("1-rectified flow", 1, 6.18, OTHERS),
    ("PD", 1, 8.34, OTHERS),
    ("CT", 1, 8.70, OTHERS),
    ("KD", 1, 9.36, OTHERS),
)
_CIFAR10_CONDITIONAL = (("HKD", 1, 2.77, HKD),)
_FFHQ64 = (
    ("HKD", 1, 5.70, HKD),
    ("EDM", 79, 2.47, OTHERS),
    ("EDM", 15, 9.85, OTHERS),
    ("DDIM", 10, 18.3, OTHERS),
    ("ECM", 1, 5.99, OTHERS),
)


def published(dataset: str, shape: tuple[int, int, int], conditional: bool) -> list[dict[str, Any]]:
    """Rows of `name`, `nfe`, `fid` and `source` for the data set that a teacher says it was trained on, with
    images of that shape (C, H, W); none for one that the papers do not have."""
    named = dataset.lower()
    rows: tuple[tuple[str, int, float, str], ...] = ()
    if re.match(r"cifar[-_ ]?10(?!\d)", named) and shape == (3, 32, 32):
        rows = _CIFAR10_CONDITIONAL if conditional else _CIFAR10
    elif named.startswith("ffhq") and shape == (3, 64, 64) and not conditional:
        rows = _FFHQ64
    return [{"name": name, "nfe": nfe, PUBLISHED: fid, "source": source} for name, nfe, fid, source in rows]
