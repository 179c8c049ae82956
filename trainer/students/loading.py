"""Students on disk: exports and checkpoints of any method, read without executing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hkdpipe.manifests.ground.atomic_files import read_json, sha256_file
from hkdpipe.manifests.ground.errors import InputError, Name, WrongValue
from hkdpipe.trainer.loop.checkpoint import read_state
from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.teacher import read_weights

Weights = str
"""'raw', 'ema' or 'ema-DECAY': the weights of a checkpoint, its main average or another."""


def load_model(folder: str | Path, device: torch.device | str = "cpu", weights: Weights = "ema") -> Student:
    """Load an export, or a checkpoint (of which `weights` says which ones), of any method, for sampling.
    InputError where the folder holds neither or a damaged one."""
    saved = saved_model(Path(folder), weights)
    model = student_of(saved)
    restore_weights(model, saved)
    return model.without_training_networks().eval().requires_grad_(False).to(device)


def student_of(saved: SavedModel) -> Student:
    """A student of that configuration, with new weights."""
    name = saved.config.get("method") if isinstance(saved.config, dict) else None
    known = methods()
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{saved.described}: not the configuration of a model; methods: {', '.join(known)}")
    student: Student = known[name].student_class.from_config(saved.config, saved.described)
    return student


def restore_weights(student: Student, saved: SavedModel) -> None:
    """Give the student the saved weights; of networks that only training needs, those that are there."""
    new = student.state_dict()
    optional = {name for name in new if student.is_training_only(name)}
    student.load_state_dict({**new, **read_weights(saved.weights, new, optional)})


@dataclass(frozen=True)
class SavedModel:
    """A student on disk."""

    config: Any
    described: Path
    """The file that holds the configuration."""
    weights: Path
    sha256: str
    """Of that file; '' where it is missing."""


def saved_model(folder: Path, weights: Weights) -> SavedModel:
    """What an export holds, or a checkpoint, once its files are checked. InputError where it is neither."""
    if (folder / "config.json").is_file():
        described, weights_file = folder / "config.json", folder / "model.safetensors"
        config = read_json(described)
        sha256 = sha256_file(weights_file) if weights_file.is_file() else ""
        # Exports of earlier versions name no checksum.
        checksum = config.get("sha256") if isinstance(config, dict) else None
        if checksum and sha256 and sha256 != checksum:
            raise InputError(f"{weights_file}: damaged (its checksum is not the one in config.json)")
        return SavedModel(config, described, weights_file, sha256)
    if (folder / "state.json").is_file():
        state = read_state(folder)
        names = {Path(name).stem for name in state["sha256"] if name.endswith(".safetensors")}
        known = sorted("raw" if name == "weights" else name for name in names)
        if weights not in known:
            raise WrongValue(Name("weights"), f": got '{weights}'; {folder} has {', '.join(known)}")
        file = f"{'weights' if weights == 'raw' else weights}.safetensors"
        return SavedModel(state.get("model"), folder / "state.json", folder / file, state["sha256"][file])
    raise InputError(
        f"{folder}: no such model; accepted: a checkpoint, or an export (a folder with config.json)"
    )
