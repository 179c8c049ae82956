"""Pretrained teachers of any family: a folder of ours, their authors' files, the one that ships here."""

import hashlib
from collections.abc import Mapping, Set
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
from hkdpipe.trainer.teachers import families
from hkdpipe.trainer.teachers.families import UNFIT, TeacherArchitecture, TeacherNetwork
from hkdpipe.trainer.teachers.snapshots import read_snapshot

FORMAT = "hkdpipe-teacher"
_SNAPSHOT, _STATE_DICTS = ".pkl", (".pt", ".pth")
_FOLDER = "a folder with config.json and model.safetensors"


@dataclass(frozen=True)
class Teacher:
    """A frozen preconditioned network and where it comes from."""

    network: TeacherNetwork
    source: str
    about: dict[str, Any] = field(default_factory=dict)
    """Free facts carried into manifests: data set, licence, how it was trained."""

    @cached_property
    def sha256(self) -> str:
        """Of the weights as they are computed with: their names, shapes and values in single precision. A
        snapshot and what was imported from it are thus the same teacher."""
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
    def arch(self) -> TeacherArchitecture:
        return self.network.arch

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.arch.image_shape


def load_teacher(path: str | Path, device: torch.device | str = "cpu") -> Teacher:
    """Read a teacher; 'digits' names the one that ships. Weights of any precision are computed in float32.
    Nothing in a file is executed. InputError when it is not a teacher's or its weights do not fit."""
    place = asset("digits-teacher") if str(path) == "digits" else Path(path)
    if place.is_dir():
        return _from_folder(place, str(path), device)
    return Teacher(_from_file(place).to(device), str(path))


def _from_folder(folder: Path, source: str, device: torch.device | str) -> Teacher:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'config.json'}: not a teacher's configuration (format is not '{FORMAT}')"
        )
    try:
        network = families.empty(families.architecture_from_json(config["architecture"]))
    except UNFIT as error:
        raise InputError(f"{folder / 'config.json'}: architecture: {error}") from None
    weights = folder / "model.safetensors"
    tensors = read_weights(weights, network.state_dict())
    about = config.get("about", {})
    if not isinstance(about, dict):
        raise InputError(f"{folder / 'config.json'}: about: got {about!r}; accepted: a table")
    return Teacher(families.frozen(network, tensors).to(device), source, about)


def _from_file(file: Path) -> TeacherNetwork:
    """What the family makes of a file that recognises it."""
    owners = {suffix: family for family in families.families() for suffix in family.suffixes}
    if not file.is_file() or file.suffix not in {_SNAPSHOT, *_STATE_DICTS, *owners}:
        what = "not a teacher" if file.exists() else "no such teacher"
        raise InputError(f"{file}: {what}; accepted: 'digits', {_FOLDER}, {accepted_files()}")
    try:
        if file.suffix == _SNAPSHOT:
            of_class = {name: family for family in families.families() for name in family.classes}
            snapshot = read_snapshot(file, tuple(of_class))
            return of_class[snapshot.class_name].from_snapshot(snapshot)
        if file.suffix in _STATE_DICTS:
            return _from_state_dict(file)
        return owners[file.suffix].from_file(file)
    except UNFIT as error:
        raise InputError(f"{file}: not a network that hkdpipe knows: {error}") from None


def _from_state_dict(file: Path) -> TeacherNetwork:
    """The network of the first family that knows the names; what the first one says where none does."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is something else raises anything
        raise InputError(f"{file}: not a state dict ({first_line(error)})") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file}: not a state dict: accepted: a dictionary of tensors by their names")
    refusals: list[Exception] = []
    for family in families.families():
        try:
            return family.from_state_dict(state)
        except UNFIT as error:
            refusals.append(error)
    raise refusals[0]


def accepted_files() -> str:
    """The kinds of files of all families, in words."""
    return ", ".join(words for family in families.families() for words in family.files)


def save_teacher(folder: Path, network: TeacherNetwork, about: dict[str, Any], dtype: torch.dtype) -> None:
    """Write the folder that `load_teacher` reads, with weights of the given precision."""
    with atomic_folder(folder) as temporary:
        config = {"format": FORMAT, "version": 1, "architecture": network.arch.to_json(), "about": about}
        write_json(temporary / "config.json", config)
        weights = {name: value.to(dtype).contiguous() for name, value in network.state_dict().items()}
        (temporary / "model.safetensors").write_bytes(save(weights))


def read_weights(path: Path, like: dict[str, Tensor], optional: Set[str] = frozenset()) -> dict[str, Tensor]:
    """Tensors of a safetensors file with the names and shapes of `like`, in its types. Those named `optional`
    may be missing. InputError when the file is missing or damaged, or holds other tensors."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({str(error).splitlines()[0]})") from None
    try:
        missing = optional - tensors.keys()
        families.check_fit(tensors, {name: value for name, value in like.items() if name not in missing})
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return {name: value.to(like[name].dtype) for name, value in tensors.items()}
