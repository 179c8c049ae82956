"""`hkdpipe run` from nothing to an export, and what the same command does afterwards."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Called, hkdpipe, started, succeeded
from PIL import Image

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.trainer.students.loading import load_model

TINY = [
    f"--set={setting}"
    for setting in (
        "generation.count=24",
        "generation.steps=3",
        "generation.shard_size=8",
        "generation.batch_size=8",
        "training.budget=64",
        "training.batch_size=8",
        "training.validation=4",
        "training.checkpoint_every=32",
        "evaluation.samples=16",
        "evaluation.batch_size=8",
        "evaluation.teacher_steps=[3]",
    )
]
RUN = ["run", "--preset", "digits", "--run-dir", "run", *TINY]
PICTURES = ("evaluation/samples.png", "evaluation/strip.png")
FILES = {
    "config.toml",
    "run.json",
    "trajectories/plan.json",
    "trajectories/manifest.json",
    "trajectories/zarr.json",
    "trajectories/states/zarr.json",
    *(f"trajectories/records/{k:06d}.json" for k in range(3)),
    *(f"trajectories/states/c/{k}/0/0/0/0" for k in range(3)),
    "training/metrics.csv",
    "training/validation.csv",
    *(
        f"training/checkpoints/step-{step:08d}/{name}"
        for step in (4, 8)
        for name in ("weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json")
    ),
    "evaluation/metrics.json",
    "evaluation/report.html",
    *(f"evaluation/{name}.csv" for name in ("metrics", "match", "speed")),
    *(f"evaluation/rows/{name}" for name in ("student-1.json", "teacher-5.json")),
    *(f"evaluation/rows/reference/{number:06d}.npz" for number in range(2)),
    *PICTURES,
    "export/README.md",
    "export/config.json",
    "export/model.safetensors",
    "export/model.pt2",
}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `run` is complete."""
    folder = tmp_path_factory.mktemp("whole")
    ran = succeeded(hkdpipe(folder, *RUN))
    assert "Next:\n  hkdpipe sample --model run/export" in ran.out
    return folder


@pytest.fixture
def copy(complete: Path, folder: Path) -> Path:
    """The run directory for a test of its own, in the working folder."""
    shutil.copytree(complete / "run", folder / "run")
    return folder / "run"


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of all files."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_files_of_a_run(complete: Path) -> None:
    run = complete / "run"
    assert {re.sub(r"reference-[0-9a-f]{16}", "reference", name) for name in files(run)} == FILES
    for name in PICTURES:
        with Image.open(run / name) as picture:
            assert picture.format == "PNG"
            low, high = np.asarray(picture).min(), np.asarray(picture).max()
        assert high - low > 100
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    assert [(row["name"], row["nfe"]) for row in metrics["rows"]] == [
        ("student", 1),
        ("teacher", 5),
        ("two halves of the reference", 0),
    ]
    assert [float(row["fd_digits"]) for row in table(run / "evaluation/metrics.csv")] == [
        row["fd_digits"] for row in metrics["rows"]
    ]
    assert [row["state"] for row in table(run / "evaluation/match.csv")] == ["0", "1", "2"]
    assert [row["name"] for row in table(run / "evaluation/speed.csv")] == ["student", "teacher"]
    assert [row["seen"] for row in table(run / "training/metrics.csv")] == ["32", "64"]
    record = json.loads((run / "run.json").read_text())
    assert {name: entry["state"] for name, entry in record["stages"].items()} == {
        "generation": "complete",
        "training": "complete",
        "evaluation": "complete",
    }


def test_the_export_is_the_average_of_the_last_checkpoint(complete: Path) -> None:
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    last = complete / "run/training/checkpoints/step-00000008"
    with torch.inference_mode():
        exported = load_model(complete / "run/export").sample(noise)
        assert torch.equal(exported, load_model(last, weights="ema").sample(noise))
        assert not torch.equal(exported, load_model(last, weights="raw").sample(noise))


