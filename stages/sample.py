"""One-step samples from an export or a checkpoint."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hkdpipe.manifests import rng
from hkdpipe.manifests.errors import Interrupted
from hkdpipe.manifests.files import make_folders, write_atomic
from hkdpipe.stages.pictures import grid, save_png, to_uint8
from hkdpipe.stages.reporting import Reporter, Summary
from hkdpipe.trainer.methods.hkd import HKD

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
    make_folders(out)
    images = np.empty((count, *student.image_shape), dtype=np.float32)
    with reporter.phase("sampling", count, "images") as advance, torch.inference_mode():
        for start in range(0, count, BATCH_SIZE):
            if stop():
                raise Interrupted("stopped; nothing was written")
            indices = range(start, min(start + BATCH_SIZE, count))
            noise = torch.from_numpy(rng.unit_noise(seed, "sampling", indices, student.image_shape))
            images[start : indices.stop] = student.sample(noise.to(device)).cpu().numpy()
            advance(indices.stop)
    archive = io.BytesIO()
    np.savez_compressed(archive, images=to_uint8(images).transpose(0, 2, 3, 1))
    write_atomic(out / "samples.npz", archive.getvalue())
    save_png(out / "samples.png", grid(images[:PICTURED], math.ceil(math.sqrt(min(count, PICTURED)))))
    return Summary(
        title="sample",
        rows=(("images", f"{count:,}"), ("seed", str(seed)), ("model", str(model))),
        files=(out / "samples.png", out / "samples.npz"),
        data={"images": str(out / "samples.npz"), "picture": str(out / "samples.png"), "count": count},
    )
