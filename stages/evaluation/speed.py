"""Latency and throughput of a student and of its teacher's sampler."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hkdpipe.stages.evaluation.context import Context, Sampler


def measure_speed(context: Context) -> list[dict[str, Any]]:
    """Latency of one image and throughput in batches (64, and the evaluation's), warm, of the student and of
    the whole sampler."""
    sampler, nfe = context.whole_sampler()
    subjects: list[tuple[str, int, Sampler]] = [
        ("student", 1, context.student.folded().sample),
        ("teacher", nfe, sampler),
    ]
    rows = []
    with context.reporter.phase("speed", len(subjects), "samplers") as advance:
        for done, (name, nfe, sampler) in enumerate(subjects, 1):
            row: dict[str, Any] = {"name": name, "nfe": nfe}
            for batch in sorted({1, 64, context.settings.batch_size}):
                context.check_stop()
                labels = context.told(context.classes(0, batch))
                seconds = _seconds(sampler, context.noise(0, batch), labels, context.device)
                row[f"ms_per_image_batch_{batch}"] = 1e3 * seconds / batch
                row[f"images_per_second_batch_{batch}"] = batch / seconds
            rows.append(row)
            advance(done)
    return rows


@torch.inference_mode()
def _seconds(sampler: Sampler, noise: Tensor, labels: Tensor | None, device: torch.device) -> float:
    """The median time of a call, after a warm-up: of 5 calls, or as many as fit two seconds."""

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: list[float] = []
    sampler(noise, labels)
    while len(times) < 5 and sum(times) < 2:
        synchronise()
        start = time.perf_counter()
        sampler(noise, labels)
        synchronise()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
