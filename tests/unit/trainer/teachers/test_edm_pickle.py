"""Good snapshots: EDM's own, and every variant of the layout; then files that are none."""

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edm_fixtures import read_edm
from edm_snapshots import EasyDict, persistent, snapshot
from torch import Tensor, nn

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.snapshots import Snapshot

Read = Callable[[bytes], Snapshot]
Refusal = Callable[[bytes], str]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.up, self.skip_scale = 3, False, np.sqrt(0.5)
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.register_parameter("bias", None)
        self.register_buffer("resample_filter", None)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map_label = None
        self.enc = nn.ModuleDict({"8x8_conv": Block(), "8x8_block0": Block()})
        self.dec = nn.ModuleList([nn.Sequential(Block())])
        self.register_buffer("freqs", torch.randn(5))
        self.register_buffer("scratch", torch.randn(4), persistent=False)


class EDMPrecond(nn.Module):
    """The name counts."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.use_fp16 = 0, math.inf, False
        self._init_kwargs = {"model_type": "SongUNet", "channel_mult": [1, 2], "label_dim": 0}
        self.model = Model()


@pytest.fixture
def precond() -> EDMPrecond:
    return EDMPrecond()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(data: bytes) -> Snapshot:
        (tmp_path / "snapshot.pkl").write_bytes(data)
        return read_edm(tmp_path / "snapshot.pkl")

    return write_and_read


@pytest.fixture
def refusal(read: Read, tmp_path: Path) -> Refusal:
    """What is wrong with a file, without the words that every refusal begins with."""

    def cause(data: bytes) -> str:
        with pytest.raises(InputError) as raised:
            read(data)
        begin, cause = str(raised.value).split(": not an EDM snapshot: ")
        assert begin == str(tmp_path / "snapshot.pkl")
        assert cause.isprintable()
        return cause

    return cause


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Also in the order of the names, in type and in layout."""
    return list(found) == list(expected) and all(
        value.dtype == other.dtype and torch.equal(value, other) and value.is_contiguous()
        for value, other in zip(found.values(), expected.values(), strict=True)
    )


def test_weights_of_edm_are_read_bit_for_bit(fixtures: Path) -> None:
    """The digest is of the tensors as torch itself unpickled them."""
    digest = hashlib.sha256()
    for name, value in sorted(read_edm(fixtures / "ddpmpp-grey-8px.pkl").state_dict.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    assert digest.hexdigest() == "3af174dd91cd8dd6d189ba26cee6e5affda5f33e3a7c83f5ec3f5c573911c5c4"


def test_names_and_shapes_are_those_of_our_network(fixtures: Path) -> None:
    found = read_edm(fixtures / "ddpmpp-grey-8px.pkl").state_dict
    arch = Architecture(8, 1, model_channels=16, channel_mult=(1, 2), num_blocks=1)
    expected = PreconditionedUNet(arch).state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }


def test_description_of_edms_vp_network(fixtures: Path) -> None:
    found = read_edm(fixtures / "vp-ddpmpp.pkl")
    assert found.class_name == "VPPrecond"
    assert found.init_kwargs == {
        "model_type": "SongUNet",
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
        "model_channels": 16,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "dropout": 0.13,
        "use_fp16": False,
        "img_resolution": 16,
        "img_channels": 3,
        "label_dim": 0,
    }
    # sigma(t) of the VP schedule (arXiv 2206.00364, table 1) at epsilon_t and 1, in single precision.
    sigma_min, sigma_max = (math.sqrt(math.expm1(19.9 / 2 * t * t + 0.1 * t)) for t in (1e-5, 1))
    assert found.attributes.pop("sigma_min") == pytest.approx(sigma_min, rel=0.05)
    assert found.attributes.pop("sigma_max") == pytest.approx(sigma_max, rel=1e-5)
    assert found.attributes == {
        "img_resolution": 16,
        "img_channels": 3,
        "label_dim": 0,
        "use_fp16": False,
        "beta_d": 19.9,
        "beta_min": 0.1,
        "M": 1000,
        "epsilon_t": 1e-5,
    }


def test_modules_of_edms_vp_network(fixtures: Path) -> None:
    modules = read_edm(fixtures / "vp-ddpmpp.pkl").modules
    assert modules["model"] == {
        "class_name": "SongUNet",
        "label_dropout": 0,
        "map_label": None,
        "map_augment": None,
    }
    assert modules["model.enc"] == {"class_name": "ModuleDict"}
    block = modules["model.enc.16x16_block0"]
    assert (block["in_channels"], block["out_channels"], block["num_heads"]) == (16, 16, 1)
    assert type(block["skip_scale"]) is float
    assert block["skip_scale"] == math.sqrt(0.5)
    assert (modules["model.enc.8x8_down.conv0"]["down"], block["skip"]) == (True, None)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("location", ["cpu", "cuda:0"])
