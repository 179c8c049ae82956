"""EDM's snapshot pickles as plain data and tensors; nothing in them is run, nor their source code kept.

A network is a "persistent object": a call of one function of EDM's on a dictionary with the class's name, its
source code and its state, one within the other for each layer. A tensor's storage is a byte string that is
itself a whole file in torch's legacy format, of five more pickles and the raw numbers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from hkdpipe.manifests.errors import InputError
from hkdpipe.trainer.inert_pickle import Blob, Call, Global, Malformed, Names, Persistent, read_pickle

_RECONSTRUCT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
_CONTAINERS = {("torch.nn.modules.container", name) for name in ("ModuleDict", "ModuleList", "Sequential")}
_PARAMETERS = {
    ("torch._utils", "_rebuild_parameter"): 3,
    ("torch._utils", "_rebuild_parameter_with_state"): 4,
}
_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
_STORAGE = ("torch.storage", "_load_from_bytes")
_SCALARS = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_DTYPE, _ENCODE = ("numpy", "dtype"), ("_codecs", "encode")
_DICTIONARIES = {
    ("collections", "OrderedDict"),
    ("dnnlib.util", "EasyDict"),
    ("builtins", "set"),
    ("__builtin__", "set"),
}
SNAPSHOT_NAMES: Names = frozenset(
    {_RECONSTRUCT, _TENSOR, _STORAGE, _DTYPE, _ENCODE}
    | _CONTAINERS
    | set(_PARAMETERS)
    | _SCALARS
    | _DICTIONARIES
)
_TORCH_TYPES = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
}
_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}
# Of a preconditioner's __init__, whichever it is: what may be passed by position.
_POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16")
_MAX_DEPTH, _MAX_MODULES, _MAX_VALUES = 32, 20_000, 100_000


@dataclass(frozen=True)
class Snapshot:
    """The `ema` network of a snapshot."""

    class_name: str
    """Of the preconditioner: 'EDMPrecond', 'VPPrecond', 'VEPrecond', 'iDDPMPrecond'."""
    init_kwargs: dict[str, Any]
    """What it was made with, as plain numbers, texts, lists and dictionaries."""
    attributes: dict[str, Any]
    """Its other plain attributes: sigma_min, sigma_max, sigma_data, use_fp16 ..."""
    modules: dict[str, dict[str, Any]]
    """Plain attributes of every module by its dotted name, such as num_heads of 'model.enc.16x16_block0'."""
    state_dict: dict[str, Tensor]
    """Parameters and persistent buffers, as stored."""


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot. Raises InputError, in one line, where the file is none or asks for anything else."""
    try:
        with path.open("rb") as file:
            end = path.stat().st_size
            top = read_pickle(file, end, SNAPSHOT_NAMES)
            if file.tell() != end:
                raise Malformed(f"{end - file.tell():,} bytes after its end")
            return _Reader(file, end).snapshot(top)
    except Malformed as error:
        raise InputError(f"{path}: not a snapshot of EDM's: {error}") from None


