"""Image sets in an .npz: `images` (N, H, W) or (N, H, W, C) of uint8, and perhaps `labels` (N,)."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.images.image_sets import Format, class_numbers, register, scaled


class ZippedArrays(Format):
    words = "an .npz file"
    words_of_classes = "an .npz file with an array 'labels'"

    def holds(self, path: Path) -> bool:
        return path.suffix == ".npz" and path.is_file()

    def images(self, source: str) -> NDArray[np.float32]:
        return scaled(_read_npz(Path(source))["images"])

    def labels(self, source: str) -> NDArray[np.int64] | None:
        arrays = _read_npz(Path(source))
        return class_numbers(source, arrays["labels"], len(arrays["images"])) if "labels" in arrays else None


register(ZippedArrays())


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """`images`, uint8 (N, H, W, C), and `labels` as they are, if they are there."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ValueError("it is a .npy, one array without a name")
        with arrays:
            images = arrays["images"]
            labels = {"labels": arrays["labels"]} if "labels" in arrays else {}
    except KeyError:
        raise InputError(f"{path}: holds no array named 'images'") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable .npz ({error})") from None
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise InputError(f"{path}: images: {images.dtype} {images.shape}; accepted: uint8 (N, H, W[, C])")
    return {"images": images, **labels}
