"""Training snapshots in EDM's layout (network-snapshot-*.pkl, published networks) as plain data; none is run.

A snapshot is a pickled dict with the network `ema`. Each of its modules carries its own source text, which
EDM's code executes on loading; here the text is skipped. The layout is what EDM's `torch_utils.persistence`
makes of torch's modules.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.teachers.inert_arrays import StoredTensor, array_vocabulary
from hkdpipe.trainer.teachers.inert_pickle import Allowance, Instance, Refused, Vocabulary, load

_OBJECTS = 500_000
"""Units of `inert_pickle.load` (some 100 bytes each) for all that is made of a file; a network of 55.7 M
parameters takes about 120,000."""
_DEEPEST = 16
"""Modules in modules, lists in lists."""


@dataclass(frozen=True)
class Snapshot:
    """The network `ema` of a snapshot. Names are dotted as in torch's state dicts."""

    class_name: str
    """Of the preconditioner."""
    init_kwargs: dict[str, Any]
    """What the preconditioner was made with, as plain Python values."""
    attributes: dict[str, Any]
    """The preconditioner's public attributes: sigma_min, sigma_max, sigma_data, beta_d, M, use_fp16, ..."""
    modules: dict[str, dict[str, Any]]
    """Of every module below the preconditioner, 'class_name' and its public attributes; a parameter, buffer
    or module that is absent is an attribute None."""
    state_dict: dict[str, Tensor]
    """Parameters and persistent buffers, contiguous, on the CPU, in the stored precision."""


def read_snapshot(path: Path, classes: Sequence[str]) -> Snapshot:
    """Read a snapshot of a network of one of `classes`, whatever modules these were made from.

    Only `ema` is kept; what lies beside it is read as inertly and dropped.

    Takes about as much memory as the file has bytes, never more than twice that and 100 MB.

    Raises InputError when the file is missing or damaged, or asks for anything that no snapshot needs.
    """
    try:
        # Opening a pipe would wait for ever.
        if not path.is_file():
            raise InputError(f"{path}: {'not a file' if path.exists() else 'missing'}")
        with path.open("rb") as stream:
            return _read(stream, os.fstat(stream.fileno()).st_size, classes)
    except Refused as error:
        raise InputError(f"{path}: not an EDM snapshot: {_one_line(str(error))}") from None
    except OSError as error:
        raise InputError(f"{path}: not readable ({error.strerror})") from None


def _one_line(words: str) -> str:
    """The words may quote what the file says, of any length and with any characters."""
    printable = ascii(words)[1:-1]
    return printable if len(printable) < 240 else f"{printable[:160]}...{printable[-70:]}"


def _read(stream: BufferedIOBase, size: int, classes: Sequence[str]) -> Snapshot:
    allowance = Allowance(_OBJECTS, "it holds more objects than any EDM snapshot")
    top = load(stream, size, _vocabulary(size, allowance), allowance)
    if stream.tell() != size:
        raise Refused(f"it goes on after its end, at byte {stream.tell()}")
    match top:
        case {"ema": Instance() as ema}:
            pass
        case _:
            raise Refused("it has no network 'ema'")
    if ema.class_name not in classes:
        raise Refused(f"its network is a {ema.class_name}; accepted: {', '.join(classes)}")
    network = _Network(allowance)
    network.add(ema, "", 0)
    if ema.state.get("_init_args", ()) != ():
        raise Refused("its network was made with arguments that have no names (_init_args)")
    init_kwargs = network.plain(ema.state.get("_init_kwargs"), "_init_kwargs", 0)
    if not isinstance(init_kwargs, dict):
        raise Refused("_init_kwargs of its network is no dict")
    attributes = network.modules.pop("")
    del attributes["class_name"]
    return Snapshot(ema.class_name, init_kwargs, attributes, network.modules, network.read_tensors(size))


def _vocabulary(size: int, allowance: Allowance) -> Vocabulary:
    containers = {
        ("torch.nn.modules.container", name): partial(_empty_module, name)
        for name in ("ModuleDict", "ModuleList", "Sequential")
    }
    return {
        **array_vocabulary(size, allowance),
        **containers,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        ("collections", "OrderedDict"): _empty_dict,
        ("dnnlib.util", "EasyDict"): _empty_dict,
        ("builtins", "set"): _set,
        ("__builtin__", "set"): _set,
    }


