"""What is written of a training while it goes on, and that an interruption leaves no trace in it."""

import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
from commands import Called
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import EVALUATION, TRAINING, Inputs, evaluate_tiny, train_tiny

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.loop.checkpoint import checkpoints

WATCHED = dataclasses.replace(TRAINING, tensorboard=True, keep_checkpoints=9, learning_rate=0.01)


def curves(path: Path) -> dict[str, dict[int, float]]:
    """Of a table, each column but the first: what it has at which trajectories seen."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seen = [int(row.pop("seen")) for row in rows]
    return {
        name: {at: float(row[name]) for at, row in zip(seen, rows, strict=True) if row[name]}
        for name in rows[0]
    }


def shown(out: Path) -> tuple[dict[str, dict[str, dict[int, float]]], list[int]]:
    """What TensorBoard shows: curves in groups, as those of tables, and where pictures are."""
    found = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    groups: dict[str, dict[str, dict[int, float]]] = {}
    for tag in found.Tags()["scalars"]:
        group, name = tag.split("/")
        points = found.Scalars(tag)
        curve = groups.setdefault(group, {})[name] = {point.step: point.value for point in points}
        assert len(curve) == len(points)
    return groups, [picture.step for picture in found.Images("held out")]


def test_events_hold_what_the_tables_hold_also_after_going_back(inputs: Inputs, tmp_path: Path) -> None:
    """A training that lost its last two checkpoints repeats what it did since."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    train_tiny(inputs, whole, training=WATCHED)
    shutil.copytree(whole, out)
    for path in checkpoints(out / "checkpoints")[-2:]:
        shutil.rmtree(path)
    train_tiny(inputs, out, training=WATCHED)
    for name in ("metrics", "validation"):
        assert (out / f"{name}.csv").read_text() == (whole / f"{name}.csv").read_text()
    metrics, validation = curves(out / "metrics.csv"), curves(out / "validation.csv")
    at = [12, 24, 36, 48]
    # Operators learn in every fourth step of four trajectories.
    assert {name: [*curve] for name, curve in metrics.items() if [*curve] != at} == {"latent": [48]}
    assert all([*curve] == at for curve in validation.values())
    levels = [f"{name}_{level}" for name in ("skill", "alpha", "beta") for level in (8, 4)]
    assert sorted(validation) == sorted(["mse", *levels])
    assert all(any(validation[name].values()) for name in levels)
    for folder in (whole, out):
        groups, pictures = shown(folder)
        assert set(groups) == {"training", "validation"}
        for group, table in (("training", metrics), ("validation", validation)):
            assert set(groups[group]) == set(table)
            for name, curve in table.items():
                assert groups[group][name] == pytest.approx(curve, rel=1e-6)
        assert pictures == at


def test_distance_is_that_of_an_evaluation(either: Inputs, tmp_path: Path) -> None:
    """With as many samples; and going back leaves no trace in it."""
    training = dataclasses.replace(WATCHED, fd_images=EVALUATION.samples)
    made = Inputs(tmp_path / "made", either.label_dim)
    shutil.copytree(either.teacher, made.teacher)
    shutil.copytree(either.archive(), made.archive())
    train_tiny(made, made.training, training=training)
    table = made.training / "distance.csv"
    found, text = curves(table)["fd_digits"], table.read_text()
    assert [*found] == [12, 24, 36, 48]
    assert len(set(found.values())) == 4
    evaluate_tiny(made, tmp_path / "evaluation")
    rows = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["rows"]
    assert found[48] == pytest.approx(rows[0]["fd_digits"], rel=1e-6)
    assert shown(made.training)[0]["distance"]["fd_digits"] == pytest.approx(found, rel=1e-6)
    for path in checkpoints(made.training / "checkpoints")[-2:]:
        shutil.rmtree(path)
    train_tiny(made, made.training, training=training)
    assert table.read_text() == text


def test_events_need_their_package(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = (
        "training.tensorboard: got true; accepted: false, as the package tensorboard is missing: "
        "pip install 'hkdpipe[tensorboard]'"
    )
    with pytest.raises(UsageError) as error:
        train_tiny(inputs, tmp_path / "out", training=WATCHED)
    assert str(error.value) == message.removeprefix("training.")
    run = ["run", "--preset", "digits", "--run-dir", str(tmp_path / "run")]
    ran = called(*run, "--set", "training.tensorboard=true")
    assert (ran.code, ran.errors) == (2, [message])
    assert not (tmp_path / "run/trajectories").exists()
