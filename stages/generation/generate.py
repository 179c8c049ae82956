"""Stage 1: run the teacher's sampler and write an archive of its trajectories."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.archive.contents import describe, missing_shards, planned, valid_record
from hkdpipe.manifests.archive.writer import begin, finish, write_shard
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import make_folders
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import Interrupted, InUseError, Name, WrongValue
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.generation.device_encoding import stored_numbers
from hkdpipe.stages.generation.disk_space import check_storage
from hkdpipe.stages.generation.worker import ALONE, Worker
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Advance, Reporter, Summary
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.numbers.precision import tf32
from hkdpipe.trainer.teachers.sampler import evaluations, network_range, noise_levels, sample_trajectory
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher

WHOLE = "archive"
"""The name under which plan and manifest are claimed while they are written."""
_KEPT = ("count", "shard_size", "dtype", "encoding", "codec", "seed", "batch_size")
"""Settings that stand in the plan as they are."""
WAIT_SECONDS = 1.0  # between looks at shards that others are making


def generate(
    teacher: str,
    out: Path,
    settings: GenerationSettings,
    licence: str = "",
    *,
    worker: Worker = ALONE,
    wait: bool = False,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write the archive `out`, or what it still lacks; shard by shard, writing beside sampling.

    Any number of workers may do so at once: each begins with the shards that are its own by number, and goes
    on with those that nobody is making. Whoever finds the archive complete writes its manifest. With `wait`
    it returns no earlier, and makes the shards of workers that vanish.

    `licence` is that of a teacher that names none. Raises UsageError where `out` is an archive of another
    teacher or other settings, HkdpipeError where there is no space for it, Interrupted when asked to stop:
    whole shards are kept, the one under way is generated again.
    """
    loaded = load_teacher(teacher, device)
    plan = make_plan(loaded, settings, licence)
    make_folders(out)
    started = time.monotonic()
    with Claims(out) as claims:
        begin_beside_others(out, plan, claims, reporter)
        made: list[int] = []
        if missing_shards(out, plan):
            made = ShardMaker(loaded, out, plan, claims, device, reporter, stop).make(worker, wait)
        missing = finish_beside_others(out, claims)
    generated = _trajectories(plan, made)
    seconds = time.monotonic() - started
    channels, height, width = plan.shape
    rows = [
        ("trajectories", f"{plan.count:,} of {channels}x{height}x{width}, {len(plan.sigmas)} states each"),
        ("network evaluations each", f"{evaluations(settings.steps, settings.solver)}"),
        ("shards", f"{plan.shards} ({settings.format}), {describe(out)['bytes'] / 1e6:,.1f} MB"),
    ]
    if made:
        speed = f"{generated:,} in {seconds:,.0f} s: {generated / seconds:,.1f} a second"
        rows.append(("generated now", speed))
    if missing:
        rows.append(("left to other workers", f"{len(missing)} shards"))
    return Summary(
        title="generate-trajectories",
        rows=tuple(rows),
        files=(out,),
        data={
            "archive": str(out),
            "trajectories": plan.count,
            "shards": plan.shards,
            "generated": generated,
            "missing": len(missing),
        },
        did_nothing=not made and not missing,
    )


def begin_beside_others(out: Path, plan: Plan, claims: Claims, reporter: Reporter) -> None:
    """Begin an archive, or go on with it. Raises as `check_storage` and `begin` do."""
    with claims.waiting(WHOLE):
        # Before the plan is written: after a refusal another count or fewer states may be asked for.
        check_storage(out, plan, missing_shards(out, plan), reporter)
        claims.remove_leftovers()
        begin(out, plan)


def finish_beside_others(out: Path, claims: Claims) -> list[int]:
    """Write the manifest of an archive that has all its shards; returns those that are missing."""
    with claims.waiting(WHOLE):
        # Another worker may have been told to make more, and be done already.
        plan = planned(out)
        missing = missing_shards(out, plan)
        if not missing and not (out / "manifest.json").is_file():
            finish(out, plan)
    return missing


