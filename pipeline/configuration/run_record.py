"""run.json: when the stages of a run ran, how they ended, and what was changed in between.

It informs people and decides nothing: a damaged one is reported and begun anew.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkdpipe.manifests.ground.atomic_files import read_json, write_json
from hkdpipe.manifests.ground.errors import InputError, Interrupted, InUseError
from hkdpipe.pipeline.configuration.run_directory import Change

if TYPE_CHECKING:
    from hkdpipe.stages.shared.reporting import Summary

VERSION = 1


def read_record(path: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """The record, or a new one where there is none or a damaged one."""
    new: dict[str, Any] = {"version": VERSION, "stages": {}, "software": {}, "changes": []}
    if not path.exists():
        return new
    try:
        record = read_json(path)
    except InputError as error:
        warn(f"{error}; a new one is begun")
        return new
    if (
        not isinstance(record, dict)
        or record.get("version") != VERSION
        or not isinstance(record.get("changes"), list)
        or not isinstance(stages := record.get("stages"), dict)
        or not all(isinstance(entry, dict) for entry in stages.values())
    ):
        warn(f"{path}: not the record of a run; a new one is begun")
        return new
    return record


def record_changes(path: Path, changes: Sequence[Change], warn: Callable[[str], None]) -> None:
    """Note new values of the configuration, with the time."""
    if not changes:
        return
    record = read_record(path, warn)
    record["changes"] += [
        {"time": _now(), "key": change.key, "from": change.stored, "to": change.given} for change in changes
    ]
    write_json(path, record)


def recorded(
    path: Path,
    stage: str,
    work: Callable[[], Summary],
    warn: Callable[[str], None],
    check_owned: Callable[[], None] = lambda: None,
) -> Summary:
    """Do a stage's work and note its beginning, its end and the seconds it took, over all attempts.

    `check_owned` is called before each note, and raises where the run directory is another process's now.
    """
    before = read_record(path, warn)["stages"].get(stage)
    started, clock = _now(), time.monotonic()

    def put(entry: dict[str, Any] | None) -> None:
        check_owned()
        _put(path, stage, entry, warn)

    def note(state: str, **more: str) -> None:
        earlier = (before or {}).get("seconds", 0.0)
        seconds = round(earlier + time.monotonic() - clock, 1)
        put({"state": state, "started": started, "seconds": seconds, **more})

    note("running")
    try:
        summary = work()
    except BaseException as error:
        # What ended the stage must be heard, even if a full disk or a new owner keeps it from the record.
        with contextlib.suppress(OSError, InUseError):
            if isinstance(error, InUseError):
                put(before)
            elif isinstance(error, Interrupted | KeyboardInterrupt):
                note("interrupted", finished=_now())
            else:
                note("failed", finished=_now(), error=str(error) or type(error).__name__)
        raise
    if summary.did_nothing and before is not None and before.get("state") == "complete":
        put(before)
    else:
        note("complete", finished=_now())
    return summary


def _put(path: Path, stage: str, entry: dict[str, Any] | None, warn: Callable[[str], None]) -> None:
    record = read_record(path, warn)
    record["stages"].pop(stage, None)
    if entry is not None:
        record["stages"][stage] = entry
    record["software"] = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("hkdpipe", "torch", "numpy", "zarr")},
    }
    write_json(path, record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
