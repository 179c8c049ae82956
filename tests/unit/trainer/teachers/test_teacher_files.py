import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import load_teacher, save_teacher


@pytest.fixture
def folder(tmp_path: Path, network: PreconditionedUNet) -> Path:
    path = tmp_path / "teacher"
    save_teacher(path, network, {"dataset": "none"}, torch.float32)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        load_teacher(path)
    return str(raised.value)


def test_teacher_is_read_back_bit_for_bit(folder: Path, network: PreconditionedUNet) -> None:
    teacher = load_teacher(folder)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(teacher(x, 0.7), network(x, 0.7))
    assert (teacher.arch, teacher.image_shape, teacher.source) == (network.arch, (1, 8, 8), str(folder))
    assert teacher.about == {"dataset": "none"}
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert not teacher.network.training


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path, network: PreconditionedUNet) -> None:
    save_teacher(tmp_path / "half", network, {}, torch.float16)
    loaded = load_teacher(tmp_path / "half").network
    for value, original in zip(loaded.parameters(), network.parameters(), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, original.half().float())


def test_saving_over_a_teacher_replaces_it(folder: Path, network: PreconditionedUNet) -> None:
    save_teacher(folder, network, {"dataset": "other"}, torch.float16)
    assert load_teacher(folder).about == {"dataset": "other"}


def test_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    assert refusal(path).startswith(f"{path}: no such teacher; accepted: 'digits', a folder with config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder) == f"{folder / name}: missing"


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(folder).startswith(f"{path}: not a readable safetensors file (")


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["model.enc.extra"] = tensors.pop("model.map_layer0.bias")


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["model.map_layer0.bias"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "does not fit the network: tensor model.enc.extra is missing or unknown"),
        (reshape, "model.map_layer0.bias has shape (7,), the network needs (64,)"),
    ],
)
def test_weights_of_another_network(
    folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    assert refusal(folder) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 2}, r"model\.safetensors: does not fit the network"),
        ({"model_channels": 32}, r"model\.safetensors: \S+ has shape \(.*\), the network needs \(.*\)"),
        ({"unknown": 1}, "config.json: architecture: .*unexpected keyword argument 'unknown'"),
        ({"model_channels": "16"}, "config.json: architecture: "),
        ({"model_channels": 3}, "config.json: architecture: "),
        ({"model_channels": -16}, "config.json: architecture: "),
        ({"channel_mult": 2}, "config.json: architecture: "),
    ],
)
def test_wrong_architecture(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architecture"].update(changes)
    path.write_text(json.dumps(config))
    assert re.match(f"{folder}/{message}", refusal(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "not a teacher's configuration"),
        ({}, "not a teacher's configuration"),
        ({"format": "other"}, "not a teacher's configuration"),
        ({"format": "hkdpipe-teacher"}, "architecture: "),
        ({"format": "hkdpipe-teacher", "architecture": None}, "architecture: "),
        ({"format": "hkdpipe-teacher", "architecture": [1]}, "architecture: "),
    ],
)
def test_wrong_configuration(folder: Path, config: Any, message: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    assert refusal(folder).startswith(f"{path}: {message}")


def test_snapshot_state_dict_and_folder_are_the_same_teacher(fixtures: Path, tmp_path: Path) -> None:
    snapshot = load_teacher(fixtures / "ncsnpp-cond-fp16.pkl")
    torch.save(snapshot.network.state_dict(), tmp_path / "state.pt")
    save_teacher(tmp_path / "folder", snapshot.network, {}, torch.float32)
    x, labels = torch.randn(2, 3, 16, 16), torch.eye(10)[:2]
    for path in (tmp_path / "state.pt", tmp_path / "folder"):
        teacher = load_teacher(path)
        assert teacher.sha256 == snapshot.sha256
        assert torch.equal(teacher(x, 0.7, labels), snapshot(x, 0.7, labels))
    changed = load_teacher(tmp_path / "folder")
    changed.network.state_dict()["model.map_layer0.bias"][0] += 1
    assert changed.sha256 != snapshot.sha256


def test_state_dict_that_runs_code_is_not_run(tmp_path: Path, hostile: tuple[object, Path]) -> None:
    thing, proof = hostile
    path = tmp_path / "state.pt"
    torch.save({"weight": thing}, path)
    assert refusal(path).startswith(f"{path}: not a state dict (")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a state dict: accepted: a dictionary of tensors by their names"),
        ({"a": 1}, "not a state dict: accepted: a dictionary of tensors by their names"),
        ({"a": torch.zeros(1)}, "not a network that hkdpipe knows: no tensor 'model.enc.RxR_block0"),
    ],
)
def test_file_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "state.pt"
    torch.save(content, path)
    assert refusal(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("name", ["x.pt", "x.pkl"])
@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04"])
def test_file_of_nonsense(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: not ")


def test_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.touch()
    assert refusal(path).startswith(f"{path}: not a teacher; accepted: 'digits', a folder with config.json")