@dataclass
class _Reader:
    file: BinaryIO
    size: int
    values: int = 0
    """Converted so far: lists within lists could grow without bounds."""
    held_bytes: int = 0
    """Of the tensors made so far; storages are not shared, so they have no more than the file."""
    used: set[int] = field(default_factory=set)
    header: bytes = b""
    state: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)

    def snapshot(self, top: Any) -> Snapshot:
        if not isinstance(top, dict) or "ema" not in top:
            raise Malformed("no dictionary with the key 'ema'")
        class_name, state = self.persistent(top["ema"], "ema")
        given = state.get("_init_args", ()), state.get("_init_kwargs", {})
        if not isinstance(given[0], tuple | list) or not isinstance(given[1], dict):
            raise Malformed("ema: its _init_args or _init_kwargs are of another kind")
        if len(given[0]) > len(_POSITIONAL):
            raise Malformed(f"ema: {len(given[0])} positional arguments; accepted: {', '.join(_POSITIONAL)}")
        init_kwargs = self.plain(
            {**dict(zip(_POSITIONAL, given[0], strict=False)), **given[1]}, "_init_kwargs"
        )
        self.walk(top["ema"], "", 0)
        attributes = self.modules.pop("")
        return Snapshot(class_name, init_kwargs, attributes, self.modules, self.state)

    def persistent(self, node: Any, where: str) -> tuple[str, dict[str, Any]]:
        """Class name and state of a persistent object."""
        meta = node.arguments[0] if _calls(node, _RECONSTRUCT, 1) else None
        if not isinstance(meta, dict) or meta.get("type") != "class":
            raise Malformed(f"{where}: not a persistent object of EDM's")
        if meta.get("version") != 6:
            raise Malformed(f"{where}: version {meta.get('version')!r} of persistent objects; accepted: 6")
        name, state = meta.get("class_name"), meta.get("state")
        if not isinstance(name, str) or not isinstance(state, dict):
            raise Malformed(f"{where}: a persistent object without class_name or state")
        return name, state

    def walk(self, node: Any, name: str, depth: int) -> None:
        """Collect attributes and tensors of a module and of those within."""
        where = name or "ema"
        if depth > _MAX_DEPTH or len(self.modules) >= _MAX_MODULES:
            raise Malformed(f"{where[:100]}: modules are nested too deep, or too many")
        if isinstance(node, Call) and (node.function.module, node.function.name) in _CONTAINERS:
            class_name, state = node.function.name, node.state
            if not isinstance(state, dict):
                raise Malformed(f"{where}: a {class_name} without a state")
        else:
            class_name, state = self.persistent(node, where)
        attributes: dict[str, Any] = {"class_name": class_name}
        for key, value in state.items():
            if isinstance(key, str) and not key.startswith("_") and key != "training":
                try:
                    attributes[key] = self.plain(value, key)
                except Malformed:
                    # Of no use to us: functions, tensors.
                    continue
        self.modules[name] = attributes
        prefix = f"{name}." if name else ""
        passing = state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for key, value in _entries(state, kind, where):
                if value is None or (kind == "_buffers" and key in passing):
                    continue
                if prefix + key in self.state:
                    raise Malformed(f"{prefix}{key}: there twice")
                self.state[prefix + key] = self.tensor(value, prefix + key)
        for key, child in _entries(state, "_modules", where):
            if child is not None:
                if prefix + key in self.modules:
                    raise Malformed(f"{prefix}{key}: there twice")
                self.walk(child, prefix + key, depth + 1)

    def tensor(self, node: Any, name: str) -> Tensor:
        if isinstance(node, Call):
            count = _PARAMETERS.get((node.function.module, node.function.name))
            if count == len(node.arguments):
                node = node.arguments[0]
        if not isinstance(node, Call) or not _calls(node, _TENSOR, 6, 7):
            raise Malformed(f"{name}: not a tensor")
        storage, offset, size, stride = node.arguments[:4]
        for numbers in (size, stride):
            good = isinstance(numbers, tuple) and len(numbers) <= 8
            if not good or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
                raise Malformed(f"{name}: its sizes or strides are not whole numbers from 0 on")
        values = self.storage(storage, name)
        if offset != 0 or math.prod(size) != len(values) or not _dense(size, stride):
            raise Malformed(f"{name}: not all of its storage, once, of {len(values):,} numbers")
        return values.as_strided(size, stride).contiguous()

    def storage(self, node: Any, name: str) -> Tensor:
        """The numbers of a storage, (count,), in the file's precision."""
        if not _calls(node, _STORAGE, 1):
            raise Malformed(f"{name}: not a storage")
        if id(node) in self.used:
            raise Malformed(f"{name}: another tensor has the same storage")
        self.used.add(id(node))
        data = node.arguments[0]
        if isinstance(data, Blob):
            self.file.seek(data.offset)
            return self.numbers(self.file, data.offset + data.length, name)
        text = self.plain(data, name)
        if not isinstance(text, bytes):
            raise Malformed(f"{name}: its storage is not a byte string")
        return self.numbers(io.BytesIO(text), len(text), name)

    def numbers(self, file: BinaryIO, end: int, name: str) -> Tensor:
        """Torch's legacy format: magic, protocol, system, persistent id, keys, count, numbers."""
        start = file.tell()
        # All storages of a file begin alike; the first three pickles are read once.
        if not self.header or file.read(len(self.header)) != self.header:
            file.seek(start)
            magic, protocol, system = (read_pickle(file, end, ()) for _ in range(3))
            if (magic, protocol) != (_MAGIC, _LEGACY_PROTOCOL) or not isinstance(system, dict):
                raise Malformed(f"{name}: its storage is not in torch's legacy format")
            if system.get("little_endian") is not True:
                raise Malformed(f"{name}: its storage is not little-endian")
            length = file.tell() - start
            file.seek(start)
            self.header = file.read(length)
        reference = read_pickle(file, end, _TORCH_TYPES)
        keys = read_pickle(file, end, ())
        parts = reference.id if isinstance(reference, Persistent) else None
        if not isinstance(parts, tuple) or len(parts) != 6 or parts[0] != "storage" or parts[5] is not None:
            raise Malformed(f"{name}: its storage has another kind of reference")
        kind, key, count = parts[1], parts[2], parts[4]
        if not isinstance(kind, Global) or keys != [key] or type(count) is not int or count < 0:
            raise Malformed(f"{name}: its storage has another kind of reference")
        dtype = _TORCH_TYPES[kind.module, kind.name]
        declared = int.from_bytes(file.read(8), "little")
        if declared != count or end - file.tell() != count * dtype.itemsize:
            raise Malformed(f"{name}: its storage has not the {count:,} numbers that it should have")
        self.held_bytes += count * dtype.itemsize
        if self.held_bytes > self.size:
            raise Malformed(f"{name}: more numbers than the file has room for")
        values = torch.empty(count, dtype=dtype)
        if count:
            file.readinto(values.view(torch.uint8).numpy())  # type: ignore[attr-defined]
        return values

    def plain(self, value: Any, where: str, depth: int = 0) -> Any:
        """Numbers, texts, lists and dictionaries; numpy's scalars become Python's."""
        self.values += 1
        if self.values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise Malformed(f"{where}: values are nested too deep, or too many")
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, list | tuple):
            return [self.plain(item, where, depth + 1) for item in value]
        if isinstance(value, dict):
            return {str(key): self.plain(item, where, depth + 1) for key, item in value.items()}
        if (
            _calls(value, _ENCODE, 2)
            and value.arguments[1] == "latin1"
            and isinstance(value.arguments[0], str)
        ):
            try:
                return value.arguments[0].encode("latin1")
            except UnicodeEncodeError:
                raise Malformed(f"{where}: bytes beyond Latin-1") from None
        if isinstance(value, Call) and (value.function.module, value.function.name) in _SCALARS:
            return self.scalar(value, where, depth)
        raise Malformed(f"{where}: not a plain value")

    def scalar(self, node: Call, where: str, depth: int) -> Any:
        dtype = node.arguments[0] if len(node.arguments) == 2 else None
        code = dtype.arguments[0] if isinstance(dtype, Call) and _calls(dtype, _DTYPE, 3) else None
        data = self.plain(node.arguments[1], where, depth + 1) if code in _NUMBERS else None
        state = dtype.state if isinstance(dtype, Call) else None
        little = isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|", "=")
        if not little or code is None or not isinstance(data, bytes) or len(data) != int(code[1:]):
            raise Malformed(f"{where}: not a number of numpy's")
        return np.frombuffer(data, np.dtype(code).newbyteorder("<"))[0].item()


def _calls(node: Any, function: tuple[str, str], *counts: int) -> bool:
    return (
        isinstance(node, Call)
        and (node.function.module, node.function.name) == function
        and len(node.arguments) in counts
    )


def _entries(state: Mapping[str, Any], kind: str, where: str) -> list[tuple[str, Any]]:
    entries = state.get(kind, {})
    if not isinstance(entries, dict) or not all(isinstance(key, str) for key in entries):
        raise Malformed(f"{where}: its {kind} are not a dictionary")
    return list(entries.items())


def _dense(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the strides, in some order of the dimensions, are those of a contiguous tensor."""
    if len(size) != len(stride):
        return False
    expected = 1
    for number, step in sorted(zip(size, stride, strict=True), key=lambda pair: (pair[1], pair[0])):
        if number > 1 and step != expected:
            return False
        expected *= number
    return True