def _persistent(arguments: tuple[Any, ...]) -> Instance:
    match arguments:
        case ({"type": "class", "class_name": str() as class_name, "state": dict() as state},):
            return Instance(class_name, state)
    raise Refused("it holds a persistent object that is not laid out as EDM does")


def _empty_module(class_name: str, arguments: tuple[Any, ...]) -> Instance:
    """Its state follows."""
    if arguments:
        raise Refused(f"it makes a {class_name} with arguments")
    return Instance(class_name)


def _empty_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Its items follow."""
    if arguments:
        raise Refused("it makes an OrderedDict or EasyDict with arguments")
    return {}


def _set(arguments: tuple[Any, ...]) -> list[Any]:
    match arguments:
        case (list() as items,):
            return items
    raise Refused("it makes a set of something else than a list")


@dataclass(frozen=True)
class _Network:
    """What has been found in a network's modules. What is shared in the file is walked as often as it is
    reached, so every step spends of the allowance."""

    allowance: Allowance
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)

    def add(self, module: Instance, name: str, depth: int) -> None:
        """A module and, in the order of torch's state dicts, all below it."""
        state = module.state
        if not isinstance(state, dict):
            raise Refused(f"module '{name}' has no state")
        if depth > _DEEPEST:
            raise Refused(f"its modules are nested more than {_DEEPEST} deep")
        self.allowance.spend(4 + len(state))
        attributes = self.modules[name] = {
            key: self.plain(value, key, 0)
            for key, value in state.items()
            if not key.startswith("_") and key != "training"
        }
        attributes["class_name"] = module.class_name
        transient = self.transient(state)
        for kind in ("_parameters", "_buffers", "_modules"):
            for key, value in self.members(state, kind):
                full = f"{name}.{key}" if name else key
                self.allowance.spend(2 + len(full) // 32)
                if value is None:
                    attributes[key] = None
                elif not isinstance(value, Instance if kind == "_modules" else StoredTensor):
                    raise Refused(f"'{full}' does not belong into {kind}")
                elif isinstance(value, Instance):
                    self.add(value, full, depth + 1)
                elif full in self.tensors:
                    raise Refused(f"'{full}' is a parameter and a buffer")
                elif key not in transient:
                    # What torch takes for a tensor beside its values.
                    self.allowance.spend(10)
                    self.tensors[full] = value

    def members(self, state: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
        members = state.get(kind, {})
        if not isinstance(members, dict):
            raise Refused(f"{kind} of a module is no dict")
        for key in members:
            if not key or "." in key:
                raise Refused(f"'{key}' in {kind} is no name")
        return list(members.items())

    def transient(self, state: dict[str, Any]) -> set[str]:
        """The buffers that torch leaves out of state dicts."""
        names = state.get("_non_persistent_buffers_set", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refused("_non_persistent_buffers_set of a module is no set of names")
        self.allowance.spend(len(names))
        return set(names)

    def plain(self, value: Any, name: str, depth: int) -> Any:
        """A copy of numbers, texts, None and their lists, tuples and dicts; Refused for anything else."""
        self.allowance.spend(1)
        if depth > _DEEPEST:
            raise Refused(f"attribute '{name}' is nested more than {_DEEPEST} deep")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.plain(item, name, depth + 1) for item in value)
        if isinstance(value, dict):
            return {key: self.plain(item, name, depth + 1) for key, item in value.items()}
        raise Refused(f"attribute '{name}' is neither a number nor a text nor made of these")

    def read_tensors(self, size: int) -> dict[str, Tensor]:
        """The values of all tensors, from a file of `size` bytes. A tensor of two names stays one."""
        room = Allowance(size, "its tensors take more memory than the file")
        once = {id(tensor): tensor for tensor in self.tensors.values()}
        read = {key: tensor.read(room) for key, tensor in once.items()}
        return {name: read[id(tensor)] for name, tensor in self.tensors.items()}
