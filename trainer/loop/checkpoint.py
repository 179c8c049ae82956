"""Training checkpoints: written whole or not at all, proved by checksums, read without executing anything."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hkdpipe.manifests.ground import atomic_files
from hkdpipe.manifests.ground.atomic_files import write_json
from hkdpipe.manifests.ground.errors import InputError, first_line
from hkdpipe.trainer.loop.loss_scale import LossScale
from hkdpipe.trainer.teachers.teacher import read_weights

STATE_VERSION = 2
"""Of state.json. 1: a training's identity was made of other settings."""
OPTIMIZER = "optimizer.pt"
FILES = ("weights.safetensors", "ema.safetensors", OPTIMIZER)
"""What every checkpoint holds beside state.json; further averages are ema-DECAY.safetensors."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class TrainingState(Generic[Model]):
    """All that an exact continuation needs: everything random is a function of (seed, position)."""

    model: Model
    averages: dict[float, Model]
    """By decay: copies of `model` whose weights are its running averages; the first is the main one."""
    optimizer: torch.optim.Optimizer
    skipped: Tensor
    """(2,) int64, on the model's device: steps that were not taken, in all and in a row up to now."""
    step: int = 0
    seen: int = 0
    """Trajectories (or images) seen, over all processes."""
    loss_scale: LossScale | None = None

    @property
    def ema(self) -> Model:
        return next(iter(self.averages.values()))

    @property
    def weights(self) -> dict[str, Model]:
        """The model and its averages by the names of their files."""
        main, *others = self.averages
        named = {f"ema-{decay}": self.averages[decay] for decay in others}
        all_of_them = {"weights": self.model, "ema": self.averages[main], **named}
        return {f"{name}.safetensors": model for name, model in all_of_them.items()}


@dataclass(frozen=True)
class Snapshot:
    """A training state in the host's memory, which the training does not touch."""

    step: int
    seen: int
    counts: dict[str, Any]
    """What else of it is numbers."""
    weights: dict[str, dict[str, Tensor]]
    """By file name."""
    optimizer: dict[str, Any]


def snapshot(state: TrainingState[Any]) -> Snapshot:
    """Copy a state, so that it can be written while the training goes on."""
    optimizer = state.optimizer.state_dict()
    # Pickle writes a name once for each object that has it: restored slots, and those that a parameter got
    # later, would else not make the file that an undisturbed training writes.
    slots = {
        number: {sys.intern(name): value.to("cpu", copy=True) for name, value in slot.items()}
        for number, slot in optimizer["state"].items()
    }
    scale = {} if state.loss_scale is None else {"loss_scale": state.loss_scale.numbers()}
    return Snapshot(
        state.step,
        state.seen,
        {"skipped": state.skipped.tolist(), **scale},
        {name: _copied(model) for name, model in state.weights.items()},
        {"state": slots, "param_groups": optimizer["param_groups"]},
    )


def save_checkpoint(
    folder: Path,
    taken: Snapshot,
    about: dict[str, Any],
    keep: int,
    check_owned: Callable[[], None] = lambda: None,
) -> Path:
    """Write `folder`/step-NNNNNNNN; delete all but the `keep` newest and the best. Returns its path.

    The best is that of the lowest "score" in `about`. `check_owned` is called before it is put in place:
    raises where the folder is another process's now. Later steps than the snapshot's are damaged checkpoints
    that resuming passed over: they go too.
    """
    path = folder / f"step-{taken.step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_files.atomic_folder(path, check_owned) as temporary:
        for name, weights in taken.weights.items():
            (temporary / name).write_bytes(save(weights))
        (temporary / OPTIMIZER).write_bytes(_pickled(taken.optimizer))
        checksums = {name: atomic_files.sha256_file(temporary / name) for name in (*taken.weights, OPTIMIZER)}
        position = {"step": taken.step, "seen": taken.seen, **taken.counts}
        told = {"version": STATE_VERSION, **position, "sha256": checksums, **about}
        write_json(temporary / "state.json", told)
    found = checkpoints(folder)
    here = found.index(path) + 1
    kept = {*found[max(0, here - keep) : here], best_checkpoint(found[:here])}
    for old in found:
        if old not in kept:
            atomic_files.remove_folder(old)
    return path


def best_checkpoint(paths: Sequence[Path]) -> Path | None:
    """The one with the lowest score; None where none was scored."""
    scores: dict[Path, float] = {}
    for path in paths:
        with contextlib.suppress(InputError):
            score = atomic_files.read_json(path / "state.json").get("score")
            if isinstance(score, float):
                scores[path] = score
    return min(scores, key=lambda path: scores[path], default=None)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json after its files were checked. Raises InputError if one is damaged."""
    state = atomic_files.read_json(path / "state.json")
    try:
        checksums, _, _ = state["sha256"], int(state["step"]), int(state["seen"])
        _, _ = map(int, state["skipped"])
        expected = {name: checksums[name] for name in [*FILES, *checksums]}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path / 'state.json'}: not the state of a checkpoint") from None
    for name, checksum in expected.items():
        if not (path / name).is_file():
            raise InputError(f"{path / name}: missing")
        if atomic_files.sha256_file(path / name) != checksum:
            raise InputError(f"{path / name}: damaged (its checksum is not the recorded one)")
    return dict(state)


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state; damaged ones are reported and passed over. Returns None
    where there is none. InputError if there are some and all are damaged."""
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
    for name, model in state.weights.items():
        model.load_state_dict(read_weights(path / name, model.state_dict()))
    try:
        optimizer = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
        state.optimizer.load_state_dict(optimizer)
    except Exception as error:  # unpickling what is something else raises anything
        raise InputError(f"{path / OPTIMIZER}: not the optimiser's state ({first_line(error)})") from None
    # A fused step goes through memory: moments must lie there as their weights do now (`channels_last`).
    for parameter, slots in state.optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)
    state.step, state.seen = saved["step"], saved["seen"]
    state.skipped = state.skipped.new_tensor(saved["skipped"])
    if state.loss_scale is not None:
        state.loss_scale.restore(saved["loss_scale"])


def _pickled(values: Any) -> bytes:
    # torch's own writing to a file says nothing about a full disk.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}
