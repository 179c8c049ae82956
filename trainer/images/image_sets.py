"""Image sets to train a teacher on or to compare samples with."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.images.colour import chroma_basis

BUILT_IN = ("digits", "digits-color")
"""Image sets that need no file."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_images(source: str) -> NDArray[np.float32]:
    """Images (N, C, H, W) in [-1, 1]: 'digits', 'digits-color', pictures of one size, or an .npz.

    The pictures are those of a folder or of a .zip, or a single file. The .npz holds one array `images`
    (N, H, W) or (N, H, W, C) of uint8. Raises InputError otherwise.
    """
    if source == "digits":
        return load_digits()[0]
    if source == "digits-color":
        return tinted(load_digits()[0])
    path = Path(source)
    if path.is_dir():
        return _scaled(_read_folder(path))
    if path.is_file() and _is_picture(path.name):
        return _scaled(_stacked(path, [(str(path), path.open("rb"))]))
    if path.suffix == ".zip" and path.is_file():
        return _scaled(_read_zip(path))
    if path.suffix == ".npz" and path.is_file():
        return _scaled(_read_npz(path)["images"])
    raise InputError(
        f"{source}: no such image set; accepted: 'digits', 'digits-color', a picture, a folder or a .zip of "
        "pictures, an .npz file"
    )


def select_images(source: str) -> NDArray[np.float32]:
    """The images (N, C, H, W) of `load_images`, or SET:NUMBER, one of them, counted from 0: (1, C, H, W)."""
    name, colon, number = source.rpartition(":")
    if not colon or not number.isdecimal() or Path(source).exists():
        return load_images(source)
    images = load_images(name)
    if int(number) >= len(images):
        raise InputError(f"{source}: no such image; accepted: {name}:0 to {name}:{len(images) - 1}")
    return images[int(number)][None]


def load_labels(source: str) -> NDArray[np.int64] | None:
    """The classes (N,), numbered from 0, of the images of `load_images`; None where the set has none.

    Those of 'digits' and 'digits-color' are known; of a folder whose pictures all lie in subfolders, the
    subfolders are the classes, in the order of their names; a .zip has them in dataset.json, as EDM's do; an
    .npz in an array `labels`. Raises InputError for one that holds no class numbers.
    """
    if source in BUILT_IN:
        return load_digits()[1]
    path = Path(source)
    if path.is_dir():
        places = [file.relative_to(path).parts for file in _pictures(path)]
        if not places or any(len(parts) == 1 for parts in places):
            return None
        return np.unique([parts[0] for parts in places], return_inverse=True)[1].astype(np.int64)
    if path.suffix == ".zip":
        labels = _read_zip_labels(path)
        count = None if labels is None else len(labels)
    else:
        arrays = _read_npz(path)
        labels, count = arrays.get("labels"), len(arrays["images"])
    if labels is None:
        return None
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0:
        raise InputError(
            f"{path}: labels: {labels.dtype} {labels.shape}; accepted: a class number from 0 on for each of "
            f"the {count} images"
        )
    return labels.astype(np.int64)


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


def _scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1], as EDM scales: x / 127.5 - 1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def _read_folder(path: Path) -> NDArray[np.uint8]:
    return _stacked(path, ((str(file), file.open("rb")) for file in _pictures(path)))


def _read_zip(path: Path) -> NDArray[np.uint8]:
    with _opened_zip(path) as archive:
        return _stacked(path, ((f"{path}/{name}", archive.open(name)) for name in _members(archive)))


def _read_zip_labels(path: Path) -> NDArray[Any] | None:
    """What dataset.json says of the pictures in their order: {"labels": [[name, class], ...] or null}."""
    with _opened_zip(path) as archive:
        if "dataset.json" not in archive.namelist():
            return None
        try:
            said = json.loads(archive.read("dataset.json"))["labels"]
            classes = dict(said or ())
            return np.array([classes[name] for name in _members(archive)]) if said else None
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: dataset.json: no class of {error}") from None


@contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable .zip ({error})") from None


def _members(archive: zipfile.ZipFile) -> list[str]:
    return sorted(filter(_is_picture, archive.namelist()))


def _stacked(source: Path, files: Iterable[tuple[str, IO[bytes]]]) -> NDArray[np.uint8]:
    """Pictures of one size, (N, H, W, C)."""
    from PIL import Image, UnidentifiedImageError

    images: list[NDArray[np.uint8]] = []
    first = ""
    for name, file in files:
        try:
            with file, Image.open(file) as picture:
                if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
                    raise OSError("more than 8 bits a channel")
                grey = picture.mode in ("1", "L")
                pixels = np.asarray(picture.convert("L" if grey else "RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # SyntaxError: of a damaged PNG
            raise InputError(f"{name}: not a readable picture ({error})") from None
        images.append(pixels[:, :, None] if grey else pixels)
        first = first or PurePosixPath(name).name
        if images[-1].shape != images[0].shape:
            raise InputError(f"{name}: shape {images[-1].shape}, but {first} has {images[0].shape}")
    if not images:
        raise InputError(f"{source}: holds no pictures ({', '.join(SUFFIXES)})")
    return np.stack(images)


def _pictures(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if _is_picture(file.name))


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


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
