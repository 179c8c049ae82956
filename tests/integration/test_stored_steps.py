"""All three stages on an archive that keeps some states of an Euler sampler."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import EVALUATION, GENERATION, KOOPMAN, OPTIONS, TRAINING, WORK, Inputs

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.stages.evaluation.evaluate import evaluate
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.training.train import train
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers.sampler import sigma_schedule


@pytest.mark.parametrize("store_steps", [(0, 5, 6), (0, 2, 6), (0, 6)])
def test_training_and_evaluation_follow_the_archive(
    store_steps: tuple[int, ...], inputs: Inputs, tmp_path: Path
) -> None:
    """The evolution ends at the schedule's sigma_min even where no state at it is stored. The licence given
    for the teacher reaches the export."""
    archive, training = tmp_path / "archive", tmp_path / "training"
    generation = replace(GENERATION, steps=6, solver="euler", sigma_min=0.01, store_steps=store_steps)
    generate(str(inputs.teacher), archive, generation, "CC0", **WORK)
    with open_archive(archive) as opened:
        assert opened.sigmas.tolist() == sigma_schedule(6, 0.01)[list(store_steps)].tolist()
    options = OPTIONS["hkd"]
    if len(store_steps) == 2:
        options = HkdOptions(HkdSettings(latent_weight=0.0), replace(KOOPMAN, learns_from="all"))
    train(str(inputs.teacher), archive, training, TRAINING, options, world=World(), **WORK)
    out, export = tmp_path / "evaluation", tmp_path / "export"
    evaluate(
        str(inputs.teacher), archive, training / "checkpoints", out, export, EVALUATION, world=World(), **WORK
    )
    assert load_model(export).sigma_min == 0.01
    assert read_json(export / "config.json")["about"]["teacher"]["licence"] == "CC0"
    assert "Licence of the teacher: CC0." in (export / "README.md").read_text()
    with (out / "match.csv").open() as file:
        assert [float(row["sigma"]) for row in csv.DictReader(file)] == list(opened.sigmas[:-1])
    with (out / "metrics.csv").open() as file:
        # Of the teacher with three and two steps of Euler's method.
        assert [row["nfe"] for row in csv.DictReader(file)] == ["1", "3", "2", "0"]
