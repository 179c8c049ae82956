"""A student as a program that needs nothing of hkdpipe: torch.export's and ONNX's form of one-step sampling.

Both take unit noise (N, C, H, W), float32 and any N, and of a conditional student one-hot labels (N,
label_dim); both give images (N, C, H, W) in [-1, 1] but for overshoots.
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hkdpipe.manifests.errors import UsageError
from hkdpipe.manifests.files import write_atomic
from hkdpipe.trainer.methods.student import Student

NOISE, LABELS, IMAGES = "noise", "labels", "images"
_TRACED_BATCH = 2  # 0 and 1 would be taken for constants


class OneStep(nn.Module):
    """`sample` as a forward pass."""

    def __init__(self, model: Student) -> None:
        super().__init__()
        self.model = model.folded()

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model.sample(noise, labels)


def write_program(model: Student, path: Path) -> None:
    """Write a program of torch.export's (.pt2), which `torch.export.load` reads."""
    buffer = io.BytesIO()
    torch.export.save(_program(model), buffer)
    write_atomic(path, buffer.getbuffer())


def check_exports(kinds: Sequence[str]) -> None:
    """UsageError where the packages are missing that 'onnx' needs."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if "onnx" in kinds and missing:
        raise UsageError(
            f"evaluation.exports: 'onnx' needs the package {missing[0]}; accepted: after "
            "pip install 'hkdpipe[onnx]'"
        )


def write_onnx(model: Student, path: Path) -> None:
    """Write an ONNX model, in one file."""
    program = _program(model)
    exported: Any = torch.onnx.export(
        program, dynamo=True, input_names=_names(model), output_names=[IMAGES], verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        exported.save(Path(folder) / "model.onnx", external_data=False)
        write_atomic(path, (Path(folder) / "model.onnx").read_bytes())


def _program(model: Student) -> torch.export.ExportedProgram:
    noise = torch.zeros(_TRACED_BATCH, *model.image_shape, device=model.device)
    arguments: tuple[Tensor, ...] = (noise,)
    if model.arch.label_dim:
        arguments += (torch.zeros(_TRACED_BATCH, model.arch.label_dim, device=model.device),)
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in _names(model)}
    with torch.no_grad():
        return torch.export.export(OneStep(model), arguments, dynamic_shapes=shapes)


def _names(model: Student) -> list[str]:
    return [NOISE, LABELS] if model.arch.label_dim else [NOISE]
