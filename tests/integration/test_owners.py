"""A folder has one training or evaluation at a time; who lost it to another process writes nothing more."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Called, started
from test_killed_at_random import content
from tiny import KOOPMAN, TRAINING, Inputs, evaluate_tiny, settings, train_teacher_tiny, train_tiny, whole

from hkdpipe.manifests.ground.errors import InUseError
from hkdpipe.stages.evaluation import distribution, evaluate, evaluation_pictures
from hkdpipe.stages.evaluation.metrics import speed
from hkdpipe.stages.teachers import train_teacher
from hkdpipe.trainer.loop import checkpoint, training_loop
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.metrics import frechet_distance

ELSEWHERE = json.dumps({"token": "x", "host": "node7", "pid": 12, "job": "345", "since": "then"})
TAKEN_OVER = "was taken over by process 12 on node7, job 345, since then: nothing more is written"


def take_over_at(
    call: int, owner: Any, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, bytes]]:
    """At this call of a function, let a process on another machine take over what is owned below a folder.

    Returns a list to which what was on disk then is added.
    """
    function, calls = getattr(owner, name), 0
    found: list[dict[str, bytes]] = []

    def taking_over(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for record in folder.rglob("claims/owner.json"):
                record.write_text(ELSEWHERE)
            found.append(content(folder))
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, taking_over)
    return found


@pytest.mark.parametrize(
    ("work", "place"),
    [
        (train_tiny, (1, training_loop, "step")),  # then come a row of the metrics and a checkpoint
        (train_tiny, (1, checkpoint, "save_checkpoint")),
        (train_tiny, (12, training_loop, "step")),
        (train_teacher_tiny, (1, training_loop, "step")),
        (train_teacher_tiny, (4, checkpoint, "save_checkpoint")),
        (train_teacher_tiny, (1, train_teacher, "asdict")),  # the export
        (evaluate_tiny, (5, distribution, "quantised")),  # features
        (evaluate_tiny, (1, frechet_distance, "frechet_distance")),  # a row
        (evaluate_tiny, (1, evaluation_pictures, "beside")),  # the samples
        (evaluate_tiny, (1, evaluation_pictures, "strip")),
        (evaluate_tiny, (4, speed, "_seconds")),  # the tables
        (evaluate_tiny, (1, evaluate, "_write_tables")),  # the export
        (evaluate_tiny, (1, HKD, "save")),  # metrics.json
    ],
    ids=lambda value: f"{value[2]}-{value[0]}" if isinstance(value, tuple) else None,
)
def test_who_lost_a_folder_writes_nothing_more(
    work: Any, place: Any, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = take_over_at(*place, tmp_path, monkeypatch)
    with pytest.raises(InUseError, match=TAKEN_OVER):
        work(inputs, tmp_path)
    # Files that are put in place after one check, and claims of parts, which are given back.
    allowed = {"_write_tables": ".csv", "save": "export/"}.get(place[2], "nothing")
    now, before = (
        {name: data for name, data in found.items() if allowed not in name and "claims/0" not in name}
        for found in (content(tmp_path), then[0])
    )
    # A checkpoint that was being written in the background never appears.
    assert now == {name: data for name, data in before.items() if ".tmp/" not in name}


@pytest.mark.parametrize("place", [(3, training_loop, "step"), (1, HKD, "save")])
def test_a_lost_run_directory_is_left_as_it_is(
    place: Any, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    """Not even the end of the stage is noted."""
    then = take_over_at(*place, tmp_path, monkeypatch)
    ran = called("run", "--run-dir", str(tmp_path), *whole(inputs))
    assert ran.code == 4
    (error,) = ran.errors
    assert error.endswith(TAKEN_OVER)
    now = content(tmp_path)
    assert {name: data for name, data in now.items() if name in then[0]} == then[0]
    assert not [name for name in now if name not in then[0] and not name.startswith("export/")]


def test_a_folder_that_is_trained_in(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    """The second one is told by whom; after a kill the folder is free at once."""
    monkeypatch.setenv("SLURM_JOB_ID", "345")
    monkeypatch.chdir(tmp_path)
    longer = replace(TRAINING, budget=100_000)
    places = ["--out", "out", "--teacher", str(inputs.teacher), "--archive", str(inputs.archive())]
    command = ["train", *places, *settings(training=longer, koopman=KOOPMAN)]
    with started(tmp_path, *command) as running:
        running.wait_until(lambda: any(Path("out/checkpoints").glob("step-*")))
        ran = called(*command)
        assert ran.code == 4
        (error,) = ran.errors
        assert error.startswith(f"training in out is in use by process {running.process.pid} on ")
        assert ", job 345, since 20" in error
        running.process.send_signal(signal.SIGKILL)
        running.end()
    budget = int(max(Path("out/checkpoints").glob("step-*")).name[-8:]) * TRAINING.batch_size + 48
    train_tiny(inputs, Path("out"), training=replace(TRAINING, budget=budget))
