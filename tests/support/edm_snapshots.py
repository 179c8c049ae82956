"""Snapshots in the layout that EDM's training writes, made of any torch modules by Python's own pickler.

EDM's own names are stood for by functions and classes of the same names, in `sys.modules` while pickling.
"""

import io
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

SOURCE = "raise SystemExit('the source text of a snapshot was run')\n" * 200


class EasyDict(dict[str, Any]):
    """EDM's dict."""


class Call:
    """An object that is pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduction = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduction


def persistent(class_name: str, state: dict[str, Any]) -> Call:
    """An object that is pickled as one of EDM's persistent classes."""
    meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}
    return Call(_reconstruct_persistent_obj, meta)


def snapshot(ema: Any, protocol: int = 4, location: str = "cpu", **beside: Any) -> bytes:
    """The pickle of a snapshot with the network `ema` and other entries beside it.

    Of each module the name of its class and all its attributes are written. location: where the tensors were.
    """
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, _STAND_INS):
        _Pickler(file, protocol, location).dump({"ema": ema, **beside})
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int, location: str) -> None:
        super().__init__(file, protocol)
        self.location = location.encode()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.storage.TypedStorage):
            load_from_bytes, (stream,) = obj.__reduce__()
            here, there = (b"X" + len(name).to_bytes(4, "little") + name for name in (b"cpu", self.location))
            assert stream.count(here) == 1
            return load_from_bytes, (stream.replace(here, there),)
        if isinstance(obj, nn.Module) and not isinstance(obj, nn.ModuleDict | nn.ModuleList | nn.Sequential):
            state = {"_init_args": (), "_init_kwargs": {}} | vars(obj)
            return persistent(type(obj).__name__, state).reduction
        return NotImplemented


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None: ...


def _module(name: str, *members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    for member in members:
        member.__module__ = name
        setattr(module, member.__name__, member)
    return module


_STAND_INS = {
    "torch_utils": _module("torch_utils"),
    "torch_utils.persistence": _module("torch_utils.persistence", _reconstruct_persistent_obj),
    "dnnlib": _module("dnnlib"),
    "dnnlib.util": _module("dnnlib.util", EasyDict),
}
