"""A student as a program that needs nothing of hkdpipe: torch.export's and ONNX's form of one-step sampling.

Both take unit noise (N, C, H, W), float32 and any N, and of a conditional student one-hot labels (N,
label_dim); both give images (N, C, H, W) in [-1, 1] but for overshoots.
"""

import importlib.util
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hkdpipe.manifests.ground.atomic_files import write_atomic
from hkdpipe.manifests.ground.errors import InputError, Name, UsageError, WrongValue, first_line
from hkdpipe.trainer.students.student import Student

NOISE, LABELS, IMAGES = "noise", "labels", "images"
_FURTHER_FILES = "session.model_external_initializers_file_folder_path"
_TRACED_BATCH = 2  # 0 and 1 would be taken for constants


class OneStep(nn.Module):
    """`sample` as a forward pass."""

    def __init__(self, model: Student) -> None:
        super().__init__()
        # On the CPU: a program is loaded onto the device that it was traced on, and that may not be there.
        self.model = model.folded().cpu()

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
        raise WrongValue(
            Name("exports"),
            f": 'onnx' needs the package {missing[0]}; accepted: after pip install 'hkdpipe[onnx]'",
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


class OnnxModel:
    """What `write_onnx` wrote, run by onnxruntime: one-step sampling of images of `image_shape` (C, H, W), of
    `label_dim` classes (0 without)."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """InputError where the file is not such a model, UsageError where onnxruntime is missing. It runs on
        a GPU where `device` is one and onnxruntime is made for it, else on the CPU."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise UsageError(
                f"{path}: needs the package onnxruntime; accepted: after pip install 'hkdpipe[onnx]'"
            )
        import onnxruntime

        wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
        there = onnxruntime.get_available_providers()
        providers = [name for name in [*wanted, "CPUExecutionProvider"] if name in there]
        self._path = path
        options = onnxruntime.SessionOptions()
        try:
            with tempfile.TemporaryDirectory() as empty:
                # Further files, which a foreign model could name, are looked for there, not where we are.
                options.add_session_config_entry(_FURTHER_FILES, empty)
                self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
        except FileNotFoundError:
            raise InputError(f"{path}: no such model; accepted: an ONNX model of hkdpipe's") from None
        except Exception as error:  # onnxruntime raises classes of its own, of no common base
            raise InputError(f"{path}: not a readable ONNX model ({first_line(error)})") from None
        inputs = {value.name: value.shape[1:] for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        if outputs != [IMAGES]:
            raise InputError(f"{path}: outputs {outputs}; accepted: '{IMAGES}', as an evaluation exports")
        try:
            self.image_shape, self.label_dim = _image_shape_and_classes(inputs)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) from unit noise and one-hot labels (N, label_dim), as a student's `sample`."""
        given = {NOISE: noise} if labels is None else {NOISE: noise, LABELS: labels}
        fed = {name: value.float().cpu().numpy() for name, value in given.items()}
        try:
            (images,) = self._session.run([IMAGES], fed)
        except Exception as error:
            raise InputError(f"{self._path}: cannot be run ({first_line(error)})") from None
        if images.shape != noise.shape:
            raise InputError(f"{self._path}: gives {images.shape} for noise of {tuple(noise.shape)}")
        return torch.from_numpy(images)


def _image_shape_and_classes(inputs: Mapping[str, Sequence[Any]]) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and the number of classes (0 without) of a program, by the sizes of its inputs but for N.
    ValueError where they are not those of one-step sampling."""
    shape, labels = inputs.get(NOISE, []), inputs.get(LABELS, [0])
    sizes = (len(shape), len(labels)) == (3, 1) and all(type(size) is int for size in [*shape, *labels])
    if not inputs.keys() <= {NOISE, LABELS} or not sizes:
        raise ValueError(
            f"inputs {dict(inputs)}; accepted: '{NOISE}' (N, C, H, W), and '{LABELS}' (N, classes) of a "
            "conditional model, as an evaluation exports them"
        )
    return (shape[0], shape[1], shape[2]), labels[0]


def _program(model: Student) -> torch.export.ExportedProgram:
    noise = torch.zeros(_TRACED_BATCH, *model.image_shape)
    arguments: tuple[Tensor, ...] = (noise,)
    if model.arch.label_dim:
        arguments += (torch.zeros(_TRACED_BATCH, model.arch.label_dim),)
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in _names(model)}
    with torch.no_grad():
        return torch.export.export(OneStep(model), arguments, dynamic_shapes=shapes)


def _names(model: Student) -> list[str]:
    return [NOISE, LABELS] if model.arch.label_dim else [NOISE]
