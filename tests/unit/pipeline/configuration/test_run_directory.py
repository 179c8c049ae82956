from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import InUseError, UsageError
from hkdpipe.pipeline.configuration.config import resolve
from hkdpipe.pipeline.configuration.run_directory import Change, RunDir, check_change

NUMBERS = ("training.learning_rate=0.001", "training.budget=160000", "generation.count=8192")
STORED = resolve("digits", None, None, NUMBERS)
ALL = {"teacher", "generation", "training", "hkd", "koopman"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.learning_rate=0.5",
            "training.learning_rate: this run has 0.001, given 0.5; it decides results that are there "
            "already: keep the value, or take another --run-dir",
        ),
        (
            "teacher.source=mine",
            'teacher.source: this run has "digits", given "mine"; it decides results that are there already: '
            "keep the value, or take another --run-dir",
        ),
        (
            "generation.count=4096",
            "generation.count: this run has 8192, given 4096; it may only grow: "
            "keep the value, or take another --run-dir",
        ),
    ],
)
def test_begun_stages_keep_what_decided_them(override: str, message: str) -> None:
    given = resolve("digits", None, None, [*NUMBERS, override])
    check_change(STORED, given, set())
    with pytest.raises(UsageError) as caught:
        check_change(STORED, given, ALL)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "override",
    [
        "training.budget=200000",
        "training.checkpoint_every=1",
        "generation.count=10000",
        "evaluation.samples=16",
        "evaluation.seed=5",
    ],
)
def test_the_rest_may_change(override: str) -> None:
    check_change(STORED, resolve("digits", None, None, [*NUMBERS, override]), ALL)


def test_begun(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir(parents=True)
    run.trajectories.mkdir()
    (run.trajectories / "claims").mkdir()
    assert run.begun(STORED) == set()
    (run.trajectories / "plan.json").touch()
    assert run.begun(STORED) == {"teacher", "generation"}
    (run.checkpoints / "step-00000010").mkdir()
    assert run.begun(STORED) == ALL


def test_adopting_a_configuration(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a" / "b")
    with run.owned():
        assert run.adopt(STORED) == []
        assert resolve(None, None, run.config, ()) == STORED
        longer = resolve(None, None, run.config, ["training.budget=200000"])
        assert run.adopt(longer) == [Change("training.budget", 160_000, 200_000)]
        assert run.adopt(longer) == []
        with pytest.raises(InUseError, match=r"run directory .* is in use by process"), run.owned():
            pass
    assert resolve(None, None, run.config, ()) == longer


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match=r"--run-dir: .*/x is not a folder"), RunDir(tmp_path / "x").owned():
        pass
