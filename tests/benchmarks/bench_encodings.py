"""Encodings and codecs on trajectories of images: sizes, errors and times.

`python tests/benchmarks/bench_encodings.py [TRAJECTORIES]`, by default 256 of each kind: of the digits
teacher (1 x 8 x 8), and of 3 x 32 x 32 from the optimal denoiser of 4,096 crops of scikit-learn's two
photographs, known in closed form: images of natural statistics, though a network's would be smoother. The
form is zarr. Printed are bytes a trajectory (the shard's file, frame included) and how many times fewer than
the numbers uncompressed; the largest error of all states, and at some noise levels the largest and the root
mean square, against the sampler's float64; processor time of one thread, of writing a trajectory (SHA-256
included) and of reading five of its states at random.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.archive.writer import begin, finish, write_shard
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.plan.plan import CODECS, ENCODINGS, Plan
from hkdpipe.stages.generation.device_encoding import stored_numbers
from hkdpipe.trainer.teachers.sampler import Denoiser, sample_trajectory
from hkdpipe.trainer.teachers.teacher import load_teacher

CROPS = 4096
READ = 5
SHOWN = (0, 6, 12, 18)


def crops() -> torch.Tensor:
    """Squares of 48 to 200 pixels, made 32 wide: (CROPS, 3, 32, 32) in -1 … 1."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    pictures = [torch.tensor(picture).permute(2, 0, 1) for picture in load_sample_images().images]
    found = []
    for _ in range(CROPS):
        picture = pictures[generator.integers(len(pictures))]
        size = int(generator.integers(48, 200))
        top, left = (int(generator.integers(side - size)) for side in picture.shape[1:])
        square = picture[None, :, top : top + size, left : left + size].float()
        found.append(torch.nn.functional.interpolate(square, 32, mode="bilinear", antialias=True)[0])
    return torch.stack(found) / 127.5 - 1


def optimal_denoiser(images: torch.Tensor) -> Denoiser:
    """E[image | x] where the images are all there are."""
    flat = images.flatten(1).double()
    squares = flat.square().sum(dim=1)

    def denoise(x: torch.Tensor, sigma: float, labels: None = None) -> torch.Tensor:
        distances = squares - 2 * x.flatten(1) @ flat.T  # but for |x|^2, which is the same for all
        return (torch.softmax(-distances / (2 * sigma**2), dim=1) @ flat).view(x.shape)

    return denoise


def compare(name: str, teacher: Denoiser, shape: tuple[int, int, int], count: int) -> None:
    noise = torch.from_numpy(rng.unit_noise(0, "archive", range(count), shape))
    sampled, sigmas = sample_trajectory(teacher, noise)
    states = sampled.transpose(0, 1)
    levels = tuple(sigmas.tolist())
    schedule = {"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver": "heun"}
    about = {"sha256": "0" * 64, "architecture": {}, "source": "", "licence": "", "dataset": ""}
    shown = ", ".join(f"{levels[state]:.3g}" for state in SHOWN)
    print(f"{name}: {count} trajectories; errors at sigma {shown}, largest / root mean square")
    for encoding, codec in itertools.product(ENCODINGS, CODECS):
        if encoding == "quantised" and codec == "none":
            continue
        plan = Plan(
            "zarr", count, count, shape, "float16", levels, 0, 256, schedule, about, (), encoding, codec
        )
        report(plan, states, noise)


def report(plan: Plan, states: torch.Tensor, noise: torch.Tensor) -> None:
    numbers = stored_numbers(states, noise, plan)
    with tempfile.TemporaryDirectory() as folder:
        begin(Path(folder), plan)
        began = time.process_time()
        record = write_shard(Path(folder), plan, 0, numbers, {})
        wrote = time.process_time() - began
        finish(Path(folder), plan)
        with open_archive(folder) as archive:
            found = archive.read(range(plan.count), range(len(plan.sigmas)))
            generator = np.random.default_rng(0)
            columns = generator.random((plan.count, len(plan.sigmas))).argsort(axis=1)[:, :READ]
            began = time.process_time()
            archive.read(generator.permutation(plan.count), columns)
            read = time.process_time() - began
    errors = np.abs(found.astype(np.float64) - states.numpy())
    size = record.bytes / plan.count
    print(
        f"  {plan.encoding}, {plan.codec}: {size:,.0f} bytes ({plan.trajectory_bytes / size:.2f}), "
        f"error up to {errors.max():.2g}; {', '.join(map(shown, errors[:, SHOWN].swapaxes(0, 1)))}; "
        f"write {wrote / plan.count * 1e6:.0f} us, read {read / plan.count * 1e6:.0f} us",
        flush=True,
    )


def shown(errors: NDArray[Any]) -> str:
    return f"{errors.max():.1e} / {np.sqrt(np.square(errors).mean()):.1e}"


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    torch.set_num_threads(1)
    teacher = load_teacher("digits", torch.device("cpu"))
    compare("digits teacher, 1 x 8 x 8", teacher, teacher.image_shape, count)
    compare("photographs' crops, 3 x 32 x 32", optimal_denoiser(crops()), (3, 32, 32), count)


if __name__ == "__main__":
    main()