def test_sampling_the_export(copy: Path, called: Called) -> None:
    ran = called("sample", "--model", "run/export", "--count", "5", "--out", "samples", "--json")
    assert ran.code == 0, ran.err
    images = np.load("samples/samples.npz")["images"]
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    assert json.loads(ran.out.splitlines()[-1])["count"] == 5
    with Image.open("samples/samples.png") as picture:
        assert picture.format == "PNG"


def test_again_there_is_nothing_to_do(copy: Path) -> None:
    before = files(copy)
    ran = succeeded(hkdpipe(copy.parent, *RUN))
    assert ran.out.startswith("nothing to do: run is complete\n")
    after = files(copy)
    # run.json notes when the command was given; it decides nothing.
    assert after.pop("run.json")
    assert before.pop("run.json")
    assert after == before


def test_status(copy: Path, called: Called) -> None:
    ran = called("status", "--run-dir", "run", "--json")
    status = json.loads(ran.out)
    assert (ran.code, status["complete"]) == (0, True)
    assert {name: (stage["state"], stage["done"]) for name, stage in status["stages"].items()} == {
        "generation": ("complete", 24),
        "training": ("complete", 64),
        "evaluation": ("complete", 3),
    }
    shutil.rmtree("run/export")
    (copy / "trajectories/states/c/1/0/0/0/0").unlink()
    status = json.loads(called("status", "--run-dir", "run", "--json").out)
    assert status["complete"] is False
    assert status["stages"]["evaluation"]["state"] == "partial"
    assert (status["stages"]["generation"]["state"], status["stages"]["generation"]["done"]) == (
        "partial",
        16,
    )


def test_what_decided_the_results_is_kept(copy: Path, called: Called) -> None:
    before = files(copy)
    ran = called(*RUN, "--set", "training.seed=1")
    assert ran.code == 2
    (error,) = ran.errors
    assert error.startswith("training.seed: this run has 0, given 1; ")
    assert files(copy) == before


def test_a_grown_budget_trains_on_and_others_wait(copy: Path, called: Called) -> None:
    longer = [*RUN, "--set", "training.budget=6400"]
    with started(copy.parent, *longer) as running:
        running.wait_for("training: 64/6,400 trajectories")
        before = files(copy / "evaluation")
        other = called("evaluate", "--run-dir", "run")
        assert other.code == 4
        (error,) = other.errors
        assert error.startswith(f"run directory run is in use by process {running.process.pid} on ")
        assert files(copy / "evaluation") == before
        running.wait_until(lambda: "\n128," in (copy / "training/metrics.csv").read_text())
        running.process.send_signal(signal.SIGTERM)
        assert running.end().code == 75
    record = json.loads((copy / "run.json").read_text())
    assert record["stages"]["training"]["state"] == "interrupted"
    (change,) = record["changes"]
    assert (change["key"], change["from"], change["to"]) == ("training.budget", 64, 6400)
    first = table(copy / "training/metrics.csv")[:4]
    assert [row["seen"] for row in first] == ["32", "64", "96", "128"]
    stages = json.loads(called("status", "--run-dir", "run", "--json").out)["stages"]
    assert [stages[name]["state"] for name in ("generation", "training", "evaluation")] == [
        "complete",
        "partial",
        "partial",
    ]


def generated(called: Called, count: int) -> None:
    options = [*TINY, "--set", f"generation.count={count}"]
    ran = called("generate-trajectories", "--preset", "digits", "--run-dir", "run", *options)
    assert ran.code == 0, ran.err


@pytest.fixture
def archive(folder: Path) -> Path:
    return folder / "run/trajectories"


def test_a_grown_count_appends(archive: Path, called: Called) -> None:
    def states() -> Any:
        with open_archive(archive) as opened:
            return opened.read(range(len(opened)), range(4))

    generated(called, 20)
    before, values = files(archive), states()
    generated(called, 36)
    after = files(archive)
    # The third shard, of 4 trajectories, is now one of 8.
    for k in (0, 1):
        name = f"states/c/{k}/0/0/0/0"
        assert after[name] == before[name]
    grown = states()
    assert len(grown) == 36
    np.testing.assert_array_equal(grown[:20], values)
