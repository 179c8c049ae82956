"""Kill a stage at random moments and start it again until it finishes, many times over.

    python crash.py INPUTS OUT --kills N --phases all --seed S

This process imports everything once and forks a child for every attempt. In the child alone the functions
at which a stage passes from one phase to the next are wrapped: they note on a board, memory shared with the
parent, which call has begun. The parent chooses the moments: at the very beginning of the n-th call of a
phase; up to two milliseconds after it; or any time within the duration of an undisturbed run.

For each stage, OUT/STAGE/undisturbed is the result of a run that nobody disturbed, OUT/STAGE/round-NNN that
of each round of kills (attempts in one folder, the last of which finishes). OUT/report.json tells the rest.
"""

import argparse
import functools
import importlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny import STAGES, Inputs

from hkdpipe.manifests.archive import writer
from hkdpipe.manifests.forms import webdataset_form, zarr_form
from hkdpipe.stages.evaluation import context, distribution, evaluate, evaluation_pictures, feature_parts
from hkdpipe.stages.evaluation.metrics import speed
from hkdpipe.stages.generation import generate
from hkdpipe.stages.settings.metrics import metrics
from hkdpipe.stages.teachers import train_teacher
from hkdpipe.stages.training import metrics_log, train
from hkdpipe.trainer.images import image_sets
from hkdpipe.trainer.loop import checkpoint, training_loop
from hkdpipe.trainer.losses import perceptual
from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.students import loading, student
from hkdpipe.trainer.teachers.families import families

# The stages import these when they first need them.
LAZY = (
    "pandas.io.formats.csvs",
    "sklearn.datasets.data",
    "sklearn.datasets.descr",
    "torch._dynamo",
    "torch.utils.serialization.config",
    "webdataset",
    "zarr",
)
LONGEST_DELAY = 0.002
PATIENCE = 120.0  # seconds an attempt may take before it counts as hanging
_BEGUN, _LAST, _HOLD_PHASE, _HOLD_CALL, _HELD, _RELEASED, _CALLS = range(7)

Point = tuple[str, Any, str]
"""A phase, and the attribute of an object whose calls begin it."""

_FILES: list[Point] = [("sync", os, "fsync"), ("rename", Path, "replace"), ("rename", Path, "rename")]
_LOOP: list[Point] = [
    ("step", training_loop, "step"),
    ("log", metrics_log.MetricsLog, "append"),
    ("save", checkpoint, "save_checkpoint"),
    ("write", Path, "write_bytes"),
    ("state", checkpoint, "write_json"),
    ("prune", shutil, "rmtree"),
]
_TRAINING: list[Point] = [("read", train, "read_batch"), *_LOOP, *_FILES]
_GENERATION: list[Point] = [
    ("sample", generate, "sample_trajectory"),
    ("shard", writer, "write_atomic"),
    ("record", writer, "write_json"),
    *_FILES,
]
POINTS: dict[str, list[Point]] = {
    "generate-zarr": [
        ("metadata", zarr_form, "metadata"),
        ("encode", zarr_form, "encode_shard"),
        *_GENERATION,
    ],
    "generate-webdataset": [("encode", webdataset_form, "encode_shard"), *_GENERATION],
    "train": _TRAINING,
    "train-kd": _TRAINING,
    "train-kdm": _TRAINING,
    "train-teacher": [
        ("read", train_teacher, "read_noisy_images"),
        *_LOOP,
        ("export", train_teacher, "save_teacher"),
        *_FILES,
    ],
    "evaluate": [
        ("load", loading, "read_weights"),
        ("measure", distribution, "quantised"),
        ("part", feature_parts, "write_atomic"),
        ("teacher", context, "sample_trajectory"),
        ("picture", evaluation_pictures, "save_png"),
        ("match", perceptual, "normalised_difference"),
        ("speed", speed, "_seconds"),
        ("row", distribution, "write_json"),
        ("table", evaluate, "write_atomic"),
        ("export", student.Student, "save"),
        ("report", evaluate, "write_report"),
        *_FILES,
    ],
}


class Board:
    """Numbers that parent and child share."""

    def __init__(self, phases: list[str]) -> None:
        self.phases = phases
        self.cells = memoryview(mmap.mmap(-1, 4 * (_CALLS + len(phases)))).cast("i")
        self.clear()

    def clear(self) -> None:
        for cell in range(len(self.cells)):
            self.cells[cell] = 0
        self.cells[_LAST] = self.cells[_HOLD_PHASE] = -1

    def hold(self, phase: str, call: int) -> None:
        """Let the child wait at the beginning of the n-th call of a phase until it is released."""
        self.cells[_HOLD_PHASE], self.cells[_HOLD_CALL] = self.phases.index(phase), call

    def enter(self, phase: int) -> None:
        self.cells[_CALLS + phase] += 1
        self.cells[_LAST] = phase
        if (phase, self.cells[_CALLS + phase]) == (self.cells[_HOLD_PHASE], self.cells[_HOLD_CALL]):
            self.cells[_HELD] = 1
            while not self.cells[_RELEASED]:
                time.sleep(0)

    @property
    def begun(self) -> bool:
        return bool(self.cells[_BEGUN])

    @property
    def held(self) -> bool:
        return bool(self.cells[_HELD])

    def release(self) -> None:
        self.cells[_RELEASED] = 1

    @property
    def last(self) -> str:
        """The phase whose beginning was the last event."""
        return self.phases[self.cells[_LAST]] if self.cells[_LAST] >= 0 else "begin"

    def calls(self) -> dict[str, int]:
        return {phase: self.cells[_CALLS + index] for index, phase in enumerate(self.phases)}