def test_protocols_and_places(read: Read, precond: EDMPrecond, protocol: int, location: str) -> None:
    found = read(snapshot(precond, protocol, location))
    assert same(found.state_dict, precond.state_dict())
    assert found.class_name == "EDMPrecond"
    assert found.init_kwargs == precond._init_kwargs
    assert found.attributes == {"sigma_min": 0, "sigma_max": math.inf, "use_fp16": False}
    assert list(found.modules) == [name for name, _ in precond.named_modules() if name]
    assert found.modules["model"] == {"class_name": "Model", "map_label": None}
    assert found.modules["model.dec.0.0"] == {
        "class_name": "Block",
        "in_channels": 3,
        "up": False,
        "skip_scale": math.sqrt(0.5),
        "bias": None,
        "resample_filter": None,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept(read: Read, precond: EDMPrecond, dtype: torch.dtype) -> None:
    precond.to(dtype)
    assert same(read(snapshot(precond)).state_dict, precond.state_dict())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_whole_numbers(read: Read, precond: EDMPrecond, dtype: torch.dtype) -> None:
    precond.register_buffer("u", torch.arange(6).to(dtype))
    assert same(read(snapshot(precond)).state_dict, precond.state_dict())


def test_transposed_tensors_are_made_contiguous(read: Read, precond: EDMPrecond) -> None:
    part = torch.randn(4, 5).t()
    precond.register_buffer("u", part)
    assert same({"u": read(snapshot(precond)).state_dict["u"]}, {"u": part.clone().contiguous()})


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda base: base[1:3, 2], id="column"),
        pytest.param(lambda base: base[3:4], id="last-row"),
        pytest.param(lambda base: base[:3], id="first-rows"),
        pytest.param(lambda base: base.as_strided((4, 5), (4, 1)), id="overlapping-rows"),
    ],
)
def test_parts_of_a_storage_are_refused(
    refusal: Refusal, precond: EDMPrecond, view: Callable[[Tensor], Tensor]
) -> None:
    """A damaged offset, size or stride makes such a thing, and EDM never does."""
    precond.register_buffer("u", view(torch.randn(4, 5)))
    assert "a tensor that is not all of its storage of 20 values, once" in refusal(snapshot(precond))


def test_shared_parameter_stays_one(read: Read, precond: EDMPrecond) -> None:
    precond.model.enc["8x8_conv"].weight = precond.model.enc["8x8_block0"].weight
    found = read(snapshot(precond)).state_dict
    assert same(found, precond.state_dict())
    assert found["model.enc.8x8_conv.weight"] is found["model.enc.8x8_block0.weight"]


def test_parameter_with_attributes_of_its_own(read: Read, precond: EDMPrecond) -> None:
    precond.model.enc["8x8_conv"].weight.note = "kept by torch"  # type: ignore[union-attr, assignment]
    data = snapshot(precond)
    assert b"_rebuild_parameter_with_state" in data
    assert same(read(data).state_dict, precond.state_dict())


def test_large_tensors_in_protocol_2(read: Read, precond: EDMPrecond) -> None:
    # Larger than the pieces in which such texts are decoded, so that characters lie across their borders.
    precond.register_buffer("u", torch.randint(256, (1_500_000,), dtype=torch.uint8))
    assert same(read(snapshot(precond, protocol=2)).state_dict, precond.state_dict())


def test_numbers_of_numpy_and_dicts_of_edm_become_plain(read: Read, precond: EDMPrecond) -> None:
    numbers = [np.float64(0.1), np.float32(0.1), np.float16(0.1), np.int64(-7), np.uint8(255), np.bool_(True)]
    precond._init_kwargs = {"nested": EasyDict(numbers=numbers, pair=(1, "text"), none=None)}
    for protocol in (2, 3, 4):
        nested = read(snapshot(precond, protocol)).init_kwargs["nested"]
        assert type(nested) is dict
        assert nested == {"numbers": [number.item() for number in numbers], "pair": (1, "text"), "none": None}
        assert [type(number) for number in nested["numbers"]] == [float, float, float, int, int, bool]


def test_module_names_of_older_numpy(read: Read, precond: EDMPrecond) -> None:
    data = snapshot(precond, protocol=3)
    older = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert older != data
    assert read(older).modules == read(data).modules


