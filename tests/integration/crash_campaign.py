"""Kill workers that generate one archive together, each amid a chosen phase, and start others in their place.

    python crash_campaign.py OUT --kills N --seed S

This process imports everything once and forks a child for every worker, four at a time. In the child alone
the functions of each phase are wrapped: where the moment chosen for it has come the worker says so on a
board, memory shared with this process, and waits; it is then killed with SIGKILL.

A round is one archive, of either form, of a teacher with classes or without, in half of the rounds grown on
the way: workers that know the smaller count go on beside those that know the larger one. After each round the
archive must have the bytes of one that nobody disturbed, to the last file, and be good to a deep verify. The
counts of kills are printed, and written to OUT/report.json.
"""

import argparse
import functools
import importlib
import itertools
import json
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from crash import LAZY, PATIENCE, Board, ended, fork
from tiny import GENERATION, WORK, make_teacher

from hkdpipe.manifests.archive import writer
from hkdpipe.manifests.archive.contents import read_manifest
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.stages.generation import generate
from hkdpipe.stages.generation.check_archive import verify
from hkdpipe.stages.generation.worker import Worker
from hkdpipe.stages.settings.generation_settings import GenerationSettings

WORKERS = 4
KILLS_OF_A_ROUND = 12  # at most
# Twelve shards, the last one partial; of the smaller count, six, of which the last is partial.
LARGE = replace(GENERATION, count=46, shard_size=4, batch_size=2, steps=2)
SMALL = replace(LARGE, count=22)
POINTS: list[tuple[str, Any, str]] = [
    ("sampling", generate, "sample_trajectory"),
    ("fsync", os, "fsync"),
    ("rename", Path, "replace"),
    ("rename", Path, "rename"),
    ("record", writer, "write_json"),
    ("claim", Path, "hardlink_to"),
]
LATEST = {"sampling": 12, "writing": 8, "fsync": 24, "rename": 12, "record": 6, "claim": 8}
"""For each phase, up to which of its moments a worker is let go on."""


