import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import torch

from hkdpipe.manifests.archive import contents, reader, writer
from hkdpipe.manifests.ground.atomic_files import read_json, write_json
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.stages.generation import check_archive as verification
from hkdpipe.stages.generation.check_archive import Depth, verify
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent, Summary
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import save_teacher

CPU = torch.device("cpu")
SETTINGS = GenerationSettings(count=11, shard_size=4, batch_size=3, steps=3, format="zarr")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    arch = Architecture(4, 1, label_dim=3, model_channels=8, channel_mult=(1, 1), num_blocks=1)
    torch.manual_seed(0)
    save_teacher(folder, PreconditionedUNet(arch), {}, torch.float32)
    return folder


KINDS = [("zarr", "states", "none"), ("webdataset", "residual", "none"), ("webdataset", "quantised", "zstd")]


@pytest.fixture(params=KINDS, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path: Path, teacher: Path) -> Path:
    root = tmp_path / "archive"
    form, encoding, codec = request.param
    settings = dataclasses.replace(SETTINGS, format=form, encoding=encoding, codec=codec)
    generate(str(teacher), root, settings, device=CPU, reporter=Silent(), stop=lambda: False)
    return root


def run(root: Path, depth: Depth = "checksums", repair: bool = False, teacher: str | None = None) -> Summary:
    return verify(root, depth, repair, teacher, device=CPU, reporter=Silent(), stop=lambda: False)


def content(root: Path) -> dict[str, bytes]:
    """All that readers and other tools see."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def shard(root: Path, k: int) -> Path:
    return root / contents.read_manifest(root)[1][k].file


def flip(path: Path, place: int = 40) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 4
    path.write_bytes(data)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda root: flip(shard(root, 1)),
    "a truncated shard": lambda root: shard(root, 0).write_bytes(shard(root, 0).read_bytes()[:-1]),
    "a lost shard": lambda root: shard(root, 2).unlink(),
    "swapped shards": lambda root: swap(shard(root, 0), shard(root, 1)),
    "a lost record": lambda root: contents.record_path(root, 1).unlink(),
    "a torn record": lambda root: contents.record_path(root, 1).write_text("{"),
    "swapped records": lambda root: swap(contents.record_path(root, 0), contents.record_path(root, 1)),
    "a lost plan": lambda root: (root / "plan.json").unlink(),
    "an edited plan": lambda root: edit(root / "plan.json", lambda plan: plan.update(count=12)),
    "another plan": lambda root: edit(root / "plan.json", lambda plan: plan.update(seed=1)),
    "a torn manifest": lambda root: (root / "manifest.json").write_text('{"plan"'),
    "an edited manifest": lambda root: edit(
        root / "manifest.json", lambda values: values["shards"][0].update(sha256="0" * 64)
    ),
    "a manifest of fewer trajectories": lambda root: edit(
        root / "manifest.json", lambda values: values["plan"].update(count=10)
    ),
}


def test_the_compressor_is_part_of_how_a_shard_was_made(made: Path) -> None:
    plan, (record, *_) = contents.read_manifest(made)
    expected = None if plan.codec == "none" else numcodecs.__version__
    assert record.fingerprint.get("numcodecs") == expected


def test_a_whole_archive_is_good_at_every_depth(made: Path) -> None:
    before = content(made)
    for depth in ("fast", "checksums", "deep"):
        assert run(made, depth).data["state"] == "good"
    assert content(made) == before


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_and_repaired_to_the_same_bytes(made: Path, damage: Callable[[Path], object]) -> None:
    before = content(made)
    damage(made)
    damaged = content(made)
    found = run(made)
    assert found.data["state"] == "damaged"
    assert found.data["faults"]
    assert content(made) == damaged
    repaired = run(made, repair=True)
    assert (repaired.data["state"], repaired.data["notes"]) == ("repaired", [])
    assert content(made) == before
    assert run(made).data["state"] == "good"


def test_metadata_and_labels_of_zarr_are_checked(tmp_path: Path, teacher: Path) -> None:
    root = tmp_path / "archive"
    generate(str(teacher), root, SETTINGS, device=CPU, reporter=Silent(), stop=lambda: False)
    before = content(root)
    for name in ("zarr.json", "states/zarr.json", "labels/zarr.json", "labels/c/1"):
        flip(root / name)
        assert run(root).data["state"] == "damaged", name
        assert run(root, repair=True).data["state"] == "repaired"
        assert content(root) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_types_of_states_are_checked_as_deeply(tmp_path: Path, teacher: Path, dtype: str) -> None:
    root = tmp_path / "archive"
    settings = dataclasses.replace(SETTINGS, dtype=dtype)
    generate(str(teacher), root, settings, device=CPU, reporter=Silent(), stop=lambda: False)
    assert run(root, "deep").data["state"] == "good"
    with reader.open_archive(root) as opened:
        states = opened.read(range(11), range(4))
    assert states.dtype == np.float32
    assert np.abs(states[:, 0] / 80).max() > 1


def test_fast_looks_at_sizes_alone(made: Path) -> None:
    flip(shard(made, 1))
    assert run(made, "fast").data["state"] == "good"
    shard(made, 0).unlink()
    assert run(made, "fast").data["shards"] == [0]


def remade(root: Path, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """An archive that fits its checksums, and whose second shard was written wrong."""
    plan, records = contents.read_manifest(root)
    states = reader.read_shard(root, plan, records[1], range(4, 8))
    change(states)
    writer.write_shard(root, plan, 1, states, records[1].fingerprint)
    writer.finish(root, plan)


def exchange(states: np.ndarray[Any, Any]) -> None:
    states[[0, 1]] = states[[1, 0]]


def shift(states: np.ndarray[Any, Any]) -> None:
    states[:, 1:] += states.dtype.type(0.25 if states.dtype.kind == "f" else 256)  # that many quanta


@pytest.mark.parametrize(
    ("change", "message"),
    [(exchange, "trajectory 4 does not start at its noise"), (shift, "are not what the teacher makes")],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_deep_compares_with_noise_and_teacher(
    made: Path, change: Any, message: str, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the shard was made on another kind of machine, so that bytes cannot be compared."""
    before = content(made)
    remade(made, change)
    assert run(made).data["state"] == "good"
    # Look at the second shard, wherever the dice fall.
    monkeypatch.setattr(verification.secrets, "choice", lambda shards: 1 if 1 in shards else shards[0])
    if elsewhere:
        here = verification.fingerprint
        monkeypatch.setattr(
            verification, "fingerprint", lambda plan, device: {**here(plan, device), "device": "another"}
        )
    found = run(made, "deep")
    assert found.data["shards"] == [1]
    assert message in found.data["faults"][0]
    assert run(made, "deep", repair=True).data["state"] == "repaired"
    assert content(made) == before


