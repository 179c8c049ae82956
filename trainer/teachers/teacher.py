"""Pretrained EDM teachers: a folder of ours, EDM's snapshots, state dicts, the one that ships here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hkdpipe.manifests.ground.atomic_files import atomic_folder, read_json, write_json
from hkdpipe.manifests.ground.errors import InputError, first_line
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.networks import UNFIT, Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.edm_architecture import (
    architecture_of_snapshot,
    architecture_of_state_dict,
    check_layers,
)
from hkdpipe.trainer.teachers.edm_pickle import read_snapshot

FORMAT = "hkdpipe-teacher"
_SNAPSHOTS, _STATE_DICTS = (".pkl",), (".pt", ".pth")
_ACCEPTED = (
    "'digits', a folder with config.json and model.safetensors, a snapshot of EDM's (.pkl), "
    "a state dict of an EDM network (.pt, .pth)"
)


@dataclass(frozen=True)
class Teacher:
    """A frozen preconditioned network and where it comes from."""

    network: PreconditionedUNet
    source: str
    about: dict[str, Any] = field(default_factory=dict)
    """Free facts carried into manifests: data set, licence, how it was trained."""

    @cached_property
    def sha256(self) -> str:
        """Of the weights as they are computed with: their names, shapes and values in single precision.

        A snapshot and what was imported from it are thus the same teacher.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.float().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The denoised images. x (N, C, H, W), sigma scalar or (N,), labels (N, classes) one-hot or None."""
        return self.network(x, sigma, labels)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows."""
        return self.network.round_sigma(sigma)

    @property
    def arch(self) -> Architecture:
        return self.network.arch

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.arch.img_channels, self.arch.img_resolution, self.arch.img_resolution)


def load_teacher(path: str | Path, device: torch.device | str = "cpu") -> Teacher:
    """Read a teacher; 'digits' names the one that ships. Weights of any precision are computed in float32.

    Nothing in a file is executed. Raises InputError when it is not a teacher's or its weights do not fit.
    """
    place = asset("digits-teacher") if str(path) == "digits" else Path(path)
    if place.is_dir():
        return _from_folder(place, str(path), device)
    if not place.is_file() or place.suffix not in _SNAPSHOTS + _STATE_DICTS:
        what = "not a teacher" if place.exists() else "no such teacher"
        raise InputError(f"{place}: {what}; accepted: {_ACCEPTED}")
    network = _from_snapshot(place) if place.suffix in _SNAPSHOTS else _from_state_dict(place)
    return Teacher(network.to(device), str(path))


def _from_folder(folder: Path, source: str, device: torch.device | str) -> Teacher:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'config.json'}: not a teacher's configuration (format is not '{FORMAT}')"
        )
    try:
        arch = Architecture.from_json(config["architecture"])
        with torch.device("meta"):
            network = PreconditionedUNet(arch)
    except UNFIT as error:
        raise InputError(f"{folder / 'config.json'}: architecture: {error}") from None
    weights = folder / "model.safetensors"
    tensors = read_weights(weights, network.state_dict())
    about = config.get("about", {})
    if not isinstance(about, dict):
        raise InputError(f"{folder / 'config.json'}: about: got {about!r}; accepted: a table")
    return Teacher(_frozen(network, tensors).to(device), source, about)


def _from_snapshot(file: Path) -> PreconditionedUNet:
    snapshot = read_snapshot(file)
    try:
        network = _build(architecture_of_snapshot(snapshot), snapshot.state_dict)
        check_layers(network, snapshot.modules)
    except UNFIT as error:
        raise InputError(f"{file}: not a network that hkdpipe knows: {error}") from None
    return network


def _from_state_dict(file: Path) -> PreconditionedUNet:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is something else raises anything
        raise InputError(f"{file}: not a state dict ({first_line(error)})") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file}: not a state dict: accepted: a dictionary of tensors by their names")
    try:
        network = _build(architecture_of_state_dict(state), state)
        check_layers(network, {})
    except UNFIT as error:
        raise InputError(f"{file}: not a network that hkdpipe knows: {error}") from None
    return network


def _build(arch: Architecture, state: Mapping[str, Tensor]) -> PreconditionedUNet:
    """The network with these weights. Raises ValueError where names or shapes are not its own."""
    with torch.device("meta"):
        network = PreconditionedUNet(arch)
    _check_fit(state, network.state_dict())
    return _frozen(network, state)


def _frozen(network: PreconditionedUNet, state: Mapping[str, Tensor]) -> PreconditionedUNet:
    """A network on the meta device takes these tensors, in single precision, as its own."""
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def save_teacher(
    folder: Path, network: PreconditionedUNet, about: dict[str, Any], dtype: torch.dtype
) -> None:
    """Write the folder that `load_teacher` reads, with weights of the given precision."""
    with atomic_folder(folder) as temporary:
        config = {"format": FORMAT, "version": 1, "architecture": network.arch.to_json(), "about": about}
        write_json(temporary / "config.json", config)
        weights = {name: value.to(dtype).contiguous() for name, value in network.state_dict().items()}
        (temporary / "model.safetensors").write_bytes(save(weights))


def read_weights(path: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file with exactly the names and shapes of `like`, in its types.

    Raises InputError when the file is missing or damaged, or holds other tensors.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({str(error).splitlines()[0]})") from None
    try:
        _check_fit(tensors, like)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return {name: value.to(like[name].dtype) for name, value in tensors.items()}


def _check_fit(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    if different := set(tensors) ^ set(like):
        raise ValueError(f"does not fit the network: tensor {min(different)} is missing or unknown")
    for name, value in tensors.items():
        if value.shape != like[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the network needs {tuple(like[name].shape)}"
            )
