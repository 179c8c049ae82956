"""Programs of torch.export (.pt2), read as data and interpreted.

`torch.export.load` unpickles parts of such a file and evaluates expressions in it, so a foreign one could run
anything. Here nothing of it is unpickled or evaluated: of the zip file's members the graph (JSON)
and the tensors' raw values are read, and each node of the graph must be one of `_OPERATORS`.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, first_line
from hkdpipe.trainer.exports.programs import LABELS, NOISE, image_shape_and_classes

_SCHEMA = 8
"""The version of torch's JSON schema that this follows."""

# Those that students consist of. None of them reads or writes anything but its arguments: of torch's other
# operators some do, so it is not for an operator's namespace to be accepted as a whole.
_OPERATORS = frozenset(
    """
    abs.default add.Tensor addcmul.default arange.default argmin.default atan.default avg_pool2d.default
    cat.default chunk.default clamp.default conv2d.default conv_transpose2d.input cos.default div.Tensor
    dropout.default einsum.default expand.default flatten.using_ints full.default full_like.default
    group_norm.default linear.default log.default mul.Tensor neg.default new_zeros.default
    ones_like.default outer.default pow.Scalar pow.Tensor_Scalar reciprocal.default reshape.default
    rsub.Scalar silu.default sin.default slice.Tensor softmax.int sqrt.default sub.Tensor sym_size.int
    to.device to.dtype unbind.int unsqueeze.default upsample_nearest2d.vec view.default
    """.split()  # noqa: SIM905 - as a list they would fill fifty lines
)
# They check what tracing has found, or compute what the traced program has become independent of.
_SKIPPED = ("_assert_tensor_metadata.default", "promote_types.default")
_PREFIX = "torch.ops.aten."

_SCALAR_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    13: torch.bfloat16,
}
_STRIDED = 7
_POSITIONAL = 1
_STORED = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}
"""Kinds of inputs whose values are in the file, and where the name of these stands."""
_PLAIN: Mapping[str, type | tuple[type, ...]] = {
    "as_int": int,
    "as_float": (int, float),
    "as_bool": bool,
    "as_string": str,
}


# Whatever is not as torch writes it shows in one of these.
_NOT_AS_WRITTEN = (
    OSError,
    zipfile.BadZipFile,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,  # of which RecursionError is one
    MemoryError,
)


class _Unread(Exception):
    """Why a program is not accepted."""


@dataclass(frozen=True, slots=True)
class _Value:
    """An argument that an earlier node has computed."""

    name: str


@dataclass(frozen=True, slots=True)
class _Step:
    operator: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]
    """Names, or lists of names where an operator returns several tensors; None where one is not used."""
    last: tuple[str, ...] = ()
    """Values that no later step needs."""


class InertProgram:
    """What `write_program` wrote: one-step sampling of images of `image_shape` (C, H, W), of `label_dim`
    classes (0 without)."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """InputError where the file is not such a program, or has an operator that no student's has."""
        self._path, self._device = path, device
        try:
            with zipfile.ZipFile(path) as file:
                members = _members(file)
                graph_module = _json(file, members, "models/model.json")
                if (version := graph_module["schema_version"]["major"]) != _SCHEMA:
                    raise _Unread(f"its format has the version {version}; accepted: {_SCHEMA}")
                self._read(graph_module["graph_module"], _Tensors(file, members, device))
        except _Unread as error:
            raise InputError(f"{path}: {error}") from None
        except FileNotFoundError:
            raise InputError(f"{path}: no such model; accepted: a program of hkdpipe's export") from None
        except _NOT_AS_WRITTEN as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{path}: not a readable program ({what})") from None

    def _read(self, graph_module: Any, tensors: _Tensors) -> None:
        graph = graph_module["graph"]
        self._known: dict[str, Tensor] = {}
        given = []
        for spec in graph_module["signature"]["input_specs"]:
            ((kind, described),) = spec.items()
            if kind == "user_input":
                given.append(described["arg"]["as_tensor"]["name"])
            elif kind in _STORED:
                self._known[described["arg"]["name"]] = tensors.read(described[_STORED[kind]])
            else:
                raise _Unread(f"has an input of the kind '{kind}', which no model of hkdpipe's has")
        (output,) = graph_module["signature"]["output_specs"]
        self._output: str = output["user_output"]["arg"]["as_tensor"]["name"]
        self._check_inputs(given, graph["tensor_values"])
        self._steps = self._planned(graph["nodes"], {*given, *self._known})

    def _check_inputs(self, given: list[str], described: Any) -> None:
        sizes = {name: [size.get("as_int") for size in described[name]["sizes"][1:]] for name in given}
        try:
            self.image_shape, self.label_dim = image_shape_and_classes(sizes)
        except ValueError as error:
            raise _Unread(str(error)) from None

    def _planned(self, nodes: Any, there: set[str]) -> list[_Step]:
        steps: list[_Step] = []
        for node in nodes:
            target = str(node["target"])
            if target.removeprefix(_PREFIX) in _SKIPPED:
                continue
            if not target.startswith(_PREFIX) or target.removeprefix(_PREFIX) not in _OPERATORS:
                raise _Unread(f"uses the operator '{target}', which no model of hkdpipe's does")
            name, overload = target.removeprefix(_PREFIX).split(".")
            arguments = [(a["name"], self._argument(a["arg"]), a["kind"]) for a in node["inputs"]]
            for _, value, _ in arguments:
                if missing := {used for used in _names(value) if used not in there}:
                    raise _Unread(f"uses '{min(missing)}' before it is computed")
            results = tuple(_result(output) for output in node["outputs"])
            there.update(name for result in results for name in _flat(result))
            steps.append(
                _Step(
                    getattr(getattr(torch.ops.aten, name), overload),
                    tuple(value for _, value, kind in arguments if kind == _POSITIONAL),
                    {key: value for key, value, kind in arguments if kind != _POSITIONAL},
                    results,
                )
            )
        if self._output not in there:
            raise _Unread(f"'{self._output}' is never computed")
        return _with_last_uses(steps, keep={self._output, *self._known})

    def _argument(self, argument: Any) -> Any:
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_tensors"):
            return [_Value(one["name"]) for one in value] if kind == "as_tensors" else _Value(value["name"])
        if kind in ("as_sym_int", "as_sym_ints"):
            return [_sym_int(one) for one in value] if kind == "as_sym_ints" else _sym_int(value)
        if kind == "as_scalar_type":
            return _SCALAR_TYPES[value]
        if kind == "as_device":
            return self._device
        if kind == "as_layout" and value == _STRIDED:
            return torch.strided
        for plain, types in _PLAIN.items():
            if kind == plain and isinstance(value, types):
                return value
            if kind == f"{plain}s" and all(isinstance(one, types) for one in value):
                return list(value)
        raise _Unread(f"has an argument of the kind '{kind}', which no model of hkdpipe's does")

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (N, C, H, W) from unit noise and one-hot labels (N, label_dim), as a student's `sample`."""
        values: dict[str, Any] = {**self._known, NOISE: noise.to(self._device, torch.float32)}
        if labels is not None:
            values[LABELS] = labels.to(self._device, torch.float32)
        try:
            with torch.no_grad():
                for step in self._steps:
                    args = [_resolved(value, values) for value in step.args]
                    kwargs = {name: _resolved(value, values) for name, value in step.kwargs.items()}
                    _store(step.operator(*args, **kwargs), step.results, values)
                    for name in step.last:
                        del values[name]
            images = values[self._output]
        # Of an operator's arguments, or of a result unlike the one described.
        except (RuntimeError, TypeError, ValueError, LookupError, MemoryError) as error:
            raise InputError(f"{self._path}: cannot be run ({first_line(error)})") from None
        if not isinstance(images, Tensor) or images.shape != noise.shape:
            raise InputError(f"{self._path}: gives no images of the shape {tuple(noise.shape)}")
        return images


