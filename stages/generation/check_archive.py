"""Check an archive, down to the trajectories themselves, and make damaged shards again."""

import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.archive.contents import planned, valid_record
from hkdpipe.manifests.archive.integrity import Findings, check_shards, restore, trusted_plan
from hkdpipe.manifests.archive.reader import read_shard
from hkdpipe.manifests.archive.writer import finish
from hkdpipe.manifests.forms.residual_encoding import decode_states, storable, stored_noise
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import InputError, InUseError, Name, Remedy, WrongValue
from hkdpipe.manifests.plan.plan import IMPORTED, Plan
from hkdpipe.stages.generation.generate import WHOLE, ShardMaker, batches, fingerprint, sample_batch
from hkdpipe.stages.shared.reporting import Reporter, Summary, heed
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher

Depth = Literal["fast", "checksums", "deep"]
REGENERATED = 2  # network batches that a deep check computes again
READ_BYTES = 64 << 20
TOLERANCE = 1e-2  # of a state made on other hardware, relative to its noise level's scale


def verify(
    root: Path,
    depth: Depth,
    repair: bool,
    teacher: str | None,
    *,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Check the archive `root`; with `repair`, put right what is wrong.

    'fast' compares names and sizes, 'checksums' also the content of every file, 'deep' also reads every
    state and computes some trajectories again. `teacher`: where the archive's own is not where it was.
    Raises UsageError for another teacher, InputError where nothing says what the archive was to hold.
    """
    findings = trusted_plan(root)
    go_on = partial(heed, stop, "nothing was changed")
    with reporter.phase("checking", findings.plan.shards, "shards") as advance:

        def checked(done: int) -> None:
            advance(done)
            go_on()

        check_shards(root, findings, depth != "fast", checked)
    loaded: Teacher | None = None
    if findings.plan.origin != IMPORTED and (depth == "deep" or (repair and findings.shards)):
        loaded = _load(root, findings.plan, teacher, device)
    if depth == "deep":
        _check_states(root, findings, reporter, go_on)
        if loaded is not None:
            _check_by_computing(root, findings, loaded, device, reporter, go_on)
    if findings.unfinished and not findings.shards:
        # Whoever wrote the last shard was stopped before it could do this.
        with Claims(root) as claims, claims.waiting(WHOLE):
            finish(root, planned(root))
        findings.lines.clear()
        reporter.line(f"{root}: manifest.json was missing, and was put together from the records")
    faults = findings.all_lines()
    for line in faults:
        reporter.line(line)
    notes = []
    if repair and faults:
        with Claims(root) as claims:
            maker = None
            if loaded is not None:
                maker = ShardMaker(loaded, root, findings.plan, claims, device, reporter, stop)
            notes = _repair(root, findings, claims, maker)
    plan = findings.plan
    state = "good" if not faults else "repaired" if repair else "damaged"
    rows = [
        ("archive", f"{state}: {plan.count:,} trajectories, {plan.shards} shards ({plan.form})"),
        ("checked", {"fast": "names and sizes", "checksums": "SHA-256", "deep": "every state"}[depth]),
        ("faults found", str(len(faults))),
    ]
    if findings.shards and repair:
        rows.append(("shards made again", str(len(findings.shards))))
    rows += [("note", note) for note in notes]
    return Summary(
        title="verify",
        rows=tuple(rows),
        data={"state": state, "faults": faults, "shards": sorted(findings.shards), "notes": notes},
    )


def _load(root: Path, plan: Plan, teacher: str | None, device: torch.device) -> Teacher:
    loaded = load_teacher(teacher or plan.teacher["source"], device)
    if loaded.sha256 != plan.teacher["sha256"]:
        raise WrongValue(Name("teacher"), f": {loaded.source} is not the teacher that {root} was made with")
    if loaded.arch.to_json() != plan.teacher["architecture"]:
        # A state dict does not tell everything: the same weights may be another preconditioning's.
        other = f"has the weights of the teacher that {root} was made with, but another architecture"
        accepted = "accepted: the file that it was made from"
        raise WrongValue(Name("teacher"), f": {loaded.source} {other}; {accepted}")
    return loaded


def _check_states(root: Path, findings: Findings, reporter: Reporter, go_on: Callable[[], None]) -> None:
    """Every state is finite, and every trajectory that is not imported starts at the noise of its index.
    Shards at fault already are left out; a shard found wrong here joins them."""
    plan = findings.plan
    with reporter.phase("reading every state", plan.count, "trajectories") as advance:
        for k in range(plan.shards):
            go_on()
            _, end = plan.shard_range(k)
            if k not in findings.shards and (fault := _state_fault(root, findings, k)):
                findings.shards[k] = fault
            advance(end)


def _state_fault(root: Path, findings: Findings, k: int) -> str | None:
    plan, record = findings.plan, findings.records[k]
    start, end = plan.shard_range(k)
    step = max(1, READ_BYTES // plan.trajectory_bytes)
    for first in range(start, end, step):
        indices = range(first, min(first + step, end))
        states = read_shard(root, plan, record, indices)
        checks = [("is not finite", storable(plan, states))]
        if plan.origin != IMPORTED:
            starts = stored_noise(plan, rng.unit_noise(plan.seed, "archive", indices, plan.shape))
            right = (states[:, 0] == starts).reshape(len(indices), -1).all(axis=1)
            checks.append(("does not start at its noise", right))
        for what, good in checks:
            if not good.all():
                return f"{root / record.file}: trajectory {indices[int(good.argmin())]} {what} (shard {k})"
    return None


def _check_by_computing(
    root: Path,
    findings: Findings,
    teacher: Teacher,
    device: torch.device,
    reporter: Reporter,
    go_on: Callable[[], None],
) -> None:
    """Some network batches, drawn at random, computed again: where they are made the same way, to the same
    bytes, else to the same numbers but for rounding."""
    plan = findings.plan
    shards = [k for k in range(plan.shards) if k not in findings.shards]
    here = fingerprint(plan, device)
    with reporter.phase("computing some again", REGENERATED, "batches") as advance:
        for done in range(min(REGENERATED, len(shards))):
            go_on()
            k = secrets.choice(shards)
            start, _ = plan.shard_range(k)
            batch = secrets.randbelow(batches(plan, k))
            made = sample_batch(teacher, plan, k, batch, device)
            first = start + batch * plan.batch_size
            indices = range(first, first + len(made))
            record = findings.records[k]
            stored = read_shard(root, plan, record, indices)
            alike = record.fingerprint == here
            if not (made.tobytes() == stored.tobytes() if alike else _close(made, stored, plan)):
                findings.shards[k] = (
                    f"{root / record.file}: trajectories {first} to {indices[-1]} are not what the teacher "
                    f"makes of their noise (shard {k})"
                )
            advance(done + 1)


def _close(made: NDArray[Any], stored: NDArray[Any], plan: Plan) -> bool:
    scale = np.sqrt(np.square(plan.sigmas) + 0.25)[:, None, None, None]
    one, other = (_decoded(states, plan).astype(np.float64) for states in (made, stored))
    # bfloat16 is coarser than the tolerance: a state may have been rounded to the next of its numbers.
    step = 2.0**-7 if plan.dtype == "bfloat16" else 0.0
    allowed = TOLERANCE * scale + step * np.maximum(np.abs(one), np.abs(other))
    return bool((np.abs(one - other) < allowed).all())


def _decoded(stored: NDArray[Any], plan: Plan) -> NDArray[np.floating]:
    rows = np.arange(len(stored))[:, None]
    every = np.broadcast_to(np.arange(len(plan.sigmas)), (len(stored), len(plan.sigmas)))
    return decode_states(plan, every, lambda wanted: stored[rows, wanted])


def _repair(root: Path, findings: Findings, claims: Claims, maker: ShardMaker | None) -> list[str]:
    """Put everything right; returns what is worth knowing of the shards made again."""
    plan = findings.plan
    shards = sorted(findings.shards)
    with claims.waiting(WHOLE):
        if trusted_plan(root).plan != plan:
            raise InUseError(f"{root}: another process changed what it is to hold; nothing was repaired")
        claims.remove_leftovers()
        restore(root, findings)
    if plan.origin == IMPORTED and shards:
        lost = f"shards {', '.join(map(str, shards))} are of imported pairs, which cannot be computed"
        again = Remedy("importing them again", {"archive": root, "form": plan.form})
        raise InputError(f"{root}: {lost}; taken out: ", again, " writes them")
    if maker is not None and shards:
        maker.make()
    with claims.waiting(WHOLE):
        finish(root, planned(root))
    notes = []
    for k in shards:
        record = valid_record(root, plan, k)
        before = findings.records.get(k)
        if before is not None and record is not None and record.sha256 != before.sha256:
            same = "on the same" if record.fingerprint == before.fingerprint else "on another"
            notes.append(f"shard {k}: other bytes than before, {same} kind of machine and software")
    return notes