def make_plan(teacher: Teacher, settings: GenerationSettings, licence: str = "") -> Plan:
    """What the archive will hold, at the noise levels that the teacher allows. `licence` is that of a teacher
    that names none. UsageError naming the key that is not accepted."""
    try:
        low, high = network_range(teacher, settings.sigma_min, settings.sigma_max)
        steps, rho, solver = settings.steps, settings.rho, settings.solver
        return Plan(
            **{name: getattr(settings, name) for name in _KEPT},
            form=settings.format,
            shape=teacher.image_shape,
            sigmas=_stored_levels(teacher, settings.stored_steps, steps, low, high, rho),
            classes=settings.classes or tuple(range(teacher.arch.label_dim)),
            sampler={"steps": steps, "sigma_min": low, "sigma_max": high, "rho": rho, "solver": solver},
            teacher={
                "sha256": teacher.sha256,
                "architecture": teacher.arch.to_json(),
                "source": teacher.source,
                "licence": teacher.about.get("licence") or licence,
                "dataset": teacher.about.get("dataset", ""),
            },
        )
    except ValueError as error:
        key, _, wrong = str(error).partition(":")
        raise WrongValue(Name(key, GenerationSettings), f":{wrong}") from None


def _stored_levels(
    teacher: Teacher, stored: Sequence[int], steps: int, sigma_min: float, sigma_max: float, rho: float
) -> tuple[float, ...]:
    try:
        levels = noise_levels(teacher, steps, sigma_min, sigma_max, rho).tolist()
    except OverflowError:
        levels = []
    if not levels or not all(high > low for high, low in itertools.pairwise(levels)):
        raise ValueError(
            f"sigma_min, sigma_max, rho: got {sigma_min}, {sigma_max}, {rho}; "
            f"accepted: values that give {steps} falling noise levels"
        )
    return tuple(levels[step] for step in stored)


def sample_shard(teacher: Teacher, plan: Plan, k: int, device: torch.device) -> Iterator[NDArray[Any]]:
    """Shard k in pieces (up to batch_size, states, C, H, W). Network batches start at fixed places of it and
    are padded to one shape, since another batch size changes the last bits of a result."""
    for batch in range(batches(plan, k)):
        yield sample_batch(teacher, plan, k, batch, device)