class _Tensors:
    """The stored tensors of a file."""

    def __init__(self, file: zipfile.ZipFile, members: Mapping[str, str], device: torch.device) -> None:
        self._file, self._members, self._device = file, members, device
        self._described: dict[str, tuple[str, Any]] = {}
        for kind in ("constants", "weights"):
            config = _json(file, members, f"data/{kind}/model_{kind}_config.json")["config"]
            self._described |= {name: (f"data/{kind}/", payload) for name, payload in config.items()}

    def read(self, name: str) -> Tensor:
        folder, payload = self._described[name]
        if payload["use_pickle"]:
            raise _Unread(f"has the values of '{name}' in a pickle; accepted: raw ones")
        meta = payload["tensor_meta"]
        dtype = _SCALAR_TYPES[meta["dtype"]]
        sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
        data = self._file.read(self._members[folder + payload["path_name"]])
        if not math.prod(sizes):
            return torch.empty(sizes, dtype=dtype, device=self._device)
        # torch refuses what reaches beyond the values.
        values = torch.frombuffer(bytearray(data), dtype=dtype)
        return values.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).to(self._device)


def _members(file: zipfile.ZipFile) -> dict[str, str]:
    """Names without the folder that all stand in, and whole. Compressed ones could grow without end."""
    if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
        raise _Unread("is compressed; torch.export's files are not")
    return {name.partition("/")[2]: name for name in file.namelist()}


def _json(file: zipfile.ZipFile, members: Mapping[str, str], name: str) -> Any:
    if name not in members:
        raise _Unread(f"not a program of torch.export: has no {name}")
    return json.loads(file.read(members[name]))


def _sym_int(value: Any) -> Any:
    ((kind, what),) = value.items()
    if kind == "as_name":
        return _Value(what)
    if kind == "as_int" and isinstance(what, int):
        return what
    raise _Unread(f"has a size of the kind '{kind}', which no model of hkdpipe's does")


def _result(output: Any) -> Any:
    ((kind, value),) = output.items()
    if kind == "as_none":
        return None
    if kind == "as_tensors":
        return [one["name"] for one in value]
    return value["as_name"] if kind == "as_sym_int" else value["name"]


def _names(value: Any) -> Iterator[str]:
    """Of the values that an argument refers to."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, _Value):
            yield one.name


def _flat(result: Any) -> list[str]:
    return [name for name in (result if isinstance(result, list) else [result]) if name is not None]


def _with_last_uses(steps: list[_Step], keep: set[str]) -> list[_Step]:
    """Every value is let go after the last step that needs it, as the memory of all would be too much."""
    needed = set(keep)
    planned: list[_Step] = []
    for step in reversed(steps):
        used = {name for value in (*step.args, *step.kwargs.values()) for name in _names(value)}
        used.update(name for result in step.results for name in _flat(result))
        last = tuple(sorted(used - needed))
        planned.append(replace(step, last=last))
        needed |= used
    return planned[::-1]


def _resolved(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_resolved(one, values) for one in value]
    return values[value.name] if isinstance(value, _Value) else value


def _store(found: Any, results: tuple[Any, ...], values: dict[str, Any]) -> None:
    for result, value in zip(results, [found] if len(results) == 1 else found, strict=True):
        if isinstance(result, list):
            values.update(zip(result, value, strict=True))
        elif result is not None:
            values[result] = value
