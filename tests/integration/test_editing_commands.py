"""hkdpipe inpaint, colorize and edit, on models so small and untrained that each answers at once."""

import csv
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Called, Ran, succeeded
from numpy.typing import NDArray
from PIL import Image
from tiny import ARCHITECTURE, make_teacher

from hkdpipe.manifests.ground.rng import unit_noise
from hkdpipe.stages.shared.picture_grids import to_uint8
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.images.image_sets import load_images
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.kd.kd import KD
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.edm import PreconditionedUNet

Run = Callable[[str], dict[str, Any]]
MODELS: dict[str, tuple[type[Student], dict[str, Any], Any]] = {
    "grey": (HKD, {}, HkdOptions()),
    "colour": (HKD, {"img_channels": 3}, HkdOptions()),
    "classes": (HKD, {"label_dim": 4}, HkdOptions()),
    "idle": (HKD, {}, HkdOptions(koopman=KoopmanSettings(hierarchy="none"))),
    "kd": (KD, {}, None),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, (method, changes, settings) in MODELS.items():
        model = method.from_teacher(PreconditionedUNet(replace(ARCHITECTURE, **changes)), settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save(folder / name, {})
    make_teacher(folder / "teacher", 0)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(folder / "picture.png")
    Image.new("L", (8, 8), 0).save(folder / "black.png")
    Image.new("L", (9, 8), 255).save(folder / "large.png")
    Image.new("RGB", (8, 8), (9, 9, 200)).save(folder / "blue.png")
    return folder


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, called: Called) -> Run:
    """What a command line says with --json, in the folder of the models."""
    monkeypatch.chdir(models)

    def run(line: str) -> dict[str, Any]:
        said = succeeded(called(*shlex.split(line), "--quiet", "--json")).out
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    return run


def images(of: dict[str, Any]) -> NDArray[np.uint8]:
    """(N, C, H, W)."""
    with np.load(of["images"]) as arrays:
        found: NDArray[np.uint8] = arrays["images"].transpose(0, 3, 1, 2)
    return found


def test_inpainting_keeps_the_known_pixels_and_varies_the_others(run: Run, tmp_path: Path) -> None:
    found = images(run(f"inpaint --model grey --image digits --steps 3 --count 2 --out {tmp_path}"))
    digits = to_uint8(load_digits()[0]).repeat(2, axis=0)
    assert found.shape == digits.shape
    assert np.array_equal(found[:, :, :4], digits[:, :, :4])
    assert (found[0::2, :, 4:] != found[1::2, :, 4:]).any(axis=(1, 2, 3)).mean() > 0.99
    assert Image.open(tmp_path / "inpainted.png").width > 4 * 48


def test_a_mask_without_white_gives_the_picture_back(run: Run, tmp_path: Path) -> None:
    said = run(f"inpaint --model grey --image picture.png --mask black.png --count 1 --out {tmp_path}")
    assert np.array_equal(images(said)[0, 0], np.asarray(Image.open("picture.png")))
    assert said["painted"] == 0


def test_a_completion_depends_on_the_seed_its_picture_and_its_number(run: Run, tmp_path: Path) -> None:
    """And not on how many there are: of two pictures that are the same, two and five each."""
    pixels = np.asarray(Image.open("picture.png"))
    np.savez(tmp_path / "twins.npz", images=np.stack([pixels, pixels]))
    base = f"inpaint --model grey --image {tmp_path / 'twins.npz'} --steps 3 --out {tmp_path}"
    few, many = (
        images(run(f"{base} --count {count}")).reshape(2, count, 8, 8).astype(int) for count in (2, 5)
    )
    assert np.abs(few - many[:, :2]).max() <= 1  # the size of a batch changes the rounding
    distinct = few.reshape(4, 64)
    assert (np.abs(distinct[:, None] - distinct).max(axis=2) > 1).sum() == 12
    other = images(run(f"{base} --count 2 --seed 1")).reshape(2, 2, 8, 8).astype(int)
    assert (np.abs(other - few).max(axis=(2, 3)) > 1).all()


def test_a_sample_is_named_by_its_seed_and_number(run: Run, tmp_path: Path) -> None:
    run(f"sample --model grey --count 4 --seed 5 --out {tmp_path / 'samples'}")
    sampled = images({"images": tmp_path / "samples/samples.npz"})
    kept = images(run(f"inpaint --model grey --image 5:3 --mask black.png --count 1 --out {tmp_path}"))
    assert np.abs(kept[0].astype(int) - sampled[3]).max() <= 1
    assert not np.array_equal(kept[0], sampled[2])


def test_colorization_keeps_the_luminance_of_grey_and_coloured_pictures(run: Run, tmp_path: Path) -> None:
    for source, given in (
        ("digits:5", load_digits()[0][5:6].repeat(3, axis=1)),
        ("digits-color:7", load_images("digits-color")[7:8]),
    ):
        said = run(f"colorize --model colour --image {source} --steps 3 --count 4 --out {tmp_path}")
        found = images(said).astype(np.float64)
        weights = [0.299, 0.587, 0.114]
        known = np.einsum("c,nchw->nhw", weights, given * 127.5 + 127.5)
        error = np.abs(np.einsum("c,nchw->nhw", weights, found) - known).max()
        assert error <= 0.5 + 1e-3
        assert said["luminance_error"] == pytest.approx(error, abs=1e-3)
        assert np.abs(found[:, 0] - found[:, 2]).max() > 20
        assert 0 < said["hue_spread"] <= 1


def test_an_edit_of_ratio_0_is_the_sample_and_of_ratio_1_the_reference(run: Run, tmp_path: Path) -> None:
    edits = f"edit --model grey --image 5:1 --reference 5:2 --ratio 0 --ratio 1 --mask all --out {tmp_path}"
    said = run(edits)
    model, noise = load_model("grey"), unit_noise(5, "sampling", [1, 2], (1, 8, 8))
    original, reference = (model.sample(torch.from_numpy(noise[[k]])) for k in (0, 1))
    smallest_0, smallest_1, all_0, all_1 = images(said).astype(int)
    assert np.array_equal(smallest_0, to_uint8(original.numpy())[0])
    assert np.array_equal(all_0, smallest_0)
    assert np.abs(all_1 - to_uint8(reference.numpy())[0]).max() <= 1
    assert np.abs(smallest_1 - all_1).max() > 1
    rows = list(csv.DictReader((tmp_path / "edit.csv").open()))
    assert [(row["band"], float(row["ratio"])) for row in rows] == [
        ("smallest", 0), ("smallest", 1), ("all", 0), ("all", 1)
    ]  # fmt: skip
    assert [{name: str(value) for name, value in row.items()} for row in said["edits"]] == rows
    assert [float(rows[0][name]) for name in ("change_inside", "low_kept", "high_kept")] == [0, 1, 1]
    difference = (original - reference).square().mean().sqrt().item()
    assert float(rows[3]["change_inside"]) == pytest.approx(difference, rel=1e-3)
    assert [float(rows[3][name]) for name in ("low_kept", "high_kept")] == pytest.approx([0, 0], abs=1e-3)
    assert said["time"] == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7)


