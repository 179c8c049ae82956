"""Folders as KDM's code writes them, made by hand."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hkdpipe.manifests.archive import contents
from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.pipeline.cli import main
from hkdpipe.stages.generation import kdm_pairs
from hkdpipe.stages.generation.check_archive import verify
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.generation.kdm_pairs import holds_pairs, import_pairs
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent, Summary
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import save_teacher

CPU = torch.device("cpu")
COUNT, CLASSES = 30, 3
SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of their classes."""
    found = {}
    for label_dim in (0, CLASSES):
        torch.manual_seed(0)
        arch = Architecture(4, 1, label_dim=label_dim, model_channels=8, channel_mult=(1,), num_blocks=1)
        found[label_dim] = tmp_path_factory.mktemp("teacher") / "teacher"
        save_teacher(found[label_dim], PreconditionedUNet(arch), {}, torch.float32)
    return found


def pair(i: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Start and end number i, in float64 as they are published."""
    generator = np.random.default_rng(i)
    return 80 * generator.normal(size=SHAPE), generator.uniform(-1, 1, SHAPE)


def write_unconditional(folder: Path, image_first: bool) -> None:
    folder.mkdir()
    for i in range(COUNT):
        start, end = pair(i)
        np.savez_compressed(folder / f"path{i:03d}", np.stack([end, start] if image_first else [start, end]))


def write_conditional(folder: Path, one_hot: bool) -> None:
    folder.mkdir()
    for i in range(COUNT):
        start, end = pair(i)
        label = np.eye(CLASSES, dtype=np.float32)[i % CLASSES] if one_hot else np.array(i % CLASSES)
        np.savez_compressed(folder / f"path{i:03d}", endpoints=np.stack([end, start]), label=label)


def run(source: Path, out: Path, teacher: Path, form: str = "zarr") -> Summary:
    return import_pairs(source, out, form, str(teacher), reporter=Silent(), stop=lambda: False)


def expected(i: int) -> np.ndarray[Any, Any]:
    return np.stack(pair(i)).astype(np.float32)


@pytest.mark.parametrize(("form", "image_first"), [("zarr", False), ("webdataset", True)])
def test_pairs_become_two_states(tmp_path: Path, teachers: Any, form: str, image_first: bool) -> None:
    write_unconditional(tmp_path / "pairs", image_first)
    assert holds_pairs(tmp_path / "pairs")
    summary = run(tmp_path / "pairs", tmp_path / "out", teachers[0], form)
    assert (summary.data["trajectories"], summary.data["missing"]) == (COUNT, 0)
    with open_archive(tmp_path / "out") as archive:
        assert (archive.plan.form, archive.plan.sigmas) == (form, (80.0, 0.0))
        found = archive.read(range(COUNT), [0, 1])
    assert found.tobytes() == np.stack([expected(i) for i in range(COUNT)]).tobytes()
    assert run(tmp_path / "pairs", tmp_path / "out", teachers[0], form).did_nothing
    assert not holds_pairs(tmp_path / "out")


@pytest.mark.parametrize("one_hot", [False, True])
def test_pairs_stand_where_the_archive_has_their_class(tmp_path: Path, teachers: Any, one_hot: bool) -> None:
    write_conditional(tmp_path / "pairs", one_hot)
    summary = run(tmp_path / "pairs", tmp_path / "out", teachers[CLASSES])
    with open_archive(tmp_path / "out") as archive:
        found = archive.read(range(len(archive)), [0, 1])
        labels = archive.plan.labels(range(COUNT)).tolist()  # type: ignore[union-attr]
    waiting = [[i for i in range(COUNT) if i % CLASSES == label] for label in range(CLASSES)]
    for place, states in enumerate(found):
        assert states.tobytes() == expected(waiting[labels[place]].pop(0)).tobytes()
    assert waiting[labels[len(found)]] == []
    left = COUNT - len(found)
    assert 0 < left < COUNT
    assert dict(summary.rows)["not taken"].startswith(f"{left} pairs")  # type: ignore[arg-type]


def rewrite(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


BAD: dict[str, tuple[Any, str]] = {
    "of another shape": (
        lambda p: rewrite(p, a=np.ones((2, 1, 4, 5))),
        r"got arrays a \(2, 1, 4, 5\); accepted: ",
    ),
    "one state": (lambda p: rewrite(p, a=np.ones((1, *SHAPE))), "accepted: one of floats"),
    "two paths": (
        lambda p: rewrite(p, a=np.ones((2, *SHAPE)), b=np.ones((2, *SHAPE))),
        "accepted: one of floats",
    ),
    "not finite": (lambda p: rewrite(p, a=np.full((2, *SHAPE), np.nan)), "a state is not finite"),
    "unit noise": (
        lambda p: rewrite(p, a=np.stack(pair(3)) / 80),
        "magnitude .* an image and its noise at 80",
    ),
    "noise twice": (lambda p: rewrite(p, a=np.full((2, *SHAPE), 80.0)), "magnitude 80 and 80; accepted"),
    "pickled": (
        lambda p: rewrite(p, a=np.array([{}, None], dtype=object)),
        "not an .npz of arrays: .*allow_pickle",
    ),
    "torn": (lambda p: p.write_bytes(p.read_bytes()[:-30]), "not an .npz of arrays"),
    "empty": (lambda p: p.write_bytes(b""), "not an .npz of arrays"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_what_is_no_pair_is_named(tmp_path: Path, teachers: Any, spoil: Any, message: str) -> None:
    write_unconditional(tmp_path / "pairs", False)
    spoil(tmp_path / "pairs" / "path003.npz")
    with pytest.raises(InputError, match=rf"path003\.npz: .*{message}"):
        run(tmp_path / "pairs", tmp_path / "out", teachers[0])


@pytest.mark.parametrize("label", [None, 3, -1, 0.5, [0, 1, 1], [1, 0]])
def test_what_is_no_class_is_named(tmp_path: Path, teachers: Any, label: Any) -> None:
    write_conditional(tmp_path / "pairs", True)
    arrays = {} if label is None else {"label": np.array(label)}
    np.savez(tmp_path / "pairs" / "path003.npz", endpoints=np.stack(pair(3)), **arrays)
    with pytest.raises(InputError, match=r"path003\.npz: label: got .*; accepted: a class from 0 to 2"):
        run(tmp_path / "pairs", tmp_path / "out", teachers[CLASSES])


def test_pairs_may_follow_but_not_come_in_between(
    tmp_path: Path, teachers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kdm_pairs, "_plan", small_shards(kdm_pairs._plan))
    write_unconditional(tmp_path / "pairs", False)
    run(tmp_path / "pairs", tmp_path / "out", teachers[0])
    first = tmp_path / "pairs" / "path000.npz"
    shutil.copy(first, tmp_path / "pairs" / "path0005.npz")
    with pytest.raises(UsageError, match=r"shard \d holds other pairs than .* has in its place now"):
        run(tmp_path / "pairs", tmp_path / "out", teachers[0])
    (tmp_path / "pairs" / "path0005.npz").rename(tmp_path / "pairs" / "path999.npz")
    run(tmp_path / "pairs", tmp_path / "out", teachers[0])
    with open_archive(tmp_path / "out") as archive:
        assert len(archive) == COUNT + 1
        assert np.array_equal(archive.read([COUNT], [0, 1])[0], archive.read([0], [0, 1])[0])


def small_shards(make: Any) -> Any:
    """So that there are several, all of them full."""
    return lambda *arguments: replace(make(*arguments), shard_size=COUNT // 2)


def test_imported_shards_are_never_computed(tmp_path: Path, teachers: Any) -> None:
    """They are checked without the teacher, damaged ones are taken out, and importing puts them back."""
    write_unconditional(tmp_path / "pairs", False)
    out = tmp_path / "out"
    run(tmp_path / "pairs", out, teachers[0])

    def check(repair: bool) -> Summary:
        return verify(
            out, "deep", repair, "no such teacher", device=CPU, reporter=Silent(), stop=lambda: False
        )

    assert check(False).data["state"] == "good"
    path = out / contents.read_manifest(out)[1][0].file
    before = path.read_bytes()
    path.write_bytes(before[:50] + b"x" + before[51:])
    assert check(False).data["shards"] == [0]
    with pytest.raises(InputError, match=r"shards 0 are of imported pairs.*importing them again writes them"):
        check(True)
    assert run(tmp_path / "pairs", out, teachers[0]).data["written"] == 1
    assert path.read_bytes() == before
    assert check(False).data["state"] == "good"
    settings = GenerationSettings(count=COUNT, store_steps=(0, 18), dtype="float32")
    with pytest.raises(UsageError, match="origin: this archive has 'imported', now ''"):
        generate(str(teachers[0]), out, settings, device=CPU, reporter=Silent(), stop=lambda: False)


def test_the_command_takes_a_teacher_for_pairs_alone(
    tmp_path: Path, teachers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_unconditional(tmp_path / "pairs", False)
    pairs, out, teacher = str(tmp_path / "pairs"), str(tmp_path / "out"), str(teachers[0])
    assert main(["convert", pairs, out, "--format", "zarr"]) == 2
    assert "--teacher: needed with a folder of pairs" in capsys.readouterr().err
    assert main(["convert", pairs, out, "--format", "zarr", "--teacher", teacher]) == 0
    assert main(["convert", out, f"{out}-tar", "--format", "webdataset", "--teacher", teacher]) == 2
    assert "--teacher: only for a folder of pairs" in capsys.readouterr().err
