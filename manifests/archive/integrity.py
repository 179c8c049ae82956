"""Whether an archive is what its manifest says, and what can be put right without its teacher.

Of what is written twice (the plan, and each shard's record), the manifest's copy is trusted while the
manifest fits its own checksum, and no fewer records fit its plan than fit that of plan.json; otherwise the
others are.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hkdpipe.manifests.archive import contents
from hkdpipe.manifests.archive.writer import write_metadata
from hkdpipe.manifests.ground.atomic_files import json_bytes, make_folders, read_json, sha256_file, write_json
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.plan.plan import Plan, ShardRecord


@dataclass
class Findings:
    """What is wrong: a line for each, and the shards to be made again."""

    plan: Plan
    records: dict[int, ShardRecord]
    """The trusted record of each shard that has one."""
    lines: list[str] = field(default_factory=list)
    shards: dict[int, str] = field(default_factory=dict)
    """Damaged or missing shards, with what is wrong with each."""

    unfinished: bool = False
    """There is no manifest, and nothing else is wrong but with shards."""

    def all_lines(self) -> list[str]:
        return [*self.lines, *(self.shards[k] for k in sorted(self.shards))]


def trusted_plan(root: Path) -> Findings:
    """The plan and the records that the manifest gives, and what is wrong with manifest and plan. InputError
    where neither can be read."""
    lines: list[str] = []
    manifest: tuple[Plan, list[ShardRecord]] | None = None
    plan: Plan | None = None
    try:
        manifest = contents.read_manifest(root)
    except InputError as error:
        lines.append(str(error))
    try:
        plan = contents.planned(root)
    except InputError as error:
        lines.append(str(error))
    if manifest is not None and plan is not None and plan != manifest[0]:
        if _fitting(root, plan) > _fitting(root, manifest[0]):
            lines.append(f"{root / 'manifest.json'}: of another archive than plan.json and the records")
            manifest = None
        else:
            lines.append(f"{root / 'plan.json'}: not the plan of manifest.json")
            plan = None
    if plan is not None:
        _check_written(root / "plan.json", plan.to_json(), lines)
    if manifest is not None:
        _check_written(root / "manifest.json", contents.manifest_values(*manifest), lines)
        return Findings(manifest[0], {record.index: record for record in manifest[1]}, lines)
    if plan is None:
        raise InputError(f"{lines[-1]}; nothing says what the archive was to hold")
    return Findings(plan, {}, lines, unfinished=not (root / "manifest.json").exists())


def check_shards(root: Path, findings: Findings, checksums: bool, advance: Callable[[int], None]) -> None:
    """Add to `findings` what is wrong with records and files: names, sizes and, if asked, SHA-256.

    `advance(shards done)` is called after each shard. Raises InputError where the plan is not the one that
    the records were made under.
    """
    plan, lines = findings.plan, findings.lines
    strangers, from_manifest = 0, bool(findings.records)
    for k in range(plan.shards):
        path = contents.record_path(root, k)
        record: ShardRecord | None = None
        try:
            record = ShardRecord.from_json(read_json(path), path)
            strangers += record.plan != plan.identity()
        except InputError as error:
            if from_manifest:
                lines.append(str(error))
        if record is not None:
            if from_manifest and record != findings.records[k]:
                lines.append(f"{path}: not the manifest's record of shard {k}")
            else:
                _check_written(path, record.to_json(), lines)
            if not from_manifest and contents.fits(plan, k, record):
                findings.records[k] = record
        if fault := _fault(root, k, findings, checksums):
            findings.shards[k] = fault
        advance(k + 1)
    if strangers and not from_manifest:
        raise InputError(
            f"{root / 'plan.json'}: not the plan that {strangers} of the records were made under; "
            "put the right one back, or generate into a new folder"
        )
    lines += [f"{root / name}: missing or changed" for name in contents.wrong_metadata(root, plan)]
    findings.unfinished = findings.unfinished and len(lines) == 1


def restore(root: Path, findings: Findings) -> None:
    """Put back plan, records and metadata; the shards in `findings.shards` are left to their teacher. Until
    those are made, and the archive is finished again, its manifest stays as it is."""
    make_folders(root / "records")
    write_json(root / "plan.json", findings.plan.to_json())
    for k in range(findings.plan.shards):
        path = contents.record_path(root, k)
        if k in findings.shards:
            path.unlink(missing_ok=True)
        else:
            write_json(path, findings.records[k].to_json())
    write_metadata(root, findings.plan)


def _fitting(root: Path, plan: Plan) -> int:
    """How many records are those of a plan's shards."""
    fitting = 0
    for k in range(plan.shards):
        path = contents.record_path(root, k)
        with contextlib.suppress(InputError):
            fitting += contents.fits(plan, k, ShardRecord.from_json(read_json(path), path))
    return fitting


def _check_written(path: Path, values: dict[str, Any], lines: list[str]) -> None:
    """That a file is as these values are written, to the byte."""
    if path.read_bytes() != json_bytes(values):
        lines.append(f"{path}: changed since it was written, if not in what it says")


def _fault(root: Path, k: int, findings: Findings, checksums: bool) -> str | None:
    """What is wrong with the file of shard k, in a line."""
    record = findings.records.get(k)
    if record is None:
        return f"{root}: shard {k}: no valid record"
    for name, size, sha256 in record.files:
        path = root / name
        if not path.is_file():
            return f"{path}: missing (shard {k})"
        if path.stat().st_size != size:
            return f"{path}: {path.stat().st_size} bytes, not {size} (shard {k})"
        if checksums and sha256_file(path) != sha256:
            return f"{path}: its SHA-256 is not the recorded one (shard {k})"
    return None