class Halved:
    """A file whose every write is seen on the board when half of it is written."""

    def __init__(self, file: Any, half_written: Callable[[], None]) -> None:
        self.file = file
        self.half_written = half_written

    def __enter__(self) -> "Halved":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.half_written()
        self.file.write(data[len(data) // 2 :])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


def mark(board: Board) -> None:
    """Let beginning and end of the points be seen on the board, and the middle of writing a file."""

    def around(function: Callable[..., Any], phase: int) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            board.enter(phase)
            result = function(*arguments, **named)
            board.enter(phase)
            return result

        return call

    for phase, owner, name in POINTS:
        setattr(owner, name, around(getattr(owner, name), board.phases.index(phase)))
    opened, amid = Path.open, functools.partial(board.enter, board.phases.index("writing"))

    def halving(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = opened(path, mode, *arguments, **named)
        return Halved(file, amid) if mode == "xb" else file

    setattr(Path, "open", halving)  # noqa: B010


@dataclass
class Place:
    """One of the workers at a time."""

    board: Board
    child: int = 0
    phase: str = ""
    """Amid which it is to be killed."""
    since: float = 0.0


def work(teacher: Path, out: Path, settings: GenerationSettings, worker: Worker, board: Board) -> None:
    mark(board)
    try:
        generate.generate(str(teacher), out, settings, worker=worker, **WORK)
    except UsageError:
        # Others were told to make more before this one had looked.
        if settings.count == LARGE.count:
            raise


def whole(out: Path) -> bool:
    """Whether an archive is finished, with the larger count."""
    try:
        return read_manifest(out)[0].count == LARGE.count
    except InputError:
        return False


def play(
    teacher: Path, out: Path, form: str, grows: bool, wanted: Counter[str], chance: random.Random
) -> Counter[str]:
    """One round: generate an archive in `out`; returns the kills of each phase, some of those wanted."""
    places = [Place(Board(list(LATEST))) for _ in range(WORKERS)]
    killed: Counter[str] = Counter()
    kills = wanted.total()
    larger = not grows

    def start(place: Place) -> None:
        nonlocal larger
        larger = larger or killed.total() >= kills // 2 or (out / "manifest.json").exists()
        place.board.clear()
        if killed.total() < kills and (left := wanted - killed):
            (place.phase,) = chance.choices(list(left), list(left.values()))
            place.board.hold(place.phase, chance.randint(1, LATEST[place.phase]))
        count = chance.randint(1, 2 * WORKERS)
        worker = Worker(chance.randrange(count), count)
        settings = replace(LARGE if larger else SMALL, format=form)
        place.since = time.monotonic()
        place.child = fork(functools.partial(work, teacher, out, settings, worker, place.board), place.board)

    for place in places:
        start(place)
    while running := [place for place in places if place.child]:
        for place in running:
            if place.board.held and killed.total() < kills:
                os.kill(place.child, signal.SIGKILL)
                os.waitpid(place.child, 0)
                killed[place.phase] += 1
                start(place)
            elif (code := ended(place.child)) is not None:
                if code:
                    raise RuntimeError(f"a worker ended with {code} by itself")
                place.child = 0
                if not whole(out):
                    start(place)
            elif place.board.held:
                place.board.release()
            elif time.monotonic() - place.since > PATIENCE:
                raise RuntimeError("a worker hangs")
        time.sleep(0.0005)
    return killed


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def examine(teacher: Path, out: Path, undisturbed: Path, form: str) -> None:
    """AssertionError unless an archive is whole and every byte of it is as it should be."""
    # Once more, for the claims that the last ones killed have left; there is nothing else to do.
    assert generate.generate(str(teacher), out, replace(LARGE, format=form), **WORK).did_nothing, out
    found, expected = content(out), content(undisturbed)
    changed = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    assert not changed, (out, sorted(changed))
    # Which trajectories these are: all of them start at the noise of their numbers.
    assert verify(out, "deep", False, None, **WORK).data["state"] == "good", out


def in_a_child(task: Callable[[], object]) -> None:
    """What would start threads here, and with them hanging children."""
    child = fork(task, Board([]))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError("failed: see above")


def campaign(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Rounds until all kills are done; returns what happened. RuntimeError where an archive is not right."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    each = math.ceil(kills / len(LATEST))
    wanted = Counter(dict.fromkeys(LATEST, each))
    kinds = [(form, label_dim) for label_dim in (0, 10) for form in ("zarr", "webdataset")]
    of_a_round = min(KILLS_OF_A_ROUND, math.ceil(kills / len(kinds)))
    for label_dim in (0, 10):
        in_a_child(functools.partial(make_teacher, folder / f"teacher-{label_dim}", 0, label_dim))
    for form, label_dim in kinds:
        settings = replace(LARGE, format=form)
        teacher, undisturbed = folder / f"teacher-{label_dim}", folder / f"undisturbed-{form}-{label_dim}"
        in_a_child(functools.partial(generate.generate, str(teacher), undisturbed, settings, **WORK))
    by_form: Counter[str] = Counter()
    for number, (form, label_dim) in enumerate(itertools.cycle(kinds)):
        if not (left := wanted - done):
            break
        if number > 10 + kills:
            raise RuntimeError(f"these never come: {left}")
        teacher, out = folder / f"teacher-{label_dim}", folder / f"round-{number:03d}"
        # Another half of the kinds in every cycle.
        grows = (number + number // len(kinds)) % 2 == 0
        some = Counter(chance.sample(list(left.elements()), min(left.total(), of_a_round)))
        killed = play(teacher, out, form, grows, some, chance)
        done += killed
        by_form[form] += killed.total()
        undisturbed = folder / f"undisturbed-{form}-{label_dim}"
        in_a_child(functools.partial(examine, teacher, out, undisturbed, form))
    return {"seed": seed, "rounds": number, "kills": dict(done), "by_form": dict(by_form)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, required=True, help="at least, in equal parts of each phase")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for module in LAZY:
        importlib.import_module(module)
    began = time.monotonic()
    report = campaign(given.out, given.kills, given.seed)
    print(f"{sum(report['kills'].values())} kills in {time.monotonic() - began:.0f} s: {report}")
    (given.out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
