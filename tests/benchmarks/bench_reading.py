"""Reading an archive into training batches: states drawn at random of trajectories drawn at random.

`python tests/benchmarks/bench_reading.py [MEGABYTES]`: float16 trajectories in CIFAR-10's shape and in
FFHQ's, 200 MB of each by default, five states of each, in batches of 256. Everybody reads the same
trajectories from files in the page cache, in turns; printed are medians over the turns, in processor time
of one thread, since nobody waits for a disk and other work on the machine then disturbs less. An archive is
verified before the first turn; what that costs once a job is printed by itself.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.archive.writer import begin, finish, write_shard
from hkdpipe.manifests.plan.plan import Plan

TURNS = 5
BATCH = 256
STATES = 5
SHAPES = {"CIFAR-10": ((3, 32, 32), 2048), "FFHQ": ((3, 64, 64), 256)}
Batches = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]]


def plan(shape: tuple[int, int, int], shard_size: int, megabytes: int) -> Plan:
    levels = tuple(np.linspace(80.0, 0.0, 19).tolist())
    sampler = {"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver": "heun"}
    teacher = {"sha256": "0" * 64, "architecture": {}, "source": "", "licence": "", "dataset": ""}
    size = Plan("zarr", 1, 1, shape, "float16", levels, 0, 256, sampler, teacher).trajectory_bytes
    count = max(BATCH, megabytes * 10**6 // size)
    return Plan("zarr", count, shard_size, shape, "float16", levels, 0, 256, sampler, teacher)


def states_of(plan: Plan, k: int) -> NDArray[Any]:
    start, stop = plan.shard_range(k)
    generator = np.random.default_rng(k)
    numbers = generator.standard_normal((stop - start, *plan.states_shape), dtype=np.float32)
    return numbers.astype(np.float16)


def write(folder: Path, plan: Plan) -> None:
    """The same trajectories in each rival's way."""
    zarr, tar = folder / "zarr", folder / "webdataset"
    ours = {
        zarr: plan,
        tar: replace(plan, form="webdataset"),
        folder / "residual": replace(plan, encoding="residual"),
    }
    for root, its_plan in ours.items():
        begin(root, its_plan)
    (folder / "npz").mkdir()
    whole = np.lib.format.open_memmap(
        folder / "memmap.npy", "w+", np.float16, (plan.count, *plan.states_shape)
    )
    for k in range(plan.shards):
        states = states_of(plan, k)
        for root, its_plan in ours.items():
            write_shard(root, its_plan, k, states, {})
        start, stop = plan.shard_range(k)
        whole[start:stop] = states
        for i, trajectory in enumerate(states, start):
            np.savez(folder / f"npz/{i:09d}.npz", states=trajectory)
    for root, its_plan in ours.items():
        finish(root, its_plan)


def readers(folder: Path, plan: Plan) -> dict[str, Batches]:
    import zarr

    memmap = np.load(folder / "memmap.npy", mmap_mode="r")
    array: Any = zarr.open_group(folder / "zarr", mode="r")["states"]
    stream = plain_webdataset(folder)

    def npz(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
        return np.stack(
            [np.load(folder / f"npz/{i:09d}.npz")["states"][c] for i, c in zip(rows, columns, strict=True)]
        )

    def webdataset(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
        return np.stack([next(stream)["states.npy"][c] for c in columns])

    return {
        "ours, zarr": open_archive(folder / "zarr").read,
        "ours, webdataset": open_archive(folder / "webdataset").read,
        "ours, zarr, residual (float32)": open_archive(folder / "residual").read,
        "one npz per trajectory": npz,
        "plain webdataset, in order": webdataset,
        "bare memmap": lambda rows, columns: memmap[rows[:, None], columns],
        "zarr": lambda rows, columns: np.stack([array[i][c] for i, c in zip(rows, columns, strict=True)]),
    }


def plain_webdataset(folder: Path) -> Iterator[dict[str, Any]]:
    import webdataset

    shards = [str(path) for path in sorted((folder / "webdataset").glob("*.tar"))]
    while True:
        yield from webdataset.WebDataset(shards, shardshuffle=False).decode()


def seconds(read: Batches, plan: Plan, turn: int, batches: int) -> float:
    generator = np.random.default_rng(turn)
    spent = 0.0
    for _ in range(batches):
        rows = generator.integers(plan.count, size=BATCH)
        columns = generator.random((BATCH, len(plan.sigmas))).argsort(axis=1)[:, :STATES]
        began = time.process_time()
        read(rows, columns)
        spent += time.process_time() - began
    return spent / batches


def compare(name: str, plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), plan)
        rivals = readers(Path(folder), plan)
        size = plan.count * plan.trajectory_bytes / 1e6
        print(f"{name} shape, {plan.count} trajectories, {size:.0f} MB, medians of {TURNS} turns:")
        for reader in ("ours, zarr", "ours, webdataset"):
            began = time.process_time()
            rivals[reader](np.arange(0, plan.count, plan.shard_size), np.zeros((plan.shards, 1), np.int64))
            print(f"  {reader}: verified at {size / (time.process_time() - began):.0f} MB/s, once a job")
        for read in rivals.values():
            seconds(read, plan, 0, 1)
        turns = [
            {rival: seconds(read, plan, turn, 4) for rival, read in rivals.items()} for turn in range(TURNS)
        ]
        for rival in rivals:
            took = statistics.median(turn[rival] for turn in turns) / BATCH
            ratios = [
                f"{statistics.median(turn[rival] / turn[ours] for turn in turns):.2f}"
                for ours in ("ours, zarr", "ours, webdataset")
            ]
            print(
                f"  {rival}: {took * 1e6:.0f} us a trajectory; ours are {' and '.join(ratios)} times as fast",
                flush=True,
            )


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    for name, (shape, shard_size) in SHAPES.items():
        compare(name, plan(shape, shard_size, megabytes))


if __name__ == "__main__":
    main()
