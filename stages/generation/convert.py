"""An archive in the other form, with the same trajectories."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hkdpipe.manifests.archive.contents import missing_shards, valid_record
from hkdpipe.manifests.archive.reader import open_archive, read_payloads
from hkdpipe.manifests.archive.writer import write_payloads
from hkdpipe.manifests.ground.atomic_files import Bytes, make_folders
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import Interrupted, Name, WrongValue
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.generation.generate import begin_beside_others, claim_of, finish_beside_others
from hkdpipe.stages.shared.reporting import Reporter, Summary


def convert(source: Path, out: Path, form: str, *, reporter: Reporter, stop: Callable[[], bool]) -> Summary:
    """Write the finished archive `source` as `out` in another form, or what `out` still lacks of it.

    What is stored of a state stays the same bits, and a training may change from one to the other. Several
    processes may convert at once. Raises UsageError where `source` has the form already or `out` is another
    archive, InputError for a damaged shard, Interrupted when asked to stop: whole shards are kept.
    """
    with open_archive(source) as archive:
        plan = archive.plan
        if plan.form == form:
            raise WrongValue(Name("form"), f": got {form}, which is the form of {source}")
        converted = dataclasses.replace(plan, form=form)

        def payloads(k: int) -> tuple[list[bytes], dict[str, Any]]:
            archive.verify_shard(k)
            record = archive.shards[k]
            return read_payloads(source, plan, record, range(record.start, record.stop)), record.fingerprint

        rows = [("trajectories", f"{plan.count:,}, {len(plan.sigmas)} states each")]
        return write_missing(out, converted, payloads, rows, reporter, stop)


def write_missing(
    out: Path,
    plan: Plan,
    payloads: Callable[[int], tuple[Sequence[Bytes], dict[str, Any]]],
    rows: Sequence[tuple[str, str]],
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write what is missing in `out`; `rows` say of what. `payloads(k)` gives those of shard k and
    its fingerprint. Raises Interrupted when asked to stop."""
    written = 0
    make_folders(out)
    with Claims(out) as claims:
        begin_beside_others(out, plan, claims, reporter)
        with reporter.phase("converting", plan.shards, "shards") as advance:
            for k in missing_shards(out, plan):
                if stop():
                    whole = f"whole shards are kept in {out}"
                    raise Interrupted(f"stopped before shard {k + 1} of {plan.shards}; {whole}")
                if not claims.take(claim_of(k)):
                    continue
                if valid_record(out, plan, k) is None:
                    write_payloads(out, plan, k, *payloads(k), partial(claims.holds, claim_of(k)))
                    written += 1
                claims.release(claim_of(k))
                advance(k + 1)
        missing = len(finish_beside_others(out, claims))
    rows = [*rows, ("shards", f"{plan.shards} ({plan.form}), {written} of them written now")]
    if missing:
        rows.append(("left to other processes", f"{missing} shards"))
    return Summary(
        title="convert",
        rows=tuple(rows),
        files=(out,),
        data={
            "archive": str(out),
            "teacher": plan.teacher["source"],
            "trajectories": plan.count,
            "shards": plan.shards,
            "written": written,
            "missing": missing,
        },
        did_nothing=not written and not missing,
    )
