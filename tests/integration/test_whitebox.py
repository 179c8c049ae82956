"""The white-box commands on a tiny trained student."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Called, succeeded
from numpy.typing import NDArray
from PIL import Image
from tiny import TRAINING, Inputs, evaluate_tiny, train_tiny
from torch import Tensor

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground.rng import unit_noise
from hkdpipe.stages.shared.picture_grids import CAPTION, GAP, SIDE, to_uint8
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.students.loading import load_model


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
    return {section["title"]: section for section in analysis["sections"]}


def table(folder: Path, section: Any) -> list[list[str]]:
    """The rows of a section's table, without the header."""
    with (folder / section["tables"][0]["file"]).open(newline="") as file:
        return list(csv.reader(file))[1:]


def test_analysis_of_a_student(inputs: Inputs, tmp_path: Path, called: Called) -> None:
    out = tmp_path / "analysis"
    ran = succeeded(called("analyze", "--model", str(newest(inputs)), "--out", str(out), "--count", "3"))
    found = sections(out)
    assert list(found) == [
        "Spectrum",
        "Spectral masking",
        "Bands and spatial frequencies",
        "Cumulative effect",
    ]
    written = {path.name for path in out.iterdir()}
    assert written == {line.split("/")[-1] for line in ran.out.splitlines() if line.startswith("wrote ")}
    rows = table(out, found["Spectral masking"])
    assert [row[:2] for row in rows] == [
        [level, band] for level in ("all", "8", "4") for band in ("smallest", "middle", "largest")
    ]
    for start in (0, 3, 6):
        assert sum(float(row[2]) for row in rows[start : start + 3]) == pytest.approx(1, abs=1e-3)
    assert "hkdpipe interpolate --model" in ran.out


def test_analysis_of_classes_and_of_bands_asked_for(
    conditional: Inputs, tmp_path: Path, called: Called
) -> None:
    out = tmp_path / "analysis"
    given = ("--model", str(newest(conditional)), "--count", "2", "--band", "0:0.1", "--band", "largest")
    succeeded(called("analyze", *given, "--out", str(out)))
    rows = table(out, sections(out)["Classes"])
    assert [(row[0], row[2]) for row in rows] == [
        (str(number), band) for number in range(10) for band in ("0:0.1", "largest")
    ]
    assert len({row[3] for row in rows}) > 10, "the classes have no effect"


def test_a_runs_analysis_stands_in_its_report(inputs: Inputs, tmp_path: Path, called: Called) -> None:
    run = tmp_path / "run"
    evaluate_tiny(inputs, run / "evaluation")
    (run / "evaluation" / "export").rename(run / "export")
    report = run / "evaluation" / "report.html"
    assert "Spectral masking" not in report.read_text()
    ran = succeeded(called("analyze", "--run-dir", str(run), "--count", "2"))
    assert "Spectral masking" in report.read_text()
    assert f"wrote {report}" in ran.out
    sections(run / "evaluation" / "analysis")


