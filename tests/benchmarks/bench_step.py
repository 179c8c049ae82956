"""What training adds to its network: a step of `hkdpipe train` against a bare step of the teacher's U-Net.

`python tests/benchmarks/bench_step.py [STEPS]`: HKD and KD on the digits teacher, by default 40 steps, and on
an untrained network of CIFAR-10's size for a few. A step of training reads its batch from an archive and
computes the loss (without the perceptual part), the gradient, its norm, Adam's step and the average of the
weights. The bare one has the same number of images in memory and does a forward and a backward pass and
Adam's step. Both get memory as `hkdpipe train` does. They take turns, step by step, in one process; printed
are the median of the ratios of as many steps as the latent consistency comes once in, and its quartiles, of
the time and of the processors' time, which a busy machine disturbs less.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from bench_generation import CIFAR10_NETWORK
from torch import Tensor, nn

from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.stages.training.batch_reader import Reader
from hkdpipe.stages.training.train import new_student, read_batch
from hkdpipe.trainer.loop.training_loop import LoopSettings, prefetched, step
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdSettings
from hkdpipe.trainer.numbers.allocator import keep_freed_memory
from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher, save_teacher

CPU = torch.device("cpu")
EVERY = HkdSettings().latent_every


def training_steps(teacher: Teacher, archive: Archive, training: TrainingSettings) -> Iterator[None]:
    """One step of training each time."""
    options = methods()[training.method].options()
    state = new_student(teacher, archive, training, options, CPU)
    state.model.train()
    loop = LoopSettings(
        budget=training.budget,
        batch_size=training.batch_size,
        schedule=training.schedule,
        checkpoint_every=training.budget,
        keep_checkpoints=1,
        workers=training.workers,
    )

    def loss(module: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return state.model.loss(module, batch.to(CPU), Lesson(training, progress=progress))

    with closing(Reader(archive, training, print)) as reader:
        for pieces in prefetched(
            lambda start, stop: read_batch(reader, state.model, start, stop), 0, loop, World()
        ):
            step(state, pieces, loss, loop, state.seen / loop.budget, World())
            yield


def bare_steps(teacher: Teacher, images: int) -> Iterator[None]:
    """One step of the teacher's own network each time, on images that are there."""
    network = PreconditionedUNet(teacher.arch)
    network.load_state_dict(teacher.network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    x, target = torch.randn(2, images, *teacher.image_shape)
    sigma = torch.linspace(0.01, 80.0, images)
    while True:
        optimizer.zero_grad(set_to_none=True)
        ((network(x * sigma[:, None, None, None], sigma) - target) ** 2).mean().backward()
        optimizer.step()
        yield


def seconds(steps: Iterator[None]) -> tuple[float, float]:
    """Of one step: as a clock on the wall has them, and those that processors worked, reading threads too."""
    began, worked = time.perf_counter(), time.process_time()
    next(steps)
    return time.perf_counter() - began, time.process_time() - worked


def compare(name: str, source: str, generation: GenerationSettings, batch_size: int, steps: int) -> None:
    steps = -(-steps // EVERY) * EVERY
    teacher = load_teacher(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        generate(source, path, generation, device=CPU, reporter=Silent(), stop=lambda: False)
        with open_archive(path) as archive:
            for method in ("hkd", "kd"):
                training = TrainingSettings(
                    method=method, budget=(steps + 2) * batch_size, batch_size=batch_size, validation=0
                )
                whole, bare = training_steps(teacher, archive, training), bare_steps(teacher, batch_size)
                for _ in range(2):
                    next(whole), next(bare)
                turns = np.array([(seconds(whole), seconds(bare)) for _ in range(steps)])
                periods = turns.reshape(-1, EVERY, 2, 2).mean(axis=1)
                for clock, kind in enumerate(("time", "processor time")):
                    ours, theirs = periods[:, :, clock].T
                    low, middle, high = np.quantile(ours / theirs, (0.25, 0.5, 0.75))
                    print(
                        f"{name}, {batch_size} images, step of {method}: "
                        f"{1000 * np.median(ours):,.0f} ms {kind}, "
                        f"{middle:.3f} times a bare one's ({low:.3f} to {high:.3f})",
                        flush=True,
                    )


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    keep_freed_memory()
    compare("digits teacher", "digits", GenerationSettings(count=1024, shard_size=512, steps=4), 256, steps)
    with tempfile.TemporaryDirectory() as folder:
        network = PreconditionedUNet(CIFAR10_NETWORK)
        save_teacher(Path(folder) / "teacher", network, {}, torch.float32)
        few = GenerationSettings(count=16, shard_size=8, batch_size=4, steps=2)
        name = f"{network.parameter_count() / 1e6:.1f} M parameters"
        compare(name, str(Path(folder) / "teacher"), few, 4, max(2 * EVERY, steps // 8))


if __name__ == "__main__":
    main()