def batches(plan: Plan, k: int) -> int:
    """Network batches of shard k."""
    start, stop = plan.shard_range(k)
    return -(-(stop - start) // plan.batch_size)


def sample_batch(teacher: Teacher, plan: Plan, k: int, batch: int, device: torch.device) -> NDArray[Any]:
    """One network batch of shard k as it is stored: (up to batch_size, states, C, H, W)."""
    start, stop = plan.shard_range(k)
    schedule = noise_levels(teacher, plan.sampler["steps"], **plan.schedule)
    # The nearest, since another machine may round a level otherwise in its last bit.
    stored = [int((schedule - sigma).abs().argmin()) for sigma in plan.sigmas]
    first = start + batch * plan.batch_size
    count = min(plan.batch_size, stop - first)
    noise = np.zeros((plan.batch_size, *plan.shape), dtype=np.float16)
    noise[:count] = rng.unit_noise(plan.seed, "archive", range(first, first + count), plan.shape)
    labels = one_hot(plan.labels(range(first, first + plan.batch_size)), plan.label_dim, device)
    unit = torch.from_numpy(noise).to(device)
    with tf32(False):
        states, _ = sample_trajectory(teacher, unit, labels=labels, **plan.sampler, keep=stored)
    return stored_numbers(states.transpose(0, 1)[:count], unit[:count], plan)


def fingerprint(plan: Plan, device: torch.device) -> dict[str, Any]:
    """How a shard was made: where it is the same, making it again gives the same bytes."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else torch.backends.cpu.get_cpu_capability()
    halved = plan.teacher["architecture"].get("use_fp16", False)
    compressor = {"numcodecs": version("numcodecs")} if plan.codec != "none" else {}
    return {
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "precision": "float16" if halved and gpu else "float32",
        "batch_shape": [plan.batch_size, *plan.shape],
        "torch": torch.__version__,
        "numpy": np.__version__,
        **compressor,
    }


@dataclass
class ShardMaker:
    """Makes shards of a begun archive: one is sampled while a thread encodes and writes the one before."""

    teacher: Teacher
    out: Path
    plan: Plan
    claims: Claims
    device: torch.device
    reporter: Reporter
    stop: Callable[[], bool]
    made: list[int] = field(default_factory=list)

    def make(self, worker: Worker = ALONE, wait: bool = False) -> list[int]:
        """Make the missing shards that no other worker is making; returns their numbers, with `wait` not
        before those of the others are made as well. Raises Interrupted when asked to stop."""
        done = self._done(missing_shards(self.out, self.plan))
        with (
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            self.reporter.phase("generating trajectories", self.plan.count, "trajectories", done) as advance,
        ):
            while True:
                before = len(self.made)
                self._make_what_is_free(worker, writer, advance)
                if len(self.made) > before:
                    continue
                if not wait or not missing_shards(self.out, self.plan):
                    return self.made
                if self.stop():
                    raise Interrupted(f"stopped while others make the last shards of {self.out}")
                time.sleep(WAIT_SECONDS)

    def _make_what_is_free(self, worker: Worker, writer: ThreadPoolExecutor, advance: Advance) -> None:
        left = missing_shards(self.out, self.plan)
        done = self._done(left)
        writing: Future[None] | None = None
        for k in worker.order(left):
            if k not in left or not self._take(k):
                continue
            states = self._sample(k, done, advance)
            if writing is not None:
                writing.result()
            writing = writer.submit(self._write, k, states)
            # What other workers have made counts as well.
            left = missing_shards(self.out, self.plan, left)
            done = max(done + len(states), self._done(left))
            self._heed(f"after shard {k + 1}")
        if writing is not None:
            writing.result()

    def _sample(self, k: int, done: int, advance: Advance) -> NDArray[Any]:
        start, stop = self.plan.shard_range(k)
        pieces: list[NDArray[Any]] = []
        for piece in sample_shard(self.teacher, self.plan, k, self.device):
            pieces.append(piece)
            sampled = sum(map(len, pieces))
            advance(done + sampled)
            if sampled < stop - start:
                self._heed(f"in shard {k + 1}")
        return np.concatenate(pieces)

    def _write(self, k: int, states: NDArray[Any]) -> None:
        try:
            how = fingerprint(self.plan, self.device)
            write_shard(self.out, self.plan, k, states, how, lambda: self._owned(k))
            self.made.append(k)
        except InUseError as error:
            self.reporter.warn(str(error))
        finally:
            self.claims.release(claim_of(k))

    def _take(self, k: int) -> bool:
        """Claim a shard, unless it was made by another worker since, or is to be made longer."""
        if not self.claims.take(claim_of(k)):
            return False
        free = valid_record(self.out, self.plan, k) is None and self._still_planned(k)
        if not free:
            self.claims.release(claim_of(k))
        return free

    def _owned(self, k: int) -> bool:
        return self.claims.holds(claim_of(k)) and self._still_planned(k)

    def _still_planned(self, k: int) -> bool:
        """A larger count given to another worker makes a last shard that was shorter a longer one."""
        return planned(self.out).shard_range(k) == self.plan.shard_range(k)

    def _done(self, missing: Sequence[int]) -> int:
        return self.plan.count - _trajectories(self.plan, missing)

    def _heed(self, where: str) -> None:
        if self.stop():
            raise Interrupted(f"stopped {where} of {self.plan.shards}; whole shards are kept in {self.out}")


def claim_of(k: int) -> str:
    """The name under which shard k is claimed."""
    return f"{k:06d}"


def _trajectories(plan: Plan, shards: Sequence[int]) -> int:
    return sum(stop - start for start, stop in map(plan.shard_range, shards))
