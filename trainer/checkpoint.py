"""Training checkpoints: written whole or not at all, proved by checksums, read without executing anything."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hkdpipe.manifests.errors import InputError
from hkdpipe.manifests.files import atomic_folder, read_json, remove_folder, sha256_file, write_json
from hkdpipe.trainer.teacher import read_weights

FILES = ("weights.safetensors", "ema.safetensors", "optimizer.pt")


Model = TypeVar("Model", bound=nn.Module)


@dataclass
class TrainingState(Generic[Model]):
    """All that an exact continuation needs: everything random is a function of (seed, position)."""

    model: Model
    ema: Model
    """A copy of `model` whose weights are its running average."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    seen: int = 0
    """Trajectories (or images) seen, over all processes."""


def save_checkpoint(
    folder: Path,
    state: TrainingState[Any],
    about: dict[str, Any],
    keep: int,
    check_owned: Callable[[], None] = lambda: None,
) -> Path:
    """Write `folder`/step-NNNNNNNN and delete all but the `keep` newest. Returns its path.

    `check_owned` is called before it is put in place: raises where the folder is another process's now.
    Later steps than the state's are damaged checkpoints that resuming passed over: they go too.
    """
    path = folder / f"step-{state.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(path, check_owned) as temporary:
        (temporary / "weights.safetensors").write_bytes(save(_tensors(state.model)))
        (temporary / "ema.safetensors").write_bytes(save(_tensors(state.ema)))
        (temporary / "optimizer.pt").write_bytes(_pickled(state.optimizer.state_dict()))
        checksums = {name: sha256_file(temporary / name) for name in FILES}
        write_json(
            temporary / "state.json",
            {"version": 1, "step": state.step, "seen": state.seen, "sha256": checksums, **about},
        )
    found = checkpoints(folder)
    here = found.index(path) + 1
    for old in [*found[: max(0, here - keep)], *found[here:]]:
        remove_folder(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json after its files were checked. Raises InputError if one is damaged."""
    state = read_json(path / "state.json")
    try:
        checksums, _, _ = state["sha256"], int(state["step"]), int(state["seen"])
        expected = {name: checksums[name] for name in FILES}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path / 'state.json'}: not the state of a checkpoint") from None
    for name, checksum in expected.items():
        if not (path / name).is_file():
            raise InputError(f"{path / name}: missing")
        if sha256_file(path / name) != checksum:
            raise InputError(f"{path / name}: damaged (its checksum is not the recorded one)")
    return dict(state)


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state; damaged ones are reported and passed over.

    Returns None where there is none. Raises InputError if there are some and all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return path, read_state(path)
        except InputError as error:
            warn(f"checkpoint passed over: {error}")
    if found:
        raise InputError(f"{folder}: every checkpoint is damaged; delete the folder to train from the start")
    return None


def restore(path: Path, state: TrainingState[Any], saved: dict[str, Any]) -> None:
    """Load a checkpoint that `read_state` has checked into the state. InputError if it does not fit."""
    state.model.load_state_dict(read_weights(path / "weights.safetensors", state.model.state_dict()))
    state.ema.load_state_dict(read_weights(path / "ema.safetensors", state.ema.state_dict()))
    try:
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(optimizer)
    except Exception as error:  # unpickling what is something else raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path / 'optimizer.pt'}: not the optimiser's state ({reason})") from None
    state.step, state.seen = saved["step"], saved["seen"]


def _pickled(values: Any) -> bytes:
    # torch's own writing to a file says nothing about a full disk.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
