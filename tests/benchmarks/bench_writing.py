"""What writing costs at the rate of a fast GPU: 500 trajectories a second of 19 states 3 x 32 x 32, float16.

`python tests/benchmarks/bench_writing.py [TRAJECTORIES]`: processor time per second of generation, of
`write_shard` (finite check, encoding, SHA-256, writing, synchronising, in a thread beside sampling), of its
parts, and of the libraries' own writers. Then stage 1 with a teacher that does nothing but take its time, in
which the processor is free, as beside a GPU: how much longer it takes than that, which depends on how busy
the machine is, and the processor time of its own thread, during which a GPU would wait.
"""

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.archive.writer import begin, write_shard
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import finite
from hkdpipe.stages.generation import generate as stage
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.teachers.teacher import Teacher

RATE = 500
TURNS = 5
LEVELS = tuple(np.linspace(80.0, 0.0, 19).tolist())
PLAN = Plan(
    form="zarr",
    count=512,
    shard_size=512,
    shape=(3, 32, 32),
    dtype="float16",
    sigmas=LEVELS,
    seed=0,
    batch_size=256,
    sampler={"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver": "heun"},
    teacher={"sha256": "0" * 64, "architecture": {}, "source": "", "licence": "", "dataset": ""},
)


def theirs(form: str, folder: Path, states: NDArray[Any]) -> None:
    if form == "zarr":
        import zarr

        array: Any = zarr.open_group(folder)["states"]
        array[:] = states
        return
    import webdataset

    with webdataset.TarWriter(str(folder / "theirs.tar")) as writer:
        for i, trajectory in enumerate(states):
            writer.write({"__key__": f"{i:09d}", "json": {"index": i}, "states.npy": trajectory})


def share(work: Callable[[], Any]) -> float:
    """Processor time per second of generation, the median of some turns."""
    turns = []
    for _ in range(TURNS):
        began = time.process_time()
        work()
        turns.append(time.process_time() - began)
    return statistics.median(turns) / (PLAN.count / RATE)


def paced(plan: Plan, states: NDArray[Any]) -> tuple[float, float]:
    """How much longer stage 1 takes than its teacher, and how long its thread is busy, as shares of that."""
    seconds = 0.0

    def sample_batch(*_: Any) -> NDArray[Any]:
        nonlocal seconds
        began = time.perf_counter()
        time.sleep(plan.batch_size / RATE)
        seconds += time.perf_counter() - began
        return states[: plan.batch_size]

    stage.sample_batch, own = sample_batch, stage.sample_batch
    with tempfile.TemporaryDirectory() as folder, Claims(Path(folder)) as claims:
        begin(Path(folder), plan)
        began, busy = time.perf_counter(), time.thread_time()
        device = torch.device("cpu")
        nobody = cast(Teacher, None)
        stage.ShardMaker(nobody, Path(folder), plan, claims, device, Silent(), lambda: False).make()
        took, busy = time.perf_counter() - began, time.thread_time() - busy
    stage.sample_batch = own
    return took / seconds - 1, busy / seconds


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((PLAN.count, *PLAN.states_shape), dtype=np.float32)
    states = numbers.astype(np.float16)
    content = states.tobytes()
    print(f"processor time per second of generation at {RATE} trajectories a second:")
    print(f"  SHA-256 alone {share(lambda: hashlib.sha256(content)):.1%}")
    print(f"  finite check alone {share(lambda: finite(states, PLAN.dtype)):.1%}")
    for form in ("zarr", "webdataset"):
        compare(replace(PLAN, form=form), states, count)


def compare(plan: Plan, states: NDArray[Any], count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        begin(root, plan)
        ours = share(lambda: write_shard(root, plan, 0, states, {}))
        other = share(lambda: theirs(plan.form, root, states))
    print(
        f"  {plan.form}: write_shard {ours:.1%}; the library's own writer, which neither checks nor hashes, "
        f"{other:.1%}"
    )
    longer, busy = paced(replace(plan, count=count), states)
    print(f"  {plan.form}: stage 1 {longer:.1%} longer than its teacher, its own thread is busy {busy:.1%}")


if __name__ == "__main__":
    main()
