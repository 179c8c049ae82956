"""What an evaluation is asked for and what it is given: less than usual, of another shape, changed since."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import EVALUATION, Inputs, evaluate_tiny

from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.manifests.ground.errors import UsageError, WrongValue
from hkdpipe.stages.evaluation import evaluate as evaluation
from hkdpipe.stages.shared.reporting import Summary
from hkdpipe.trainer.loop.checkpoint import checkpoints
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.students.loading import load_model

SETTINGS = dataclasses.replace(EVALUATION, teacher_steps=(), reference="archive")


def run(inputs: Inputs, out: Path, world: World | None = None, **changes: Any) -> Summary:
    return evaluate_tiny(inputs, out, dataclasses.replace(SETTINGS, **changes), world)


def test_who_helps_has_nothing_to_do_where_no_distance_is_asked_for(inputs: Inputs, tmp_path: Path) -> None:
    """And needs no weights of a detector."""
    run(inputs, tmp_path / "out", World(1, 2), metrics=("match",), features="inception", inception="nowhere")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_another_distance_alone(inputs: Inputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "out", metrics=("kid",))
    (row,) = read_json(tmp_path / "out" / "metrics.json")["rows"]
    assert "kid" in row
    assert "fd_digits" not in row


def test_what_lies_at_a_path_counts_and_not_its_name(inputs: Inputs, tmp_path: Path) -> None:
    """A row is measured again where the reference or a model compared with has changed, and only then."""
    out, images, other = tmp_path / "out", tmp_path / "images.npz", tmp_path / "parts" / "other"
    first, second = checkpoints(inputs.training / "checkpoints")[-2:]
    changes: dict[str, Any] = {"reference": str(images), "compared": (str(other),)}
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    found = []
    for source, amount in ((first, 9), (first, 8), (second, 8)):
        np.savez(images, images=pixels[:amount])
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(source, other)
        assert not run(inputs, out, metrics=("fd", "match"), **changes).did_nothing
        assert run(inputs, out, metrics=("fd", "match"), **changes).did_nothing
        rows = read_json(out / "metrics.json")["rows"]
        assert [row["name"] for row in rows] == ["student", str(other), "two halves of the reference"]
        found.append([row["fd_digits"] for row in rows[:2]])
    assert found[0][0] != found[1][0] == found[2][0]
    assert found[1][1] != found[2][1]
    assert (out / "match.csv").exists()
    run(inputs, out, metrics=("fd",), **changes)
    assert not (out / "match.csv").exists()


def test_statistics_of_other_features_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(UsageError, match="holds statistics of 5 features; accepted: of 64, as 'digits' has"):
        run(inputs, tmp_path / "out", reference=str(tmp_path / "reference.npz"))


def test_a_student_of_several_steps_has_a_row_for_each(inputs: Inputs, tmp_path: Path) -> None:
    """However its samples are cut into batches, step by step from noise of the step's own."""
    found: dict[int, Any] = {}
    for batch, steps in ((4, (1, 2)), (5, (2,))):
        run(inputs, tmp_path, metrics=("fd", "speed"), student_steps=steps, batch_size=batch)
        found[batch] = read_json(tmp_path / "metrics.json")
        page = (tmp_path / "report.html").read_text()
        assert page.count("Student, 2 network evaluations") == 1
        assert page.count("<figcaption>") == len(steps) + 1
    for name in ("rows", "speed"):
        assert [row["nfe"] for row in found[4][name] if row["name"] == "student"] == [1, 2]
    one, two, _ = [row["fd_digits"] for row in found[4]["rows"]]
    assert one != two == pytest.approx(found[5]["rows"][0]["fd_digits"], rel=1e-3)
    model = load_model(checkpoints(inputs.training / "checkpoints")[-1])
    model.between = False  # type: ignore[misc]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load_model", lambda *arguments: model)
        with pytest.raises(WrongValue, match=r"^student_steps: got 2; accepted: 1"):
            run(inputs, tmp_path, student_steps=(1, 2))
