"""Samples: one-step ones of an export or a checkpoint, or a teacher's by its own sampling."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hkdpipe.manifests import rng
from hkdpipe.manifests.errors import Interrupted
from hkdpipe.manifests.files import make_folders, write_atomic
from hkdpipe.stages.pictures import grid, save_png, to_uint8
from hkdpipe.stages.reporting import Reporter, Summary
from hkdpipe.stages.settings import TeacherSampling
from hkdpipe.trainer.methods.hkd import HKD
from hkdpipe.trainer.sampler import Churn, evaluations, sample_stochastic, sample_trajectory
from hkdpipe.trainer.teacher import load_teacher

BATCH_SIZE = 256
PICTURED = 256


def sample(
    model: Path,
    out: Path,
    count: int,
    seed: int,
    *,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write `out`/samples.npz (images: uint8 (N, H, W, C)) and `out`/samples.png (the first 256).

    Image i depends on (seed, i) alone, to the rounding that the size of a network batch brings.
    """
    student = HKD.from_pretrained(model, device)

    def images(indices: range) -> Tensor:
        noise = torch.from_numpy(rng.unit_noise(seed, "sampling", indices, student.image_shape))
        return student.sample(noise.to(device))

    rows = (("seed", str(seed)), ("model", str(model)))
    return _sample(images, student.image_shape, out, count, rows, reporter, stop)


def sample_teacher(
    teacher: str,
    out: Path,
    count: int,
    seed: int,
    sampling: TeacherSampling,
    *,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """The same of a teacher, by its own sampler; by default from the noise that `sample` gives a student."""
    loaded = load_teacher(teacher, device)

    def images(indices: range) -> Tensor:
        noise, draw = _noise(seed, indices, loaded.image_shape, device, sampling.edm_seeds)
        steps, solver = sampling.steps, sampling.solver
        if sampling.churn:
            churn = Churn(sampling.churn, sampling.s_min, sampling.s_max, sampling.s_noise)
            return sample_stochastic(loaded, noise, draw, churn, steps, solver=solver)
        return sample_trajectory(loaded, noise, steps, solver=solver, keep=[steps])[0][0]

    rows = (
        ("seed", str(seed)),
        ("teacher", teacher),
        ("network evaluations each", str(evaluations(sampling.steps, sampling.solver))),
    )
    return _sample(images, loaded.image_shape, out, count, rows, reporter, stop)


def _noise(
    seed: int, indices: range, shape: tuple[int, ...], device: torch.device, edm_seeds: bool
) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Unit noise (N, *shape) that images start from, and by the step's number that which churn adds."""
    if edm_seeds:
        generators = [torch.Generator(device).manual_seed((seed + index) % 2**32) for index in indices]

        def following(dtype: torch.dtype) -> Tensor:
            drawn = [torch.randn(shape, generator=one, device=device, dtype=dtype) for one in generators]
            return torch.stack(drawn)

        # EDM draws the start in the network's precision and what follows in the state's.
        return following(torch.float32), lambda step: following(torch.float64)

    def of(purpose: str) -> Tensor:
        return torch.from_numpy(rng.unit_noise(seed, purpose, indices, shape)).to(device)

    return of("sampling"), lambda step: of(f"sampling-churn-{step}")


def _sample(
    make: Callable[[range], Tensor],
    shape: tuple[int, int, int],
    out: Path,
    count: int,
    rows: tuple[tuple[str, str], ...],
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write what `make` gives for the numbers of images, batch by batch, and summarise it."""
    make_folders(out)
    images = np.empty((count, *shape), dtype=np.float32)
    with reporter.phase("sampling", count, "images") as advance, torch.inference_mode():
        for start in range(0, count, BATCH_SIZE):
            if stop():
                raise Interrupted("stopped; nothing was written")
            indices = range(start, min(start + BATCH_SIZE, count))
            images[start : indices.stop] = make(indices).cpu().numpy()
            advance(indices.stop)
    archive = io.BytesIO()
    np.savez_compressed(archive, images=to_uint8(images).transpose(0, 2, 3, 1))
    write_atomic(out / "samples.npz", archive.getvalue())
    save_png(out / "samples.png", grid(images[:PICTURED], math.ceil(math.sqrt(min(count, PICTURED)))))
    return Summary(
        title="sample",
        rows=(("images", f"{count:,}"), *rows),
        files=(out / "samples.png", out / "samples.npz"),
        data={"images": str(out / "samples.npz"), "picture": str(out / "samples.png"), "count": count},
    )