def test_an_edit_of_pictures_starts_from_their_reconstructions(run: Run, tmp_path: Path) -> None:
    """By the encoder, or by the noise that the teacher's ODE leads to."""
    line = "edit --model grey --image picture.png --reference digits:3 --ratio 0 --no-all-bands --out"
    model = load_model("grey")
    picture = torch.from_numpy(load_images("picture.png"))
    said = run(f"{line} {tmp_path / 'encoded'}")
    expected = model.predict(picture, torch.tensor([model.sigma_min]))
    assert np.array_equal(images(said), to_uint8(expected.numpy()))
    error = (expected - picture).square().mean().sqrt().item()
    assert said["reconstruction_error"]["image"] == pytest.approx(error, rel=1e-4)
    inverted = images(run(f"{line} {tmp_path / 'inverted'} --teacher teacher"))
    assert inverted.shape == (1, 1, 8, 8)
    assert not np.array_equal(inverted, images(said))


def test_a_mask_and_changes_inside_and_outside(run: Run, tmp_path: Path) -> None:
    line = f"edit --model grey --image 0 --reference 1 --ratio 1 --band all --no-all-bands --out {tmp_path}"
    inside, everywhere = (run(f"{line} --mask {mask}")["edits"][0] for mask in ("lower-left", "all"))
    assert inside["change_inside"] > inside["change_outside"] > 0
    assert everywhere["change_outside"] == 0


def test_classes_are_those_of_the_samples_or_asked_for(run: Run, tmp_path: Path) -> None:
    base = f"inpaint --model classes --mask all --steps 3 --count 1 --out {tmp_path} --image"
    one, other = (images(run(f"{base} picture.png --class {number}")) for number in (0, 1))
    assert not np.array_equal(one, other)
    edits = f"edit --model classes --image 3 --reference 4 --ratio 0 --no-all-bands --out {tmp_path}"
    run(f"sample --model classes --count 1 --seed 3 --out {tmp_path / 'samples'}")
    with np.load(tmp_path / "samples/samples.npz") as sampled:
        drawn = sampled["images"].transpose(0, 3, 1, 2)
        label = sampled["labels"][0]
    assert np.array_equal(images(run(edits)), drawn)
    assert np.array_equal(images(run(f"{edits} --class {label}")), drawn)
    assert not np.array_equal(images(run(f"{edits} --class {(label + 1) % 4}")), drawn)


