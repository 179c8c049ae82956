"""A teacher that knows classes, through all stages and at all that reads what they write."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from commands import Called, Ran, hkdpipe, succeeded
from numpy.typing import NDArray
from tiny import TEACHER_TRAINING, WORK, Inputs, whole

from hkdpipe.manifests.ground import rng
from hkdpipe.stages.evaluation.seen import quantised
from hkdpipe.stages.teachers.train_teacher import train_teacher
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.metrics.digits_classifier import load_classifier
from hkdpipe.trainer.metrics.frechet_distance import Statistics, frechet_distance, statistics
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import sample_trajectory
from hkdpipe.trainer.teachers.teacher import load_teacher

CLASSES = [7, 1, 4]


@pytest.fixture(scope="module")
def ran(conditional: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A folder with a run of three of the ten classes, and what the command said."""
    folder = tmp_path_factory.mktemp("run")
    options = [*whole(conditional), "--set", f"generation.classes={CLASSES}"]
    return folder, succeeded(hkdpipe(folder, "run", "--run-dir", "run", *options))


@pytest.fixture
def complete(ran: tuple[Path, Ran], monkeypatch: pytest.MonkeyPatch) -> Ran:
    """That run, in the working folder."""
    monkeypatch.chdir(ran[0])
    return ran[1]


def stored() -> tuple[NDArray[Any], NDArray[np.int64]]:
    """States and labels of the run, read by plain zarr."""
    group: Any = zarr.open_group("run/trajectories", mode="r")
    return group["states"][:], group["labels"][:]


def rows(name: str) -> list[dict[str, str]]:
    with Path(f"run/evaluation/{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_conditional_run(complete: Ran, called: Called) -> None:
    states, labels = stored()
    assert set(labels.tolist()) == set(CLASSES)

    # Evaluation gives each held-out trajectory its own label: the first four are held out.
    model = load_model("run/export")
    start = torch.from_numpy(states[:4, 0]).float()
    with torch.inference_mode():
        images = model(start, torch.full((4,), 80.0), torch.from_numpy(labels[:4]))
    errors = ((images.numpy() - states[:4, -1]) ** 2).mean(axis=(1, 2, 3))
    assert float(rows("match")[0]["mse"]) == pytest.approx(errors.mean(), rel=1e-5)
    measured = rows("per_class")
    assert [(row["name"], row["nfe"], int(row["class"])) for row in measured] == [
        (name, nfe, number)
        for name, nfe in (("student", "1"), ("teacher", "5"), ("teacher", "3"))
        for number in sorted(CLASSES)
    ]
    of_student = {int(row["class"]): row for row in measured[:3]}
    assert sum(int(row["samples"]) for row in of_student.values()) == 10
    for number in set(labels[:4].tolist()):
        expected = errors[labels[:4] == number].mean()
        assert float(of_student[number]["match_mse"]) == pytest.approx(expected, rel=1e-5)
    shares = {number: float(row["as_asked"] or 0) * int(row["samples"]) for number, row in of_student.items()}
    assert sum(shares.values()) / 10 == pytest.approx(float(rows("metrics")[0]["as_asked"]))
    metrics = json.loads(Path("run/evaluation/metrics.json").read_text())
    assert [row["class"] for row in metrics["per_class"]] == [int(row["class"]) for row in measured]
    assert "as asked" in complete.out
    assert "its worst" in complete.out

    # Everything is there, and no other classes may follow.
    assert "nothing to do" in called("run", "--run-dir", "run").out
    other = called("run", "--run-dir", "run", "--set", "generation.classes=[1]")
    assert (other.code, other.errors[0].split(";")[0]) == (
        2,
        "generation.classes: this run has (7, 1, 4), given (1,)",
    )


def test_both_are_measured_on_the_classes_asked_for(complete: Ran, conditional: Inputs) -> None:
    """The distances again, from noise and labels drawn here; with other labels they are far off."""
    noise = torch.from_numpy(rng.unit_noise(0, "evaluation", range(10), (1, 8, 8))).float()
    asked = torch.from_numpy(rng.choice(0, "evaluation-labels", range(10), CLASSES))
    teacher, levels = load_teacher(conditional.teacher), {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    classifier = load_classifier("digits-classifier-metric")

    def seen(images: torch.Tensor) -> Statistics:
        return statistics([classifier.embed(quantised(images) / 127.5 - 1).numpy()])

    target = seen(torch.from_numpy(load_digits()[0]))

    def distances(labels: torch.Tensor) -> list[float]:
        one_hot = torch.eye(10)[labels]
        with torch.inference_mode():
            ends = [sample_trajectory(teacher, noise, n, one_hot, **levels)[0][-1].float() for n in (3, 2)]
            made = [load_model("run/export").sample(noise, labels), *ends]
            return [frechet_distance(seen(images), target) for images in made]

    measured = [float(row["fd_digits"]) for row in rows("metrics")[:3]]
    assert distances(asked) == pytest.approx(measured, rel=1e-4)
    for one, other in zip(distances((asked + 1) % 10), measured, strict=True):
        assert one != pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("model", ["run/export", "run/training/checkpoints/step-00000012"])
def test_sampling_by_class(complete: Ran, model: str, called: Called) -> None:
    def sampled(*arguments: str) -> Any:
        succeeded(called("sample", "--model", model, "--count", "9", "--out", "samples", *arguments))
        with np.load("samples/samples.npz") as arrays:
            return arrays["images"], arrays["labels"]

    images, labels = sampled()
    assert set(labels.tolist()) <= set(CLASSES)
    for number in set(labels.tolist()):
        others, asked = sampled("--class", str(number))
        assert asked.tolist() == [number] * 9
        # The same noise: only what was drawn as this class anyway is the same image.
        same = (others == images).all(axis=(1, 2, 3))
        assert same.tolist() == (labels == number).tolist()
    refused = called("sample", "--model", model, "--out", "samples", "--class", "3")
    assert (refused.code, refused.errors) == (2, ["--class: got 3; accepted: 1, 4, 7"])


def test_a_teacher_is_trained_with_its_classes(tmp_path: Path) -> None:
    """Had it not been told them, the weights on them would be those that it started from."""
    settings = replace(TEACHER_TRAINING, conditional=True)
    train_teacher("digits", tmp_path, settings, **WORK)
    teacher = load_teacher(tmp_path / "export")
    assert teacher.arch.label_dim == 10
    torch.manual_seed(settings.seed)
    start, end = PreconditionedUNet(teacher.arch).model.map_label, teacher.network.model.map_label
    assert start is not None
    assert end is not None
    assert not torch.allclose(end.weight, start.weight, atol=1e-3)
