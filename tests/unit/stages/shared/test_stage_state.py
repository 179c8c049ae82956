import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared import stage_state
from hkdpipe.trainer.settings.training_settings import TrainingSettings

WriteShards = Callable[[Path, Plan, int], None]
SETTINGS = EvaluationSettings()


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))


def checkpoint(training: Path, step: int, values: Any) -> Path:
    path = training / "checkpoints" / f"step-{step:08d}"
    write(path / "state.json", values)
    return path


@pytest.mark.parametrize(
    ("shards", "wanted", "state", "done"),
    [
        (0, 12, "partial", 0),
        (2, 12, "partial", 10),
        (3, 12, "complete", 12),
        (3, 11, "complete", 12),
        (3, 13, "partial", 12),
    ],
)
def test_generation_state(
    tmp_path: Path, plan: Plan, write_shards: WriteShards, shards: int, wanted: int, state: str, done: int
) -> None:
    write_shards(tmp_path, plan, shards)
    found = stage_state.generation_state(tmp_path, GenerationSettings(count=wanted))
    assert (found.state, found.done, found.total) == (state, done, wanted)
    assert found.detail.startswith(f"{shards} of 3 shards, ")


def test_stages_that_have_not_begun(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert [
        stage_state.generation_state(nothing, GenerationSettings(count=5)),
        stage_state.training_state(nothing, TrainingSettings(budget=7)),
        stage_state.evaluation_state(nothing, nothing, nothing, SETTINGS),
    ] == [
        stage_state.StageState("generation", "absent", 0, 5, "trajectories", ""),
        stage_state.StageState("training", "absent", 0, 7, "trajectories", ""),
        stage_state.StageState("evaluation", "absent", 0, 3, "metrics", ""),
    ]


@pytest.mark.parametrize(
    ("seen", "state"), [(0, "partial"), (99, "partial"), (100, "complete"), (104, "complete")]
)
def test_training_state(tmp_path: Path, seen: int, state: str) -> None:
    checkpoint(tmp_path, 3, {"seen": 1})
    checkpoint(tmp_path, 12, {"seen": seen})
    found = stage_state.training_state(tmp_path, TrainingSettings(budget=100))
    assert found == stage_state.StageState("training", state, seen, 100, "trajectories", "step-00000012")  # type: ignore[arg-type]


@pytest.mark.parametrize("damaged", ["", "[1]", '{"seen": "many"}', "{"])
def test_damaged_checkpoints_are_passed_over(tmp_path: Path, damaged: str) -> None:
    good = checkpoint(tmp_path, 2, {"seen": 10})
    checkpoint(tmp_path, 3, damaged)
    (tmp_path / "checkpoints/step-00000004").mkdir()
    assert stage_state.newest_state(tmp_path / "checkpoints") == (good, {"seen": 10})


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A training, an evaluation and an export that belong together."""
    state = {"seen": 10, "sha256": {"weights.safetensors": "a"}, "identity": "b"}
    checkpoint(tmp_path, 2, state)
    write(tmp_path / "rows/student-1.json", {})
    write(tmp_path / "metrics.json", {"identity": stage_state.evaluation_identity(SETTINGS, state)})
    write(tmp_path / "export/config.json", {})
    return tmp_path


def state_of(root: Path, settings: EvaluationSettings = SETTINGS) -> tuple[str, int, str]:
    found = stage_state.evaluation_state(root, root / "export", root, settings)
    return found.state, found.done, found.detail


def test_evaluation_complete(evaluated: Path) -> None:
    assert state_of(evaluated) == ("complete", 3, str(evaluated / "metrics.json"))


OUTDATED = ("partial", 0, "of other settings or an older checkpoint")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda root: checkpoint(root, 5, {"seen": 20, "sha256": {}, "identity": "b"}), OUTDATED),
        (lambda root: (root / "export/config.json").unlink(), OUTDATED),
        (lambda root: write(root / "metrics.json", [1]), OUTDATED),
        (lambda root: write(root / "metrics.json", "{"), ("partial", 0, "1 rows measured")),
        (lambda root: (root / "metrics.json").unlink(), ("partial", 0, "1 rows measured")),
        (
            lambda root: (root / "checkpoints/step-00000002/state.json").unlink(),
            ("partial", 0, "1 rows measured"),
        ),
    ],
    ids=["newer-checkpoint", "no-export", "other-json", "torn", "no-metrics", "no-checkpoint"],
)
def test_evaluation_partial(
    evaluated: Path, change: Callable[[Path], object], expected: tuple[str, int, str]
) -> None:
    change(evaluated)
    assert state_of(evaluated) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 7},
        {"seed": 1},
        {"weights": "raw"},
        {"metrics": ("fd",)},
        {"matched": 3},
        {"student_steps": (1, 2)},
    ],
)
def test_evaluation_of_other_settings(evaluated: Path, changes: dict[str, Any]) -> None:
    assert state_of(evaluated, dataclasses.replace(SETTINGS, **changes)) == OUTDATED