def test_what_was_written_and_what_to_type_next(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    monkeypatch.chdir(models)
    for line, files in (
        ("inpaint --model grey --image 0", ("inpainted.png", "inpainted.npz")),
        ("colorize --model colour --image 0", ("colorized.png", "colorized.npz")),
        ("edit --model grey --image 0 --reference 1", ("edit.png", "edit.csv", "edit.npz")),
    ):
        out = tmp_path / line.split()[0]
        said = succeeded(called(*line.split(), "--out", str(out))).out
        assert sorted(path.name for path in out.iterdir()) == sorted(files)
        assert all(f"wrote {out / name}" in said for name in files)
        name, *again = shlex.split(said.splitlines()[-1].replace("IMAGE", "2"))
        assert name == "hkdpipe"
        succeeded(called(*again))


INPAINT = "inpaint --model grey --image picture.png"
EDIT = "edit --model grey --image 0 --reference 1"


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("inpaint --model kd --image picture.png", 2, "kd: of method 'kd', which .*; accepted: 'hkd'"),
        ("inpaint --model missing --image 0", 3, "missing: no such model; accepted: .*"),
        (f"{INPAINT} --mask large.png", 3, r"--mask large\.png: a picture of 1x8x9 .*; accepted: 1x8x8, .*"),
        ("inpaint --model grey --image large.png", 3, "--image large.png: grey .* of 8x9; accepted: .*"),
        ("inpaint --model grey --image blue.png", 3, "--image blue.png: colour .*; accepted: grey .*"),
        ("inpaint --model colour --image picture.png", 3, "--image picture.png: grey .*; .* colour .*"),
        ("inpaint --model grey --image digits:1797", 3, "digits:1797: no such image; accepted: .*:1796"),
        ("inpaint --model grey --image nowhere", 3, "nowhere: no such image set; accepted: .*"),
        (f"{INPAINT} --lowest 3", 2, "--lowest and --highest: got 3 and 2; accepted: .* from 0.002 to 80.*"),
        (f"{INPAINT} --class 3", 2, "--class: got 3; accepted: none, as the model knows no classes"),
        ("inpaint --model classes --image picture.png", 2, "--class: missing; .* --image picture.png .*"),
        ("inpaint --model classes --image 0 --class 4", 2, "--class: got 4; accepted: 0 to 3"),
        ("colorize --model grey --image picture.png", 2, "--model grey: makes grey images; accepted: .*"),
        ("colorize --model colour --image large.png", 3, "--image large.png: grey .*, or grey.*"),
        (f"{EDIT} --time 81", 2, "--time: got 81; accepted: .* from 0.002 to 80"),
        (f"{EDIT} --time 0", 2, "--time: got 0; accepted: .*"),
        (f"{EDIT} --time nan", 2, "--time: got nan; accepted: .*"),
        (f"{EDIT} --band 0.5:0.5", 2, "band: got 0.5:0.5; accepted: .*"),
        (f"{EDIT} --band 0.5:0.50001", 2, "band: got .*; accepted at level .*"),
        (f"{EDIT} --ratio 1.5", 2, ".*'--ratio'.*1.5.*"),
        (f"{EDIT} --mask large.png", 3, r"--mask large\.png: .*"),
        ("edit --model idle --image 0 --reference 1", 2, "model: it has no operator .*"),
        ("edit --model grey --image 0 --reference 0:0", 2, "--reference: got 0:0, the image itself; .*"),
        ("edit --model grey --image digits --reference 0", 2, "--image digits: holds 1797 .*, as digits:0"),
        ("edit --model grey --image 0 --reference blue.png", 3, "--reference blue.png: colour .*"),
        ("edit --model colour --image 0 --reference 1 --teacher digits", 2, "--teacher digits: .* 3x8x8 .*"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_line(
    line: str,
    code: int,
    error: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    called: Called,
) -> None:
    monkeypatch.chdir(models)
    ran: Ran = called(*shlex.split(line), "--out", str(tmp_path / "out"))
    assert (ran.code, len(ran.errors)) == (code, 1), ran.err
    assert re.fullmatch(rf"{error}( \(see .*\))?", ran.errors[0]), ran.errors
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()
