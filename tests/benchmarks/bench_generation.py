"""What stage 1 adds to its sampler: `generate` against a bare loop over the same network, nothing stored.

`python tests/benchmarks/bench_generation.py [TRAJECTORIES]`; both in turns in one process, ratio of medians.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from hkdpipe.stages.generate import generate
from hkdpipe.stages.reporting import Silent
from hkdpipe.stages.settings import GenerationSettings
from hkdpipe.trainer.sampler import sample_trajectory
from hkdpipe.trainer.teacher import load_teacher

BATCH, ROUNDS = 256, 3


def stored(count: int) -> float:
    settings = GenerationSettings(count=count, shard_size=512, batch_size=BATCH)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        device = torch.device("cpu")
        out = Path(folder) / "archive"
        generate("digits", out, settings, device=device, reporter=Silent(), stop=lambda: False)
        return time.perf_counter() - start


def bare(count: int) -> float:
    teacher = load_teacher("digits")
    start = time.perf_counter()
    for _ in range(0, count, BATCH):
        sample_trajectory(teacher, torch.randn(BATCH, *teacher.image_shape))
    return time.perf_counter() - start


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    bare(BATCH)
    pairs = [(bare(count), stored(count)) for _ in range(ROUNDS)]
    loop, stage = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{count} trajectories: bare loop {count / loop:.1f}/s, stage 1 {count / stage:.1f}/s")
    print(f"stage 1 takes {stage / loop:.3f} times the bare loop")


if __name__ == "__main__":
    main()
