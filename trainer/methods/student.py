"""What the methods share: a student's place beside its teacher, its loss, its files."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from hkdpipe.manifests.ground.atomic_files import atomic_folder, read_json, sha256_file, write_json
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import parse_section
from hkdpipe.trainer.loop.checkpoint import read_state
from hkdpipe.trainer.losses.distillation_loss import Batch, distillation_loss
from hkdpipe.trainer.losses.perceptual import Distance
from hkdpipe.trainer.methods.method_settings import MethodSettings
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.families import (
    UNFIT,
    TeacherArchitecture,
    TeacherNetwork,
    architecture_from_json,
)
from hkdpipe.trainer.teachers.teacher import read_weights

FORMAT = "hkdpipe-model"
Weights = str
"""'raw', 'ema' or 'ema-DECAY': the weights of a checkpoint, its main average or another."""


class Student(nn.Module):
    """A one-step generator learned from a teacher's trajectories: the base of every method.

    A method says what its network is (`__init__`, `start_from`), what it predicts (`predict`), what its
    `forward` gives in training and, where they differ from what stands here, which states it reads
    (`draw_states`), its `loss` and its `parameter_groups`.
    """

    name: ClassVar[str]
    """As in training.method."""
    section: ClassVar[str | None] = None
    """Of the configuration, with settings of type `settings_type`."""
    settings_type: ClassVar[type[MethodSettings]]
    between: ClassVar[bool] = True
    """Whether it predicts from states between the start and the end, too."""

    def __init__(
        self, arch: TeacherArchitecture, settings: Any, sigma_min: float, sigma_max: float, rho: float
    ) -> None:
        """`arch` is the teacher's, `settings` the method's (None where it has no section).

        `sigma_min`, `sigma_max`, `rho` are the schedule's of the trajectories learned from. A student has no
        dropout, is not told of augmentations, and computes in the precision that the training asks for.
        """
        super().__init__()
        self.arch = arch.of_students()
        self.settings = settings
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    @classmethod
    def from_teacher(
        cls,
        teacher: TeacherNetwork,
        settings: Any = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> Self:
        """The student before its first step."""
        # Where the network knows a table of noise levels, trajectories start at one of them.
        start = teacher.round_sigma(torch.tensor([sigma_max], dtype=torch.float64)).item()
        student = cls(teacher.arch, settings, sigma_min, start, rho)
        student.start_from(teacher)
        return student.to(next(teacher.parameters()).device)

    def start_from(self, teacher: TeacherNetwork) -> None:
        """Take what the method takes of the teacher's weights."""
        raise NotImplementedError

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The end of the trajectory that passes x (N, C, H, W) at sigma (N,); labels one-hot or None."""
        raise NotImplementedError

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """One-step images from unit noise (N, C, H, W)."""
        sigma = torch.full(noise.shape[:1], self.sigma_max, dtype=self.dtype, device=noise.device)
        return self.predict(noise.to(self.dtype) * self.sigma_max, sigma, labels)

    def folded(self) -> Self:
        """A copy for `sample` alone, whose constants are computed beforehand."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def loss(
        self,
        module: nn.Module,
        batch: Batch,
        distance: Distance | None,
        training: TrainingSettings,
        progress: float,
    ) -> dict[str, Tensor]:
        """Scalar terms, means over the batch; 'loss' is the one to descend.

        What needs a gradient is computed by calling `module`, which is this student, or it compiled; here it
        predicts as `predict` does.
        """
        return distillation_loss(module, batch, distance, training, progress)

    @staticmethod
    def draw_states(
        training: TrainingSettings, positions: NDArray[np.int64], sigmas: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Numbers of the stored states to read beside the end, (B, s), by the samples' positions.

        `sigmas` (n + 1,) are those of the stored states. Here: the start alone.
        """
        return np.zeros((len(positions), 1), dtype=np.int64)

    @staticmethod
    def evaluations(training: TrainingSettings) -> int:
        """Passes of a whole U-Net, forward and backward, that a trajectory takes in a step; here: one."""
        return 1

    def parameter_groups(self, training: TrainingSettings) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with its rate and weight decay."""
        return [
            {
                "params": list(self.parameters()),
                "lr": training.learning_rate,
                "weight_decay": training.weight_decay,
            }
        ]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.arch.image_shape

    @property
    def label_dim(self) -> int:
        """Classes that it knows; 0 of an unconditional one."""
        return self.arch.label_dim

    def config(self) -> dict[str, Any]:
        """All but the weights, as it stands in exports and checkpoints; JSON-serialisable."""
        own = {self.section: dataclasses.asdict(self.settings)} if self.section else {}
        return {
            "format": FORMAT,
            "version": 1,
            "method": self.name,
            "architecture": self.arch.to_json(),
            **own,
            "schedule": {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho},
        }

    @classmethod
    def from_config(cls, config: Any, path: Path) -> Self:
        """The inverse of `config`, without weights. Raises InputError naming `path` if it is none."""
        wrong = f"{path}: not the configuration of a model of method '{cls.name}'"
        try:
            if config["format"] != FORMAT or config["method"] != cls.name:
                raise InputError(wrong)
            settings = None
            if cls.section:
                settings = parse_section(cls.settings_type, config[cls.section], cls.section)
            return cls(architecture_from_json(config["architecture"]), settings, **config["schedule"])
        except (*UNFIT, UsageError) as error:
            raise InputError(f"{wrong} ({error})") from None

    def save(
        self, folder: Path, about: dict[str, Any], complete: Callable[[Path], None] = lambda folder: None
    ) -> str:
        """Write the export that `from_pretrained` reads: model.safetensors and config.json.

        `complete` adds to the folder before it appears. Returns the SHA-256 of the weights.
        """
        with atomic_folder(folder) as temporary:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
            data = save(weights)
            (temporary / "model.safetensors").write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            write_json(temporary / "config.json", {**self.config(), "sha256": sha256, "about": about})
            complete(temporary)
        return sha256

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", weights: Weights = "ema"
    ) -> Self:
        """Load an export, or a checkpoint (of which `weights` says which ones), for sampling.

        Raises InputError where the folder holds neither, a damaged one, or another method's.
        """
        return cls.restored(saved_model(Path(folder), weights), device)

    @classmethod
    def restored(cls, saved: SavedModel, device: torch.device | str) -> Self:
        """The model of a folder, for sampling."""
        model = cls.from_config(saved.config, saved.described)
        model.load_state_dict(read_weights(saved.weights, model.state_dict()))
        return model.eval().requires_grad_(False).to(device)


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
            raise UsageError(f"evaluation.weights: got '{weights}'; {folder} has {', '.join(known)}")
        file = f"{'weights' if weights == 'raw' else weights}.safetensors"
        return SavedModel(state.get("model"), folder / "state.json", folder / file, state["sha256"][file])
    raise InputError(
        f"{folder}: no such model; accepted: a checkpoint, or an export (a folder with config.json)"
    )
