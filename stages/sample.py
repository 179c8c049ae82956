"""One-step samples from an export or a checkpoint."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hkdpipe.manifests import rng
from hkdpipe.manifests.errors import InputError, Interrupted, UsageError
from hkdpipe.manifests.files import make_folders, read_json, write_atomic
from hkdpipe.stages.pictures import grid, save_png, to_uint8
from hkdpipe.stages.reporting import Reporter, Summary
from hkdpipe.trainer.labels import one_hot
from hkdpipe.trainer.methods.hkd import HKD

BATCH_SIZE = 256
PICTURED = 256


def sample(
    model: Path,
    out: Path,
    count: int,
    seed: int,
    *,
    class_number: int | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write `out`/samples.npz (images: uint8 (N, H, W, C)) and `out`/samples.png (the first 256).

    Image i depends on (seed, i) alone, to the rounding that the size of a network batch brings. So does its
    class, of a conditional model: drawn of those it was trained on, unless `class_number` says which; the
    .npz then holds `labels`, int64 (N,), too. UsageError where the model was not trained on that class.
    """
    student = HKD.from_pretrained(model, device)
    label_dim = student.arch.label_dim
    classes = _classes(model, label_dim, class_number)
    labels = rng.choice(seed, "sampling-labels", range(count), classes) if classes else None
    make_folders(out)
    images = np.empty((count, *student.image_shape), dtype=np.float32)
    with reporter.phase("sampling", count, "images") as advance, torch.inference_mode():
        for start in range(0, count, BATCH_SIZE):
            if stop():
                raise Interrupted("stopped; nothing was written")
            indices = range(start, min(start + BATCH_SIZE, count))
            noise = torch.from_numpy(rng.unit_noise(seed, "sampling", indices, student.image_shape))
            asked = None if labels is None else one_hot(labels[start : indices.stop], label_dim, device)
            images[start : indices.stop] = student.sample(noise.to(device), asked).cpu().numpy()
            advance(indices.stop)
    archive = io.BytesIO()
    pixels = to_uint8(images).transpose(0, 2, 3, 1)
    if labels is None:
        np.savez_compressed(archive, images=pixels)
    else:
        np.savez_compressed(archive, images=pixels, labels=labels)
    write_atomic(out / "samples.npz", archive.getvalue())
    save_png(out / "samples.png", grid(images[:PICTURED], math.ceil(math.sqrt(min(count, PICTURED)))))
    return Summary(
        title="sample",
        rows=(
            ("images", f"{count:,}"),
            *([("classes", _in_words(classes))] if classes else []),
            ("seed", str(seed)),
            ("model", str(model)),
        ),
        files=(out / "samples.png", out / "samples.npz"),
        data={"images": str(out / "samples.npz"), "picture": str(out / "samples.png"), "count": count},
    )


def _classes(model: Path, label_dim: int, asked: int | None) -> tuple[int, ...]:
    """The classes to sample; none of an unconditional model."""
    known = _trained_on(model, label_dim) if label_dim else ()
    if asked is None:
        return known
    if asked not in known:
        accepted = _in_words(known) if known else "none, as the model knows no classes"
        raise UsageError(f"--class: got {asked}; accepted: {accepted}")
    return (asked,)


def _in_words(classes: tuple[int, ...]) -> str:
    first, last = min(classes), max(classes)
    without_gaps = len(classes) == last - first + 1 and first < last
    return f"{first} to {last}" if without_gaps else ", ".join(map(str, sorted(classes)))


def _trained_on(model: Path, label_dim: int) -> tuple[int, ...]:
    """The classes that an export or a checkpoint says it was trained on; else all of the network's."""
    if (model / "config.json").is_file():
        path = model / "config.json"
        about: Any = read_json(path).get("about")
    else:
        path = model / "state.json"
        about = read_json(path)
    classes = about.get("classes", []) if isinstance(about, dict) else []
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < label_dim for c in classes):
        raise InputError(f"{path}: classes: got {classes!r}; accepted: numbers from 0 to {label_dim - 1}")
    return tuple(classes) or tuple(range(label_dim))