def cell(folder: Path, name: str, row: int, column: int) -> NDArray[np.uint8]:
    """An 8 x 8 image of a strip."""
    with Image.open(folder / name) as picture:
        pixels = np.asarray(picture.convert("L"))
    size = 8 * (SIDE // 8)
    top = 2 * CAPTION + GAP + row * (size + 2 * GAP + CAPTION)
    left = GAP + column * (size + GAP)
    return pixels[top : top + size, left : left + size][:: SIDE // 8, :: SIDE // 8]


def same(found: NDArray[np.uint8], expected: Tensor) -> bool:
    """To the one byte that rounding may decide."""
    difference = found.astype(int) - to_uint8(expected.numpy())[0]
    return bool(np.abs(difference).max() <= 1)


def at_work(inputs: Inputs, folder: Path) -> HKD:
    """A student whose operators are at work, exported to `folder`."""
    model = load_model(newest(inputs))
    torch.manual_seed(0)
    for parameter in model.koopman.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.5)
    model.save(folder, {})
    return model


def test_trajectories_as_a_student_sees_them(inputs: Inputs, tmp_path: Path, called: Called) -> None:
    """States 80, between, 0.002 and 0; evolved all of the way, the start gives what is seen from it."""
    model = at_work(inputs, tmp_path / "model")
    given = ("--model", str(tmp_path / "model"), "--archive", str(inputs.archive()), "--index", "11")
    ran = succeeded(called("trajectory", *given, "--out", str(tmp_path / "out")))
    with open_archive(inputs.archive()) as archive:
        x = torch.from_numpy(archive.read([11], range(4))[0].astype(np.float32))
        sigmas = torch.from_numpy(archive.sigmas).float()
    seen = model.predict(x[:3], sigmas[:3])
    start = model.encode(x[:1], sigmas[:1])
    out = tmp_path / "out"
    for column in range(3):
        assert same(cell(out, "trajectory.png", 1, column), seen[column])
        partly = model.decode(model.evolve(start, sigmas[:1], sigmas[column : column + 1]))
        assert same(cell(out, "trajectory.png", 2, column), partly[0])
    assert same(cell(out, "trajectory.png", 2, 2), seen[0])
    assert not same(cell(out, "trajectory.png", 2, 0), seen[0]), "the evolution does nothing"
    assert same(cell(out, "trajectory.png", 0, 0), x[0] / 80)
    for row in range(3):
        assert same(cell(out, "trajectory.png", row, 3), x[3])
    assert "outside of what the decoder was trained on" in ran.out
    for name in ("seen.gif", "seen.webp", "evolved.gif", "evolved.webp"):
        with Image.open(out / name) as moving:
            assert getattr(moving, "n_frames", 1) == 4


def test_pictures_between_two(inputs: Inputs, tmp_path: Path, called: Called) -> None:
    """Both ways begin and end at the images that `sample` makes of these numbers."""
    model = at_work(inputs, tmp_path / "model")
    out = tmp_path / "out"
    given = ("--model", str(tmp_path / "model"), "--seed", "5", "--between", "1", "6", "--steps", "3")
    succeeded(called("interpolate", *given, "--out", str(out)))
    noise = torch.from_numpy(unit_noise(5, "sampling", [1, 6], (1, 8, 8))).float()
    ends = model.sample(noise)
    for row in range(2):
        assert same(cell(out, "interpolation.png", row, 0), ends[0])
        assert same(cell(out, "interpolation.png", row, 2), ends[1])
    one, other = noise
    cosine = (one * other).sum() / (one.norm() * other.norm())
    middle = (one + other) / (2 * (1 + cosine)).sqrt()
    assert same(cell(out, "interpolation.png", 0, 1), model.sample(middle[None])[0])
    mean = [tensor.mean(dim=0, keepdim=True) for tensor in model.observe(noise * 80, torch.full((2,), 80.0))]
    assert same(cell(out, "interpolation.png", 1, 1), model.decode(mean)[0])


def test_pictures_between_states_of_two_trajectories(
    conditional: Inputs, tmp_path: Path, called: Called
) -> None:
    """At the stored state nearest to the time asked for, between the trajectories' classes, too."""
    model = at_work(conditional, tmp_path / "model")
    out = tmp_path / "out"
    given = f"--archive {conditional.archive()} --between 3 0 --time 0.004 --steps 2".split()
    succeeded(called("interpolate", "--model", str(tmp_path / "model"), *given, "--out", str(out)))
    with open_archive(conditional.archive()) as archive:
        states = torch.from_numpy(archive.read([3, 0], [0, 2]).astype(np.float32))
        labels = one_hot(archive.plan.labels([3, 0]), 10)
    for column in range(2):
        own = None if labels is None else labels[column : column + 1]
        sampled = model.predict(states[column, :1], torch.tensor([80.0]), own)
        seen = model.predict(states[column, 1:], torch.tensor([0.002]), own)
        assert same(cell(out, "interpolation.png", 0, column), sampled[0])
        assert same(cell(out, "interpolation.png", 1, column), seen[0])
    assert not same(cell(out, "interpolation.png", 1, 0), seen[0])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("analyze --band 0.5:0.2", "band: got 0.5:0.2; accepted: quantiles from 0 to 1, the lower one first"),
        ("analyze --band 0.5:0.50001", "band: got 0.5:0.50001; accepted at level 8: at least 0.00098 wide"),
        ("trajectory --archive ARCHIVE --index 20", "--index: got 20; accepted: trajectories from 0 to 19"),
        ("trajectory", "--archive: missing; give it, or --run-dir"),
        ("interpolate --between 3 3", "--between: got 3 3; accepted: two different numbers"),
        (
            "interpolate --time 1",
            "--time: accepted with --archive only, whose trajectories have states between",
        ),
        (
            "interpolate --archive ARCHIVE --time 81",
            "--time: got 81; accepted: noise levels from 0.002 to 80",
        ),
        (
            "interpolate --archive ARCHIVE --between 0 20",
            "--between: got 20; accepted: trajectories from 0 to 19",
        ),
        ("trajectory --archive CLASSES", "MODEL: knows 0 classes, CLASSES 10"),
    ],
)
def test_wrong_input_gets_one_clear_line(
    inputs: Inputs, conditional: Inputs, tmp_path: Path, called: Called, command: str, message: str
) -> None:
    places = {"ARCHIVE": inputs.archive(), "CLASSES": conditional.archive(), "MODEL": newest(inputs)}
    for name, path in places.items():
        command, message = (text.replace(name, str(path)) for text in (command, message))
    out = tmp_path / "out"
    ran = called(*command.split(), "--model", str(newest(inputs)), "--out", str(out))
    assert (ran.code, ran.errors) == (2, [message])
    assert not out.exists()


def test_what_has_no_spectrum_is_refused(inputs: Inputs, tmp_path: Path, called: Called) -> None:
    train_tiny(inputs, tmp_path / "kd", training=replace(TRAINING, method="kd", budget=4, checkpoint_every=4))
    model = max((tmp_path / "kd" / "checkpoints").glob("step-*"))
    for command in ("analyze", "interpolate", f"trajectory --archive {inputs.archive()}"):
        ran = called(*command.split(), "--model", str(model), "--out", str(tmp_path / "out"))
        assert ran.code == 2
        assert ran.errors == [f"{model}: of method 'kd', which has no operators; accepted: 'hkd'"]
    assert not (tmp_path / "out").exists()


def test_the_notebook_runs_and_was_executed(inputs: Inputs) -> None:
    notebook = json.loads((Path(__file__).parents[2] / "docs" / "whitebox.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, each in enumerate(cells):
        assert each["execution_count"] == number + 1
        assert all(output["output_type"] != "error" for output in each["outputs"])
        source = "".join(line for line in each["source"] if not line.startswith("%"))
        exec(source.replace('"../runs/digits/export"', repr(str(newest(inputs)))), names)
    assert len(cells) == 5
    assert names["completions"].shape == (3, 8, 1, 8, 8)
