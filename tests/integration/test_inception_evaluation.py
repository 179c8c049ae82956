"""Evaluation in the features of the FID's detector, with random weights, beside torch-fidelity's own way."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EVALUATION, Inputs, evaluate_tiny

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.stages.shared.picture_grids import to_uint8
from hkdpipe.trainer.loop.checkpoint import checkpoints
from hkdpipe.trainer.loop.distributed import World
from hkdpipe.trainer.metrics.frechet_distance import read_statistics, statistics
from hkdpipe.trainer.metrics.inception import load_inception
from hkdpipe.trainer.students.loading import load_model

SETTINGS = dataclasses.replace(
    EVALUATION,
    samples=6,
    teacher_steps=(2,),
    features="inception",
    reference="archive",
    metrics=("fd", "kid", "inception_score", "precision_recall"),
)


def run(inputs: Inputs, weights: Path, out: Path, world: World | None = None, **changes: Any) -> Any:
    evaluate_tiny(inputs, out, dataclasses.replace(SETTINGS, inception=str(weights), **changes), world)
    return read_json(out / "metrics.json") if world is None or world.first else None


@pytest.fixture(scope="module")
def measured(inputs: Inputs, inception_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(inputs, inception_weights, tmp_path_factory.mktemp("measured"))


def test_scores_by_other_means(measured: Any, inputs: Inputs, inception_weights: Path) -> None:
    """From the student's images, made here from the evaluation's noise, and the ends of the archive."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    student = load_model(checkpoints(inputs.training / "checkpoints")[-1])
    noise = torch.from_numpy(rng.unit_noise(0, "evaluation", range(6), (1, 8, 8)))
    with open_archive(inputs.archive()) as archive:
        real = torch.from_numpy(to_uint8(archive.read(range(20), [3])[:, 0].astype(np.float32)))
    with torch.inference_mode():
        made = torch.from_numpy(to_uint8(student.sample(noise).numpy()))
        inception = load_inception(inception_weights, torch.device("cpu"))
        features = [inception(images)[0] for images in (made, real)]
    # With fewer images than features the trace of the root is a nuclear norm.
    one, other = (values.double().numpy() for values in features)
    centred = [values - values.mean(axis=0) for values in (one, other)]
    traces = sum(np.sum(values**2) / (len(values) - 1) for values in centred)
    root = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / np.sqrt((len(one) - 1) * (len(other) - 1))
    fid = np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2) + traces - 2 * root
    prc = prc_features_to_metric(*features, verbose=False)
    row = measured["rows"][0]
    assert (row["name"], row["samples"]) == ("student", 6)
    assert row["fid"] == pytest.approx(fid, rel=1e-3)
    assert (row["precision"], row["recall"]) == (prc["precision"], prc["recall"])
    assert row["kid_subset_size"] == 6
    assert {"kid", "kid_std", "inception_score", "inception_score_std"} <= row.keys()
    assert "confident" not in row


def test_record_says_how_the_numbers_were_got(measured: Any, inception_weights: Path) -> None:
    found = measured["compared"]
    assert measured["metric"] == "fid"
    assert found["detector"]["sha256"] == load_inception(inception_weights, torch.device("cpu")).sha256
    assert "299" in found["detector"]["resize"]
    assert (found["reference"]["source"], found["reference"]["images"]) == ("archive", 20)
    assert (found["noise"]["seed"], found["noise"]["ranges"]) == (0, 1)
    assert measured["settings"]["weights"] == "ema"
    assert {"device", "precision", "finished", "seconds", "software"} <= measured.keys()


def test_helpers_change_nothing(
    measured: Any, inputs: Inputs, inception_weights: Path, tmp_path: Path
) -> None:
    """Two processes' worth of work, in threads, share the parts; the numbers are the same to the bit."""
    errors: list[BaseException] = []

    def help_out() -> None:
        try:
            run(inputs, inception_weights, tmp_path, World(rank=1, size=2))
        except BaseException as error:
            errors.append(error)

    helper = threading.Thread(target=help_out)
    helper.start()
    found = run(inputs, inception_weights, tmp_path, World(rank=0, size=2))
    helper.join()
    assert not errors
    assert found["rows"] == measured["rows"]
    assert not list((tmp_path / "rows").glob("*-parts-*"))


def test_statistics_files_as_a_reference(
    measured: Any, inputs: Inputs, inception_weights: Path, tmp_path: Path
) -> None:
    with open_archive(inputs.archive()) as archive:
        real = torch.from_numpy(to_uint8(archive.read(range(20), [3])[:, 0].astype(np.float32)))
    with torch.inference_mode():
        features = load_inception(inception_weights, torch.device("cpu"))(real)[0]
    of_real = statistics([features.numpy()])
    np.savez(tmp_path / "reference.npz", mu=of_real.mean, sigma=of_real.covariance)
    assert read_statistics(tmp_path / "reference.npz").mean.shape == (2048,)
    changes: dict[str, Any] = {"reference": str(tmp_path / "reference.npz"), "teacher_steps": ()}
    found = run(inputs, inception_weights, tmp_path / "out", metrics=("fd",), **changes)
    assert [row["name"] for row in found["rows"]] == ["student"]
    assert found["rows"][0]["fid"] == pytest.approx(measured["rows"][0]["fid"], rel=1e-3)
    with pytest.raises(UsageError, match='holds statistics alone; accepted with it: "fd"'):
        run(inputs, inception_weights, tmp_path / "kid", metrics=("kid",), **changes)
