"""Other methods than HKD go through the same commands: training, evaluation, sampling."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Called, succeeded
from tiny import EVALUATION, GENERATION, KDM, OPTIONS, TRAINING, Inputs, settings

from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.students.loading import load_model

OF_KD = ["mse", "perceptual"]
OF_KDM = [*OF_KD, "reconstruction", "latent", "inverse", "modulus", "adversarial", "discriminator"]
TERMS = {"kd": OF_KD, "kdm": OF_KDM}
PREDICTED = {"kd": [0, 1, 2], "kdm": [0]}


def columns(name: str) -> tuple[list[str], list[dict[str, str]]]:
    with Path(f"run/{name}.csv").open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


@pytest.mark.parametrize("method", ["kd", "kdm"])
def test_a_run_of_another_method(method: str, either: Inputs, folder: Path, called: Called) -> None:
    training = dataclasses.replace(TRAINING, method=method, budget=16)
    kdm = dataclasses.replace(KDM, control=True)
    sections = settings(generation=GENERATION, training=training, kdm=kdm, evaluation=EVALUATION)
    run = ["run", "--run-dir", "run", "--set", f"teacher.source={either.teacher}", *sections]
    succeeded(called(*run))

    names, rows = columns("training/metrics")
    assert names[: 2 + len(TERMS[method])] == ["seen", "loss", *TERMS[method]]
    assert names[2 + len(TERMS[method]) :][:2] == ["skipped", "learning_rate"]
    assert [row["seen"] for row in rows] == ["12", "16"]
    assert [int(row["state"]) for row in columns("evaluation/match")[1]] == PREDICTED[method]
    assert columns("evaluation/metrics")[1][0]["name"] == "student"
    assert json.loads(Path("run/export/config.json").read_text())["method"] == method

    model, checkpoint = load_model("run/export"), load_model("run/training/checkpoints/step-00000004")
    assert type(model) is methods()[method].student_class
    noise, labels = torch.randn(2, 1, 8, 8), torch.eye(10)[:2] if either.label_dim else None
    assert torch.equal(model.sample(noise, labels), checkpoint.sample(noise, labels))

    succeeded(called("sample", "--model", "run/export", "--count", "5", "--out", "samples"))
    with np.load("samples/samples.npz") as samples:
        assert samples["images"].shape == (5, 8, 8, 1)
    assert "nothing to do" in succeeded(called(*run)).out


@pytest.mark.parametrize(
    ("method", "key", "code"),
    [("kdm", "kdm.noise=0.5", 2), ("kd", "training.mse_weight=0.5", 2), ("hkd", "koopman.rank=5", 2)],
)
def test_a_training_with_other_options_is_refused(
    inputs: Inputs, method: str, key: str, code: int, folder: Path, called: Called
) -> None:
    training = dataclasses.replace(TRAINING, method=method, budget=4, checkpoint_every=4)
    places = ["--out", "out", "--teacher", str(inputs.teacher), "--archive", str(inputs.archive())]
    train = ["train", *places, *settings(training=training, **vars(OPTIONS[method]))]
    succeeded(called(*train))
    succeeded(called(*train))
    ran = called(*train, "--set", key)
    assert ran.code == code
    assert ran.errors == [
        "out/checkpoints/step-00000001: of a training with other settings; choose another folder"
    ]
