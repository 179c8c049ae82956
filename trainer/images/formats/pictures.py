"""Image sets of pictures of one size: of a folder or a .zip, or a single one.

Of a folder whose pictures all lie in subfolders, these are the classes, in the order of their names; a .zip
has them in dataset.json, as EDM's do.
"""

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
from hkdpipe.trainer.images.image_sets import Format, class_numbers, register, scaled

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class Pictures(Format):
    words = "a picture, a folder or a .zip of pictures"
    words_of_classes = "a folder whose subfolders are the classes, a .zip with EDM's dataset.json"

    def holds(self, path: Path) -> bool:
        return path.is_dir() or (path.is_file() and (_is_picture(path.name) or path.suffix == ".zip"))

    def images(self, source: str) -> NDArray[np.float32]:
        path = Path(source)
        if path.is_file() and path.suffix == ".zip":
            with _opened_zip(path) as archive:
                members = ((f"{path}/{name}", archive.open(name)) for name in _members(archive))
                return scaled(_stacked(path, members))
        files = _pictures(path) if path.is_dir() else [path]
        return scaled(_stacked(path, ((str(file), file.open("rb")) for file in files)))

    def labels(self, source: str) -> NDArray[np.int64] | None:
        path = Path(source)
        if path.suffix == ".zip" and path.is_file():
            found = _read_zip_labels(path)
            return None if found is None else class_numbers(source, found, len(found))
        places = [file.relative_to(path).parts for file in _pictures(path)]
        if not places or any(len(parts) == 1 for parts in places):
            return None
        return np.unique([parts[0] for parts in places], return_inverse=True)[1].astype(np.int64)


register(Pictures())


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
