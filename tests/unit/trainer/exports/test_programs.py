import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.trainer.exports.programs import OnnxModel, check_exports, write_onnx, write_program
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.methods.kd.kd import KD
from hkdpipe.trainer.methods.kdm.kdm import KDM
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions, KdmSettings
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet

Model = tuple[Student, Callable[[int], list[Tensor]]]
TINY_KDM = KdmOptions(KdmSettings(width=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)))


@pytest.fixture(
    params=[
        pytest.param((HKD, HkdOptions(), 0), id="unconditional"),
        pytest.param((HKD, HkdOptions(), 3), id="conditional"),
        pytest.param((KD, None, 3), id="kd", marks=pytest.mark.slow),
        pytest.param((KDM, TINY_KDM, 3), id="kdm", marks=pytest.mark.slow),
    ]
)
def model(
    request: pytest.FixtureRequest, arch: Architecture, randomise: Callable[[nn.Module], None]
) -> Model:
    """A student at work, and what it is given for a number of images."""
    method, settings, label_dim = request.param
    teacher = PreconditionedUNet(dataclasses.replace(arch, label_dim=label_dim))
    student = method.from_teacher(teacher, settings)
    randomise(student)

    def inputs(count: int) -> list[Tensor]:
        noise = torch.randn(count, 1, 8, 8)
        return [noise, torch.eye(label_dim)[torch.arange(count) % label_dim]] if label_dim else [noise]

    return student.eval().requires_grad_(False), inputs


def test_folded_student_gives_the_same_images(model: Model) -> None:
    """Bit for bit, and without an operator left to compute."""
    student, inputs = model
    folded = student.folded()
    given = inputs(5)
    assert torch.equal(folded.sample(*given), student.sample(*given))
    if isinstance(folded, HKD):
        assert not list(folded.koopman.parameters())
        assert list(student.get_submodule("koopman").parameters())


def test_program_gives_the_same_images(model: Model, tmp_path: Path) -> None:
    student, inputs = model
    write_program(student, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 7):
        given = inputs(count)
        torch.testing.assert_close(program(*given), student.sample(*given), rtol=0, atol=1e-5)


def test_onnx_gives_the_same_images(model: Model, tmp_path: Path) -> None:
    from onnxruntime import InferenceSession

    student, inputs = model
    write_onnx(student, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = InferenceSession(tmp_path / "model.onnx")
    for count in (1, 7):
        given = inputs(count)
        fed = dict(zip(("noise", "labels"), (value.numpy() for value in given), strict=False))
        (images,) = session.run(["images"], fed)
        np.testing.assert_allclose(images, student.sample(*given).numpy(), rtol=0, atol=1e-5)
    read = OnnxModel(tmp_path / "model.onnx", torch.device("cpu"))
    assert (read.image_shape, read.label_dim) == (student.image_shape, student.label_dim)
    assert torch.equal(read.sample(*given), torch.from_numpy(images))


def onnx_file(path: Path, dims: list[str | int], name: str = "noise", operator: str = "Identity") -> Path:
    """A model of one operator."""
    from onnx import TensorProto, helper

    one, other = (helper.make_tensor_value_info(of, TensorProto.FLOAT, dims) for of in (name, "images"))
    graph = helper.make_graph([helper.make_node(operator, [name], ["images"])], "graph", [one], [other])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such model"),
        (lambda path: path.write_bytes(b"no model"), "not a readable ONNX model"),
        (lambda path: path.mkdir(), "not a readable ONNX model"),
        (lambda path: onnx_file(path, ["N", 1, 8, 8], "x"), "inputs {'x': .*; accepted: 'noise'"),
        (lambda path: onnx_file(path, ["N", "C", 8, 8]), "inputs {'noise': .*; accepted: 'noise'"),
        (lambda path: onnx_file(path, ["N", 64]), "inputs {'noise': .*; accepted: 'noise'"),
        (lambda path: onnx_file(path, ["N", 1, 8, 8], operator="Unheard"), "not a readable ONNX model"),
    ],
    ids=["missing", "text", "folder", "other-name", "open-shape", "other-shape", "unknown-operator"],
)
def test_other_onnx_files_are_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(InputError, match=rf"model\.onnx: {message}") as raised:
        OnnxModel(path, torch.device("cpu"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("place", ["secret.bin", "sub/../secret.bin", "./secret.bin", "../secret.bin"])
def test_an_onnx_model_reads_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Not where the command was started, nor where the model lies."""
    from onnx import TensorProto, helper

    for folder in (tmp_path, tmp_path / "here", tmp_path / "here" / "sub"):
        folder.mkdir(exist_ok=True)
        (folder / "secret.bin").write_bytes(np.full(64, 7.0, np.float32).tobytes())
    monkeypatch.chdir(tmp_path / "here")
    named = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[1, 1, 8, 8])
    named.data_location = TensorProto.EXTERNAL
    named.external_data.add(key="location", value=place)
    shape: list[str | int] = ["N", 1, 8, 8]
    one, other = (helper.make_tensor_value_info(of, TensorProto.FLOAT, shape) for of in ("noise", "images"))
    node = helper.make_node("Add", ["noise", "weights"], ["images"])
    graph = helper.make_graph([node], "graph", [one], [other], [named])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    Path("model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx: not a readable ONNX model"):
        OnnxModel(Path("model.onnx"), torch.device("cpu"))


def test_an_onnx_model_that_gives_something_else_is_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "model.onnx", ["N", 1, 8, 8], operator="Flatten")
    with pytest.raises(InputError, match=r"model\.onnx: "):
        OnnxModel(path, torch.device("cpu")).sample(torch.zeros(2, 1, 8, 8))


def test_onnx_without_its_packages_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exports(["program", "onnx"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else "there")
    check_exports(["program"])
    with pytest.raises(UsageError, match=r"'onnx' needs the package onnxscript; accepted: after pip install"):
        check_exports(["onnx"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"m\.onnx: needs the package onnxruntime; accepted: after pip install"
    ):
        OnnxModel(Path("m.onnx"), torch.device("cpu"))
