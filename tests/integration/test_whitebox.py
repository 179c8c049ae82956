"""The white-box commands on a tiny trained student."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import called, succeeded
from PIL import Image
from tiny import TRAINING, Inputs, train_tiny


def newest(inputs: Inputs) -> Path:
    return max((inputs.training / "checkpoints").glob("step-*"))


def sections(folder: Path) -> dict[str, Any]:
    """The sections of analysis.json by title, once everything that they name was seen to be there."""
    analysis = json.loads((folder / "analysis.json").read_text())
    for section in analysis["sections"]:
        assert section["text"]
        for picture in section["pictures"]:
            assert picture["alt"]
            with Image.open(folder / picture["file"]) as read:
                assert read.width > 100
        for table in section["tables"]:
            with (folder / table["file"]).open(newline="") as file:
                assert list(csv.reader(file)) == [table["header"], *table["rows"]]
    return {section["title"]: section for section in analysis["sections"]}


def test_analysis_of_a_student(inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "analysis"
    ran = succeeded(
        called(capfd, "analyze", "--model", str(newest(inputs)), "--out", str(out), "--count", "3")
    )
    found = sections(out)
    assert list(found) == [
        "Spectrum",
        "Spectral masking",
        "Bands and spatial frequencies",
        "Cumulative effect",
    ]
    written = {path.name for path in out.iterdir()}
    assert written == {line.split("/")[-1] for line in ran.out.splitlines() if line.startswith("wrote ")}
    rows = found["Spectral masking"]["tables"][0]["rows"]
    assert [row[:2] for row in rows] == [
        [level, band] for level in ("all", "8", "4") for band in ("smallest", "middle", "largest")
    ]
    for start in (0, 3, 6):
        assert sum(float(row[2]) for row in rows[start : start + 3]) == pytest.approx(1, abs=1e-3)
    assert "hkdpipe sample --model" in ran.out


def test_analysis_of_classes_and_of_bands_asked_for(
    conditional: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "analysis"
    given = ("--model", str(newest(conditional)), "--count", "2", "--band", "0:0.1", "--band", "largest")
    succeeded(called(capfd, "analyze", *given, "--out", str(out)))
    rows = sections(out)["Classes"]["tables"][0]["rows"]
    assert [(row[0], row[2]) for row in rows] == [
        (str(number), band) for number in range(10) for band in ("0:0.1", "largest")
    ]
    assert len({row[3] for row in rows}) > 10, "the classes have no effect"


def test_what_has_no_spectrum_is_refused(
    inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_tiny(inputs, tmp_path / "kd", training=replace(TRAINING, method="kd", budget=4, checkpoint_every=4))
    model = max((tmp_path / "kd" / "checkpoints").glob("step-*"))
    for command in ("analyze",):
        ran = called(capfd, *command.split(), "--model", str(model), "--out", str(tmp_path / "out"))
        assert (ran.code, ran.errors) == (
            2,
            [f"{model}: of method 'kd', which has no operators; accepted: 'hkd'"],
        )
    assert not (tmp_path / "out").exists()