def test_what_lies_beside_is_dropped(read: Read, precond: EDMPrecond) -> None:
    beside = {
        "loss_fn": persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "_init_kwargs": {}}),
        "augment_pipe": None,
        "dataset_kwargs": EasyDict(path="cifar10.zip", resolution=32),
        "net": Model(),
    }
    alone, accompanied = read(snapshot(precond)), read(snapshot(precond, **beside))
    assert same(accompanied.state_dict, alone.state_dict)
    assert accompanied.modules == alone.modules


def test_source_text_is_kept_nowhere(read: Read, precond: EDMPrecond) -> None:
    data = snapshot(precond)
    assert b"source text" in data
    assert "source text" not in repr(read(data))


def changed(**state: Any) -> Any:
    """A network with something else in its state."""
    return persistent("EDMPrecond", {"_init_args": (), "_init_kwargs": {}} | state)


@pytest.mark.parametrize(
    ("ema", "cause"),
    [
        (None, "it has no network 'ema'"),
        (persistent("Precond", {}), "its network is a Precond; accepted: EDMPrecond, VPPrecond, VEPrecond"),
        (changed(_init_args=(32,)), "its network was made with arguments that have no names"),
        (changed(_init_kwargs=[]), "_init_kwargs of its network is no dict"),
        (changed(_modules=[]), "_modules of a module is no dict"),
        (changed(_modules={"a.b": None}), "'a.b' in _modules is no name"),
        (changed(_buffers={"": None}), "'' in _buffers is no name"),
        (changed(_modules={"model": 1}), "'model' does not belong into _modules"),
        (changed(_modules={"model": torch.ones(1)}), "'model' does not belong into _modules"),
        (changed(_parameters={"weight": nn.ModuleDict()}), "'weight' does not belong into _parameters"),
        (changed(_parameters={"w": torch.ones(1)}, _buffers={"w": torch.ones(1)}), "'w' is a parameter and"),
        (changed(_non_persistent_buffers_set=[1]), "_non_persistent_buffers_set of a module is no set of"),
        (changed(rates=torch.ones(1)), "attribute 'rates' is neither a number nor a text nor made of these"),
        (changed(rates=[len]), "it asks for builtins.len, which is not read"),
        (changed(rates=torch.ones(1, dtype=torch.bool)), "in a storage: it asks for torch.BoolStorage"),
        (changed(rates=np.ones(2)), "it asks for numpy._core.multiarray._reconstruct, which is not read"),
        (changed(rates=np.datetime64("2020")), "it holds a numpy type that is no plain number"),
        (changed(rates={1: 2}), "it holds a dict with a key that is no text"),
        (changed(rates=b"bytes"), "attribute 'rates' is neither a number"),
        (changed(rates="x" * 5000), "attribute 'rates' is neither a number"),
    ],
)
def test_other_layouts_are_refused(refusal: Refusal, ema: Any, cause: str) -> None:
    assert refusal(snapshot(ema)).startswith(cause)


def test_numbers_of_numpy_in_the_other_byte_order(refusal: Refusal, precond: EDMPrecond) -> None:
    little, big = b"\x8c\x01<", b"\x8c\x01>"
    data = snapshot(precond)
    assert data.count(little) == 1
    assert refusal(data.replace(little, big)) == "it holds a numpy scalar that is no plain number"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "it is no pickle of protocol 2, 3, 4 or 5"),
        (b"\x80", "it is no pickle of protocol 2, 3, 4 or 5"),
        (b"PK\x03\x04", "it is no pickle of protocol 2, 3, 4 or 5"),
        (b"(lp0\n.", "it is no pickle of protocol 2, 3, 4 or 5"),
        (b"\x80\x06N.", "it is no pickle of protocol 2, 3, 4 or 5"),
        (b"\x80\x04N.", "it has no network 'ema'"),
        (b"\x80\x04}.", "it has no network 'ema'"),
        (b"\x80\x04}", "it ends early, at byte 3"),
        (b"\x80\x04N.N", "it goes on after its end, at byte 4"),
    ],
)
def test_other_files_are_refused(refusal: Refusal, data: bytes, cause: str) -> None:
    assert refusal(data) == cause


def test_truncated_file(refusal: Refusal, precond: EDMPrecond) -> None:
    data = snapshot(precond)
    for kept in range(2, len(data), 97):
        assert refusal(data[:kept]) == f"it ends early, at byte {kept}"


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, cause in (
        (tmp_path / "absent", "missing"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
    ):
        with pytest.raises(InputError) as raised:
            read_edm(path)
        assert str(raised.value) == f"{path}: {cause}"
