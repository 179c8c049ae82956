from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hkdpipe.manifests.errors import UsageError
from hkdpipe.trainer.methods.hkd import HKD
from hkdpipe.trainer.methods.kd import KD
from hkdpipe.trainer.methods.kdm import KDM
from hkdpipe.trainer.methods.student import Student
from hkdpipe.trainer.networks import Architecture, PreconditionedUNet
from hkdpipe.trainer.programs import check_exports, write_onnx, write_program
from hkdpipe.trainer.settings import KdmSettings, KoopmanSettings

Model = tuple[Student, Callable[[int], list[Tensor]]]
TINY_KDM = KdmSettings(width=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))


@pytest.fixture(
    params=[
        pytest.param((HKD, KoopmanSettings(), 0), id="unconditional"),
        pytest.param((HKD, KoopmanSettings(), 3), id="conditional"),
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


def test_onnx_without_its_packages_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exports(["program", "onnx"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else "there")
    check_exports(["program"])
    with pytest.raises(UsageError, match=r"'onnx' needs the package onnxscript; accepted: after pip install"):
        check_exports(["onnx"])
