"""An archive of pairs that KDM's code has made: a folder of .npz files, each with both ends of a trajectory.

The pairs come from noise that is not the archive's own, so nothing of it can be computed again.
"""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.archive.contents import valid_record
from hkdpipe.manifests.forms.codecs import pack
from hkdpipe.manifests.ground.atomic_files import Bytes
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.manifests.plan.plan import IMPORTED, Plan
from hkdpipe.stages.generation.convert import write_missing
from hkdpipe.stages.generation.generate import make_plan
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Reporter, Summary
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher

LARGE = 0.5  # of the noise level: noise is above it, an image below


def holds_pairs(folder: Path) -> bool:
    """Whether a folder is one of pairs rather than an archive."""
    return not (folder / "manifest.json").exists() and any(folder.glob("*.npz"))


def import_pairs(
    source: Path, out: Path, form: str, teacher: str, *, reporter: Reporter, stop: Callable[[], bool]
) -> Summary:
    """Write the pairs in the folder `source` as the archive `out`, or what it still lacks of it.

    They are taken in the order of their names; those of a conditional teacher so that trajectory i has the
    class that the archive's seed gives it, until one is used up. Raises UsageError where `out` is another
    archive, InputError for a file that is no pair of the teacher's, Interrupted when asked to stop.
    """
    loaded = load_teacher(teacher)
    files = _in_order(sorted(source.glob("*.npz")), loaded, reporter)
    plan = _plan(loaded, form, len(files))

    def payloads(k: int) -> tuple[list[Bytes], dict[str, Any]]:
        pairs = (read_pair(file, loaded, plan.sigmas[0]) for file in files[slice(*plan.shard_range(k))])
        return [pack(plan, pair) for pair in pairs], names(k)

    def names(k: int) -> dict[str, Any]:
        return {"pairs": digest([file.name for file in files[slice(*plan.shard_range(k))]])}

    for k in range(plan.shards):
        record = valid_record(out, plan, k)
        if record is not None and record.fingerprint not in ({}, names(k)):
            others = f"{out}: shard {k} holds other pairs than {source} has in its place now"
            remedy = "take another OUT, or give new pairs names that come after all others"
            raise UsageError(f"{others}: {remedy}")
    shape = "x".join(map(str, plan.shape))
    rows = [("pairs", f"{len(files):,} of {shape}, as states at {plan.sigmas[0]:g} and 0")]
    if left := sum(1 for _ in source.glob("*.npz")) - len(files):
        why = "of classes of which there are more than the others allow"
        rows.append(("not taken", f"{left:,} pairs, {why}"))
    return write_missing(out, plan, payloads, rows, reporter, stop)


def read_pair(file: Path, teacher: Teacher, sigma_max: float) -> NDArray[np.float32]:
    """Start and end (2, C, H, W) in an .npz: the first and the last of an array (k, C, H, W) of any name.

    Which of them is the noise, at `sigma_max`, its magnitude tells. The array `label` is a class or its
    one-hot vector. InputError for anything else.
    """
    arrays = _arrays(file)
    paths = [array for array in arrays.values() if array.ndim == 4 and array.dtype.kind == "f"]
    if len(paths) != 1 or paths[0].shape[1:] != teacher.image_shape or len(paths[0]) < 2:
        got = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        accepted = f"one of floats (2 or more, {', '.join(map(str, teacher.image_shape))})"
        raise InputError(f"{file}: got arrays {got}; accepted: {accepted}")
    ends = paths[0][[0, -1]].astype(np.float32)
    if not np.isfinite(ends).all():
        raise InputError(f"{file}: a state is not finite")
    magnitudes = np.sqrt(np.square(ends, dtype=np.float64).mean(axis=(1, 2, 3)))
    end, start = np.argsort(magnitudes).tolist()
    low, high = magnitudes[[end, start]]
    if not low < LARGE * sigma_max < high:
        accepted = f"an image and its noise at {sigma_max:g}"
        raise InputError(f"{file}: got states of magnitude {low:.3g} and {high:.3g}; accepted: {accepted}")
    _label(file, arrays, teacher.arch.label_dim)
    return ends[[start, end]]


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: not an .npz of arrays: {error}") from None


def _label(file: Path, arrays: dict[str, NDArray[Any]], label_dim: int) -> int | None:
    if not label_dim:
        return None
    label = arrays.get("label")
    if label is not None and label.size == 1 and label.item() in range(label_dim):
        return int(label.item())
    if label is not None and np.array_equal(np.sort(label, axis=None), np.eye(label_dim)[-1]):
        return int(label.argmax())
    got, accepted = label if label is None else label.tolist(), f"a class from 0 to {label_dim - 1}"
    raise InputError(f"{file}: label: got {got}; accepted: {accepted}, or its one-hot vector")


def _in_order(files: list[Path], teacher: Teacher, reporter: Reporter) -> list[Path]:
    """The files of the trajectories 0, 1, …"""
    label_dim = teacher.arch.label_dim
    if not label_dim:
        return files
    waiting: dict[int | None, list[Path]] = {}
    with reporter.phase("reading classes", len(files), "pairs") as advance:
        for done, file in enumerate(reversed(files), 1):
            waiting.setdefault(_label(file, _arrays(file), label_dim), []).append(file)
            advance(done)
    classes = _plan(teacher, "zarr", len(files)).labels(range(len(files)))
    assert classes is not None
    ordered = []
    for label in classes.tolist():
        if not waiting.get(label):
            break
        ordered.append(waiting[label].pop())
    if not ordered:
        raise InputError(f"{files[0].parent}: no pair of class {int(classes[0])}, which is the first to come")
    return ordered


def _plan(teacher: Teacher, form: str, count: int) -> Plan:
    steps = teacher.arch.steps
    settings = GenerationSettings(count, steps, store_steps=(0, steps), dtype="float32", format=form)
    return replace(make_plan(teacher, settings), origin=IMPORTED)
