"""What evaluation and one-step sampling cost beside what they cannot do without.

`python tests/benchmarks/bench_evaluation.py [IMAGES] [TURNS]`, by default 32 images and 2 turns, on the
digits teacher and its untrained student:

- FID by `hkdpipe evaluate`'s own code against sampling the same images and torch-fidelity's features of both
  sides, and against those and its distance; a detector with random weights.
- The peak memory that FID adds in a process of its own for 4,096 and 16,384 images, with a stand-in for the
  detector that costs nothing.
- One-step sampling against a forward pass of the teacher's U-Net at the same batch, and against the sampler
  of 35 evaluations; also with an untrained network of CIFAR-10's size.

Both sides take turns in one process. Times are the processors', which a busy machine disturbs less; printed
are medians of the ratios of one turn, with the smallest and the largest.
"""

import functools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_generation import CIFAR10_NETWORK
from torch.utils.data import Dataset

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.stages.evaluation.context import Context
from hkdpipe.stages.evaluation.distribution import measure_distribution
from hkdpipe.stages.evaluation.reference import Reference
from hkdpipe.stages.evaluation.seen import quantised
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.metrics.feature_networks import FeatureNetwork, load_features
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import sample_trajectory
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher, save_teacher

sys.path.append(str(Path(__file__).parents[1] / "support"))
from random_inception import write_random_inception

CPU = torch.device("cpu")
BATCH = 16
MEMORY_IMAGES = (4096, 16384)


class Images(Dataset[torch.Tensor]):
    """As torch-fidelity takes them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def untrained_student(teacher: Teacher) -> HKD:
    return HKD.from_teacher(teacher.network, HkdOptions()).eval().requires_grad_(False)


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def ratio(turns: Sequence[tuple[float, float]]) -> str:
    found = [one / other for one, other in turns]
    return f"{statistics.median(found):.3f} times ({min(found):.3f} to {max(found):.3f})"


def with_context(count: int, settings: EvaluationSettings, work: Callable[[Context, Reference], Any]) -> Any:
    """Do work with what an evaluation of the digits student has, and a reference of `count` random images."""
    teacher = load_teacher("digits")
    with tempfile.TemporaryDirectory() as folder:
        few = GenerationSettings(count=8, shard_size=8, steps=2)
        generate("digits", Path(folder) / "archive", few, device=CPU, reporter=Silent(), stop=lambda: False)
        with open_archive(Path(folder) / "archive") as archive:
            out, surroundings = Path(folder) / "out", (CPU, Silent(), lambda: False, lambda: None)
            context = Context(teacher, untrained_student(teacher), archive, 0, settings, out, *surroundings)
            (context.out / "rows").mkdir(parents=True)
            images = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
            return work(context, Reference("random", "0" * 64, images))


def compare_with_torch_fidelity(count: int, turns: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

    def compare(weights: Path, context: Context, reference: Reference) -> None:
        network = load_features("inception", str(weights), (1, 8, 8), CPU)
        theirs = create_feature_extractor(
            "inception-v3-compat",
            ["2048"],
            cuda=False,
            feature_extractor_weights_path=str(weights),
            verbose=False,
        )
        real = torch.from_numpy(reference.images).expand(-1, 3, -1, -1)
        features: list[torch.Tensor] = []

        @torch.inference_mode()
        def sampled_and_seen() -> None:
            features.clear()
            student = context.student.folded()
            starts = range(0, count, BATCH)
            made = [quantised(student.sample(context.noise(start, start + BATCH))) for start in starts]
            for images in (torch.cat(made)[:count].expand(-1, 3, -1, -1), real):
                found = get_featuresdict_from_dataset(Images(images), theirs, BATCH, False, True, False)
                features.append(found["2048"])

        def measured() -> None:
            for path in (context.out / "rows").rglob("*.npz"):
                path.unlink()
            for path in (context.out / "rows").glob("*.json"):
                path.unlink()
            measure_distribution(context, network, reference, "student")

        def distance() -> None:
            fid_statistics_to_metric(*(fid_features_to_statistics(part) for part in features), verbose=False)

        measured(), sampled_and_seen()
        found = [(seconds(measured), seconds(sampled_and_seen), seconds(distance)) for _ in range(turns)]
        print(
            f"FID of {count} images against {count}: {statistics.median(one for one, _, _ in found):.1f} s, "
            f"{ratio([(one, two) for one, two, _ in found])} sampling and torch-fidelity's features, "
            f"{ratio([(one, two + three) for one, two, three in found])} those and its distance",
            flush=True,
        )

    settings = EvaluationSettings(
        samples=count, batch_size=BATCH, features="inception", metrics=("fd",), teacher_steps=()
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        write_random_inception(weights)
        with_context(count, settings, functools.partial(compare, weights))


def peak_memory(count: int) -> None:
    """Print the MB that measuring the FID of so many images adds to the peak."""
    directions = torch.randn(64, 2048, generator=torch.Generator().manual_seed(0))

    def outputs(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.flatten(1).float() @ directions, torch.zeros(len(images), 1008)

    def measured(context: Context, reference: Reference) -> float:
        network = FeatureNetwork("inception", "", outputs, "none")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        measure_distribution(context, network, reference, "student")
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3

    settings = EvaluationSettings(
        samples=count, batch_size=256, features="inception", metrics=("fd",), teacher_steps=()
    )
    print(with_context(2304, settings, measured))


def compare_sampling(name: str, teacher: Teacher, batch: int, turns: int, sampler_turns: int) -> None:
    student = untrained_student(teacher).folded()
    noise = torch.randn(batch, *teacher.image_shape)
    sigma = torch.full((batch,), 80.0)

    def timed(work: Callable[[], Any]) -> float:
        with torch.inference_mode():
            return seconds(work)

    def one_step() -> Any:
        return student.sample(noise)

    def forward() -> Any:
        return teacher.network(noise * 80, sigma)

    def sampler() -> Any:
        return sample_trajectory(teacher, noise, keep=[18])

    for work in (one_step, forward):
        timed(work)
    against = [(timed(one_step), timed(forward)) for _ in range(turns)]
    sampling = [(timed(sampler), timed(one_step)) for _ in range(sampler_turns)]
    milliseconds = 1e3 * statistics.median(one for one, _ in against) / batch
    print(
        f"{name}, batch {batch}: one step {milliseconds:.2f} ms an image, {ratio(against)} a forward pass of "
        f"the teacher's U-Net; the sampler of 35 evaluations takes {ratio(sampling)} as long",
        flush=True,
    )


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    count, turns = (*given, *(32, 2)[len(given) :])
    digits = load_teacher("digits")
    for batch in (1, 64):
        compare_sampling("digits teacher", digits, batch, 50, 5)
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(Path(folder), PreconditionedUNet(CIFAR10_NETWORK), {}, torch.float32)
        compare_sampling("55.7 M parameters", load_teacher(folder), 2, 8, 1)
    command = [sys.executable, __file__, "--memory"]
    peaks = [
        float(subprocess.run([*command, str(images)], check=True, capture_output=True, text=True).stdout)
        for images in MEMORY_IMAGES
    ]
    for images, peak in zip(MEMORY_IMAGES, peaks, strict=True):
        print(f"FID of {images:,} images: {peak:,.0f} MB added; its features {images * 8192 / 1e6:,.0f} MB")
    compare_with_torch_fidelity(count, turns)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        peak_memory(int(sys.argv[2]))
    else:
        main()
