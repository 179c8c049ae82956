"""What stage 1 adds to its sampler: `generate` against a bare loop over the same network, nothing stored.

`python tests/benchmarks/bench_generation.py [TRAJECTORIES]`: the digits teacher, by default for 4,096
trajectories, and an untrained network of CIFAR-10's size for a few; both in turns in one process, the median
of the ratios of one turn, and the smallest and largest of them. Where the machine is too noisy for that, the
share of stage 1's own time in which it does not sample says more.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hkdpipe.stages.generation import generate as stage
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import sample_trajectory
from hkdpipe.trainer.teachers.teacher import load_teacher, save_teacher

ROUNDS = 5
DIGITS = GenerationSettings(count=4096, shard_size=1024, batch_size=256)
CIFAR10 = GenerationSettings(count=16, shard_size=8, batch_size=4, steps=2)
CIFAR10_NETWORK = Architecture(32, 3, model_channels=128, channel_mult=(2, 2, 2), augment_dim=9)


def stored(teacher: str, settings: GenerationSettings) -> tuple[float, float]:
    """Seconds of stage 1, and those of them in which it samples."""
    sampling = 0.0
    sample_batch = stage.sample_batch

    def timed(*arguments: Any) -> Any:
        nonlocal sampling
        began = time.perf_counter()
        batch = sample_batch(*arguments)
        sampling += time.perf_counter() - began
        return batch

    start = time.perf_counter()
    stage.sample_batch = timed
    with tempfile.TemporaryDirectory() as folder:
        device = torch.device("cpu")
        out = Path(folder) / "archive"
        stage.generate(teacher, out, settings, device=device, reporter=Silent(), stop=lambda: False)
        seconds = time.perf_counter() - start
    stage.sample_batch = sample_batch
    return seconds, sampling


def bare(teacher: str, settings: GenerationSettings) -> float:
    start = time.perf_counter()
    loaded = load_teacher(teacher)
    for _ in range(0, settings.count, settings.batch_size):
        sample_trajectory(loaded, torch.randn(settings.batch_size, *loaded.image_shape), settings.steps)
    return time.perf_counter() - start


def compare(name: str, teacher: str, settings: GenerationSettings) -> None:
    once = replace(settings, count=settings.batch_size)
    bare(teacher, once)
    stored(teacher, once)
    turns = [(bare(teacher, settings), *stored(teacher, settings)) for _ in range(ROUNDS)]
    ratios = sorted(loop / whole for loop, whole, _ in turns)
    outside = statistics.median(1 - sampling / whole for _, whole, sampling in turns)
    print(
        f"{name}, {settings.count} trajectories: stage 1 at {statistics.median(ratios):.3f} times the bare "
        f"loop's rate ({ratios[0]:.3f} to {ratios[-1]:.3f}); {outside:.1%} of its time is not sampling",
        flush=True,
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else DIGITS.count
    compare("digits teacher", "digits", replace(DIGITS, count=count))
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        network = PreconditionedUNet(CIFAR10_NETWORK)
        save_teacher(teacher, network, {}, torch.float32)
        compare(f"{network.parameter_count() / 1e6:.1f} M parameters", str(teacher), CIFAR10)


if __name__ == "__main__":
    main()
