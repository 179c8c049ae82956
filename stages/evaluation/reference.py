"""What samples are compared with: images, or their statistics alone."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.archive.reader import Archive
from hkdpipe.manifests.ground.errors import InputError, Name, WrongValue
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.shared.picture_grids import to_uint8
from hkdpipe.trainer.images.image_sets import formats, load_images, load_labels
from hkdpipe.trainer.metrics.frechet_distance import Statistics, holds_statistics, read_statistics

ARCHIVE = "archive"
"""The name of the ends of an archive's trajectories as a reference."""
_OF_AN_ARCHIVE = 50_000
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Reference:
    """Either `images`, uint8 (N, C, H, W), with the classes (N,) of a conditional teacher where they have
    them, or the `statistics` of features that somebody else computed."""

    source: str
    sha256: str
    """Of what is compared with."""
    images: Pixels | None = None
    labels: NDArray[np.int64] | None = None
    statistics: Statistics | None = None


def check_reference(source: str) -> None:
    """Raises InputError where nothing of that name is there; what it holds is not looked at."""
    named = [ARCHIVE, *(name for form in formats() for name in form.names)]
    if source not in named and not Path(source).exists():
        raise InputError(Name("reference", EvaluationSettings), f": {source}: missing")


def load_reference(source: str, archive: Archive, shape: tuple[int, int, int]) -> Reference:
    """'digits', a folder, a .zip or an .npz of images, an .npz of EDM's statistics, or 'archive': the ends of
    its first 50,000 trajectories. UsageError where these are no images of `shape`, or fewer than four."""
    if holds_statistics(Path(source)):
        values = read_statistics(Path(source))
        hashed = hashlib.sha256(values.mean.tobytes() + values.covariance.tobytes()).hexdigest()
        return Reference(source, hashed, statistics=values)
    if source == ARCHIVE:
        images = _ends(archive)
        labels = archive.plan.labels(range(len(images)))
    else:
        images = to_uint8(load_images(source))
        labels = load_labels(source) if archive.plan.label_dim else None
    if images.shape[1:] != shape or len(images) < 4:
        got = (
            f": '{source}' holds {len(images)} images of {images.shape[1:]}; accepted: at least 4 of {shape}"
        )
        raise WrongValue(Name("reference", EvaluationSettings), got)
    classes = None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest()
    hashed = digest([hashlib.sha256(images.tobytes()).hexdigest(), list(images.shape), classes])
    return Reference(source, hashed, images, labels)


def _ends(archive: Archive) -> Pixels:
    last, count = len(archive.sigmas) - 1, min(_OF_AN_ARCHIVE, len(archive))
    images = np.empty((count, *archive.shape), dtype=np.uint8)
    for start in range(0, count, 1024):
        rows = range(start, min(start + 1024, count))
        images[rows.start : rows.stop] = to_uint8(archive.read(rows, [last])[:, 0].astype(np.float32))
    return images
