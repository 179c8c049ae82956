"""Pretrained EDM teachers: a folder with config.json and model.safetensors, or the one that ships here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hkdpipe.manifests.errors import InputError
from hkdpipe.manifests.files import atomic_folder, read_json, sha256_file, write_json
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.networks import UNFIT, Architecture, EDMPrecond

FORMAT = "hkdpipe-teacher"


@dataclass(frozen=True)
class Teacher:
    """A frozen preconditioned network and where it comes from."""

    network: EDMPrecond
    sha256: str
    """Of the weights' file."""
    source: str
    about: dict[str, Any] = field(default_factory=dict)
    """Free facts carried into manifests: data set, licence, how it was trained."""

    def __call__(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The denoised images. x (N, C, H, W), sigma scalar or (N,), labels (N, classes) one-hot or None."""
        return self.network(x, sigma, labels)

    @property
    def arch(self) -> Architecture:
        return self.network.arch

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.arch.img_channels, self.arch.img_resolution, self.arch.img_resolution)


def load_teacher(path: str | Path, device: torch.device | str = "cpu") -> Teacher:
    """Read a teacher; 'digits' names the one that ships. Weights of any precision are computed in float32.

    Raises InputError when the folder is not a teacher's or its weights do not fit its architecture.
    """
    folder = asset("digits-teacher") if str(path) == "digits" else Path(path)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such teacher; accepted: 'digits', a folder with config.json and model.safetensors"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'config.json'}: not a teacher's configuration (format is not '{FORMAT}')"
        )
    try:
        network = EDMPrecond(Architecture.from_json(config["architecture"]))
    except UNFIT as error:
        raise InputError(f"{folder / 'config.json'}: architecture: {error}") from None
    weights = folder / "model.safetensors"
    network.load_state_dict(read_weights(weights, network.state_dict()))
    network.eval().requires_grad_(False).to(device)
    return Teacher(network, sha256_file(weights), str(path), config.get("about", {}))


def save_teacher(folder: Path, network: EDMPrecond, about: dict[str, Any], dtype: torch.dtype) -> None:
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
    if different := set(tensors) ^ set(like):
        raise InputError(f"{path}: does not fit the network: tensor {min(different)} is missing or unknown")
    for name, value in tensors.items():
        if value.shape != like[name].shape:
            raise InputError(
                f"{path}: {name} has shape {tuple(value.shape)}, the network needs {tuple(like[name].shape)}"
            )
    return {name: value.to(like[name].dtype) for name, value in tensors.items()}
