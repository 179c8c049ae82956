"""What a feature network says of many images, computed in parts that are kept on disk.

A process that is killed loses the part it was at; processes that work on the same parts share them out by
claims, as the workers of stage 1 do with shards.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.atomic_files import make_folders, remove_temporaries, write_atomic
from hkdpipe.manifests.ground.claims import POLL_SECONDS, Claims
from hkdpipe.manifests.ground.errors import InputError

PART = 1024
"""Images of a part, or the next multiple of the batch."""


@dataclass(frozen=True)
class Outputs:
    """Of N images: features (N, d) and logits (N, classes), float32, and themselves where they are needed."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    images: NDArray[np.uint8] | None = None

    def __getitem__(self, here: slice) -> Outputs:
        images = None if self.images is None else self.images[here]
        return Outputs(self.features[here], self.logits[here], images)


def joined(parts: list[Outputs]) -> Outputs:
    """Those of one set of images after the other."""
    images = [part.images for part in parts if part.images is not None]
    return Outputs(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.logits for part in parts]),
        np.concatenate(images) if images else None,
    )


def part_ranges(count: int, batch_size: int) -> list[range]:
    """The images of each part: whole batches, but for the last one's."""
    size = batch_size * -(-PART // batch_size)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def compute_parts(
    folder: Path,
    parts: list[range],
    compute: Callable[[range], Outputs],
    advance: Callable[[int], None],
    wait: bool,
) -> None:
    """Compute the parts missing in `folder` that nobody else computes; `wait` until all are there.

    `compute` raises to stop; `advance` is told how many images are there.
    """
    make_folders(folder)
    with Claims(folder) as claims:
        claims.remove_leftovers()
        while missing := [number for number in range(len(parts)) if not _path(folder, number).is_file()]:
            advance(sum(map(len, parts)) - sum(len(parts[number]) for number in missing))
            taken = [number for number in missing if _make(folder, number, parts[number], compute, claims)]
            if not taken:
                if not wait:
                    return
                time.sleep(POLL_SECONDS)
    advance(sum(map(len, parts)))


def _make(
    folder: Path, number: int, part: range, compute: Callable[[range], Outputs], claims: Claims
) -> bool:
    """Compute a part, unless another process has or does."""
    path, name = _path(folder, number), f"{number:06d}"
    if path.is_file() or not claims.take(name):
        return False
    try:
        if not path.is_file():
            remove_temporaries(folder, path.name)
            outputs = compute(part)
            buffer = io.BytesIO()
            np.savez(buffer, **{name: value for name, value in vars(outputs).items() if value is not None})
            write_atomic(path, buffer.getbuffer())
    finally:
        claims.release(name)
    return True


def read_parts(folder: Path, parts: list[range]) -> Iterator[Outputs]:
    """The outputs of each part in turn. InputError for a damaged one, which is deleted."""
    for number, part in enumerate(parts):
        path = _path(folder, number)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                outputs = Outputs(**arrays)
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
            outputs = None
        if outputs is None or not len(outputs.features) == len(outputs.logits) == len(part):
            path.unlink()
            raise InputError(f"{path}: damaged, and deleted; the same command computes it again")
        yield outputs


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"