def test_rounding_of_another_machine_is_accepted(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def round_otherwise(states: np.ndarray[Any, Any]) -> None:
        states[:, 1:] = np.nextafter(states[:, 1:], np.float16(np.inf))

    remade(made, round_otherwise)
    monkeypatch.setattr(verification.secrets, "choice", lambda shards: 1)
    assert run(made, "deep").data["state"] == "damaged"
    here = verification.fingerprint
    monkeypatch.setattr(
        verification, "fingerprint", lambda plan, device: {**here(plan, device), "device": "another"}
    )
    assert run(made, "deep").data["state"] == "good"


def test_states_of_bfloat16_may_differ_by_one_of_its_numbers(made: Path) -> None:
    """Far from zero these are further apart than the tolerance."""
    plan = dataclasses.replace(contents.planned(made), dtype="bfloat16", encoding="states", codec="none")
    states = np.linspace(-300, 300, 64 * 4).reshape(-1, 4, 1, 4, 4).astype(np.float32)
    bits = states.view(np.uint32) >> 16
    one, next_one = ((bits + step).astype(np.uint16) for step in (0, 1))
    assert verification._close(one, next_one, plan)
    assert not verification._close(one, (bits + 3).astype(np.uint16), plan)


def test_a_teacher_of_another_architecture_with_the_same_weights_is_refused(
    made: Path, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["architecture"]["preconditioning"] = "vp"
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    before = content(made)
    with pytest.raises(UsageError, match=r"has the weights of the teacher .* but another architecture"):
        run(made, "deep", repair=True, teacher=str(tmp_path / "other"))
    assert content(made) == before


def test_manifest_is_put_together_when_all_shards_are_there(made: Path) -> None:
    before = content(made)
    (made / "manifest.json").unlink()
    assert run(made).data["state"] == "good"
    assert content(made) == before


def test_unfinished_archive_is_finished(made: Path) -> None:
    before = content(made)
    shard(made, 1).unlink()
    contents.record_path(made, 1).unlink()
    (made / "manifest.json").unlink()
    found = run(made)
    assert (found.data["state"], found.data["shards"]) == ("damaged", [1])
    assert run(made, repair=True).data["state"] == "repaired"
    assert content(made) == before


def test_other_bytes_of_a_repaired_shard_are_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, records = contents.read_manifest(made)
    write_json(
        contents.record_path(made, 1),
        {**records[1].to_json(), "sha256": "0" * 64, "fingerprint": {"device": "another"}},
    )
    writer.finish(made, plan)
    notes = run(made, repair=True).data["notes"]
    assert notes == ["shard 1: other bytes than before, on another kind of machine and software"]


def test_nothing_says_what_the_archive_was_to_hold(made: Path) -> None:
    (made / "manifest.json").unlink()
    edit(made / "plan.json", lambda plan: plan.update(seed=1))
    with pytest.raises(InputError, match="not the plan that 3 of the records were made under"):
        run(made, repair=True)
    (made / "plan.json").unlink()
    with pytest.raises(InputError, match=r"plan\.json: missing; nothing says what the archive was to hold"):
        run(made)


def test_another_teacher_is_refused(made: Path) -> None:
    shard(made, 1).unlink()
    with pytest.raises(UsageError, match="teacher: digits is not the teacher that"):
        run(made, repair=True, teacher="digits")
    assert read_json(made / "manifest.json")