@dataclass(frozen=True)
class Moment:
    """When to kill: after `delay` seconds, counted from the n-th call of a phase if one is named."""

    delay: float
    phase: str | None = None
    call: int = 0


def mark(board: Board, points: list[Point]) -> None:
    """Let the calls of the points be seen on the board."""

    def marked(function: Callable[..., Any], phase: int) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            board.enter(phase)
            return function(*arguments, **named)

        return call

    for phase, owner, name in points:
        setattr(owner, name, marked(getattr(owner, name), board.phases.index(phase)))


def fork(work: Callable[[], object], board: Board) -> int:
    """Start an attempt at some work; returns the child's process number."""
    # A thread would be missing in the child, and with it whatever it holds.
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("the parent has threads: a forked child could hang")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        board.cells[_BEGUN] = 1
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int | None:
    """How the child ended (minus a signal's number, or an exit code); None while it goes on."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def attempt(child: int, board: Board, moment: Moment | None) -> bool:
    """Let the child finish, or kill it at the moment. True if it finished, for it may be faster."""
    deadline = time.monotonic() + PATIENCE
    while (code := ended(child)) is None:
        if moment and (board.held if moment.phase else board.begun):
            if moment.delay:
                board.release()
                time.sleep(moment.delay)
            os.kill(child, signal.SIGKILL)
            moment = None
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError("an attempt hangs")
        time.sleep(0.0002)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"an attempt ended with {code} by itself")
    return code == 0


def moments(
    calls: dict[str, int], seconds: float, kills: int, named: list[str], chance: random.Random
) -> list[Moment]:
    """The moments to kill at, in random order: one at a call of each phase named, the others by chance."""
    chosen = [Moment(0.0, phase, chance.randint(1, calls[phase])) for phase in named]
    while len(chosen) < kills:
        if chance.random() < 0.5:
            phase = chance.choice(list(calls))
            delay = chance.uniform(0, LONGEST_DELAY)
            chosen.append(Moment(delay, phase, chance.randint(1, calls[phase])))
        else:
            chosen.append(Moment(chance.uniform(0, seconds)))
    chance.shuffle(chosen)
    return chosen


def earlier(moment: Moment, chance: random.Random) -> Moment:
    """A moment for one that did not come."""
    if moment.phase:
        return replace(moment, call=chance.randint(1, moment.call))
    return replace(moment, delay=chance.uniform(0, moment.delay))


def disturb(stage: str, inputs: Inputs, folder: Path, kills: int, phases: str, seed: str) -> dict[str, Any]:
    """Kill a stage, restart it, and so on; returns what happened. RuntimeError if it does not finish."""
    board = Board(list(dict.fromkeys(phase for phase, _, _ in POINTS[stage])))
    chance = random.Random(seed)
    imported = folder / "imported.json"

    def work(out: Path) -> None:
        before = set(sys.modules)
        mark(board, POINTS[stage])
        STAGES[stage](inputs, out)
        imported.write_text(json.dumps(sorted(set(sys.modules) - before)))

    began = time.monotonic()
    attempt(fork(lambda: work(folder / "undisturbed"), board), board, None)
    seconds = time.monotonic() - began
    calls = board.calls()
    if not all(calls.values()):
        raise RuntimeError(f"phases that never begin: {calls}")
    named = board.phases if phases == "all" else chance.sample(board.phases, int(phases))
    waiting = moments(calls, seconds, kills, named, chance)
    landed = []
    rounds = missed = 0
    while waiting:
        rounds += 1
        finished = False
        while not finished:
            board.clear()
            moment = waiting[0] if waiting else None
            if moment and moment.phase:
                board.hold(moment.phase, moment.call)
            child = fork(functools.partial(work, folder / f"round-{rounds:03d}"), board)
            finished = attempt(child, board, moment)
            if not finished:
                done = waiting.pop(0)
                # While one thread is held at the beginning of a phase another one may go on.
                phase = done.phase if done.phase and not done.delay else board.last
                landed.append({**vars(done), "round": rounds, "landed": phase})
            elif moment:
                # It was done before the moment came, or had fewer such calls left after a restart.
                missed += 1
                waiting[0] = earlier(moment, chance)
        if missed > 10 * kills:
            raise RuntimeError(f"these moments never come: {waiting}")
    return {
        "seconds": seconds,
        "calls": calls,
        "kills": landed,
        "rounds": rounds,
        "imported": json.loads(imported.read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, required=True, help="of each stage")
    parser.add_argument("--phases", required=True, help="begun phases among the moments: 'all' or how many")
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for module in LAZY:
        importlib.import_module(module)
    for registered in (families, metrics, image_sets.formats):
        registered()
    for method in methods().values():
        assert method.student_class
    Image.preinit()
    reports = {}
    for stage in STAGES:
        folder = given.out / stage
        folder.mkdir()
        try:
            reports[stage] = disturb(
                stage, Inputs(given.inputs), folder, given.kills, given.phases, f"{given.seed} {stage}"
            )
        except RuntimeError as error:
            reports[stage] = {"error": str(error)}
    (given.out / "report.json").write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
