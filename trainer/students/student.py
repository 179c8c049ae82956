"""What the methods share: a student's place beside its teacher, its loss, its files."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from hkdpipe.manifests.ground.atomic_files import atomic_folder, write_json
from hkdpipe.manifests.ground.errors import InputError, Name, UsageError, WrongValue
from hkdpipe.manifests.ground.sections import parse_section
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson, distillation_loss
from hkdpipe.trainer.settings.method_registry import Method
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers import families
from hkdpipe.trainer.teachers.families import TeacherArchitecture, TeacherNetwork

FORMAT = "hkdpipe-model"
Draw = Callable[[int], Tensor]
"""draw(k): unit noise (N, C, H, W) of step k of a sampling in several steps."""


class Student(nn.Module):
    """A one-step generator learned from a teacher's trajectories: the base of every method.

    A method says what its network is (`__init__`, `start_from`), what it predicts (`predict`), what its
    `forward` gives in training and, where they differ from what stands here, which states it reads
    (`draw_states`), its `loss`, its optimiser (`parameter_groups`, `optimizer`), what happens after a step
    (`after_step`), and how it samples (`sample`).
    """

    method: ClassVar[Method]
    """What its method declares."""
    between: ClassVar[bool] = True
    """Whether it predicts from states between the start and the end, too."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Networks by attribute that sampling does not need: in checkpoints, and not in exports."""

    def __init__(
        self, arch: TeacherArchitecture, options: Any, sigma_min: float, sigma_max: float, rho: float
    ) -> None:
        """`arch` is the teacher's, `options` the method's (an instance of `method.options`).

        `sigma_min`, `sigma_max`, `rho` are the schedule's of the trajectories learned from. A student has no
        dropout, is not told of augmentations, and computes in the precision that the training asks for.
        """
        super().__init__()
        self.arch = arch.of_students()
        self.options = options
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    @classmethod
    def from_teacher(
        cls,
        teacher: TeacherNetwork,
        options: Any = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> Self:
        """The student before its first step; `options` are the method's defaults unless given."""
        # Where the network knows a table of noise levels, trajectories start at one of them.
        start = teacher.round_sigma(torch.tensor([sigma_max], dtype=torch.float64)).item()
        student = cls(teacher.arch, options or cls.method.options(), sigma_min, start, rho)
        student.start_from(teacher)
        return student.to(next(teacher.parameters()).device)

    def start_from(self, teacher: TeacherNetwork) -> None:
        """Take what the method takes of the teacher's weights."""
        raise NotImplementedError

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The end of the trajectory that passes x (N, C, H, W) at sigma (N,); labels one-hot or None."""
        raise NotImplementedError

    def sample(
        self, noise: Tensor, labels: Tensor | None = None, steps: int = 1, draw: Draw | None = None
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] from unit noise, in so many network evaluations.

        With several, noise is added to a prediction and the trajectory's end predicted anew, from ever lower
        levels (multistep sampling of Consistency Models, arXiv 2303.01469, algorithm 1). `draw(k)` is the
        unit noise of step k = 1, 2, ..., by default torch's. UsageError where one step is all there is.
        """
        self.check_steps(steps)

        def predicted(x: Tensor, level: float) -> Tensor:
            sigma = torch.full(noise.shape[:1], level, dtype=self.dtype, device=noise.device)
            return self.predict(x, sigma, labels)

        images = predicted(noise.to(self.dtype) * self.sigma_max, self.sigma_max)
        for step, level in enumerate(self.step_levels(steps)[1:], 1):
            fresh = torch.randn_like(images) if draw is None else draw(step).to(images)
            images = predicted(images + (level**2 - self.sigma_min**2) ** 0.5 * fresh, level)
        return images

    def step_levels(self, steps: int) -> list[float]:
        """The noise levels that `sample` predicts from: sigma_max, then evenly down in the schedule's terms.
        That is Karras' schedule of steps + 1 points without its last one, sigma_min."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        below = [(high + step / steps * (low - high)) ** self.rho for step in range(1, steps)]
        return [self.sigma_max, *below]

    def check_steps(self, steps: int) -> None:
        """UsageError where the student cannot sample in so many network evaluations."""
        if steps != 1 and not (self.between and steps > 1):
            only_one = f"1, as {self.method.name} predicts from the start alone"
            accepted = "at least 1" if self.between else only_one
            raise WrongValue(Name("steps"), f": got {steps}; accepted: {accepted}")

    def folded(self, steps: int = 1) -> Self:
        """A copy for `sample` in so many steps alone, whose constants are computed beforehand."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def loss(self, module: nn.Module, batch: Batch, lesson: Lesson) -> dict[str, Tensor]:
        """Scalar terms, means over the batch; 'loss' is the one to descend. What needs a gradient is computed
        by calling `module`, which is this student, or it compiled; here it predicts as `predict` does."""
        return distillation_loss(module, batch, lesson)

    def draw_states(
        self, seed: int, positions: NDArray[np.int64], sigmas: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Numbers of the stored states to read beside the end, (B, s), by the samples' positions. `sigmas` (n
        + 1,) are those of the stored states. Here: the start alone."""
        return np.zeros((len(positions), 1), dtype=np.int64)

    def parameter_groups(self, training: TrainingSettings) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with its rate and weight decay."""
        rate, decay = training.learning_rate, training.weight_decay
        return [{"params": list(self.parameters()), "lr": rate, "weight_decay": decay}]

    def optimizer(self, training: TrainingSettings) -> torch.optim.Optimizer:
        """Of all that it learns, targets left out. A network that shall sit a step out must have no gradient
        in it, not a zero: Adam would move it."""
        return adam(self.parameter_groups(training), training)

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number `step`, from 1: targets and the like follow here."""

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
        sections = self.method.network_sections
        own = {section: dataclasses.asdict(getattr(self.options, section)) for section in sections}
        return {
            "format": FORMAT,
            "version": 1,
            "method": self.method.name,
            "architecture": self.arch.to_json(),
            **own,
            "schedule": {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho},
        }

    @classmethod
    def from_config(cls, config: Any, path: Path) -> Self:
        """The inverse of `config`, without weights. Raises InputError naming `path` if it is none."""
        method = cls.method
        wrong = f"{path}: not the configuration of a model of method '{method.name}'"
        try:
            if config["format"] != FORMAT or config["method"] != method.name:
                raise InputError(wrong)
            sections: dict[str, Any] = {
                section: parse_section(method.sections[section], config[section], section)
                for section in method.network_sections
            }
            options = method.options(**sections)
            return cls(families.architecture_from_json(config["architecture"]), options, **config["schedule"])
        except (*families.UNFIT, UsageError) as error:
            raise InputError(f"{wrong} ({error})") from None

    def save(
        self, folder: Path, about: dict[str, Any], complete: Callable[[Path], None] = lambda folder: None
    ) -> str:
        """Write the export that `load_model` reads: model.safetensors and config.json. `complete` adds to the
        folder before it appears. Returns the SHA-256 of the weights."""
        with atomic_folder(folder) as temporary:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
            kept = {name: value for name, value in weights.items() if not self.is_training_only(name)}
            data = save(kept)
            (temporary / "model.safetensors").write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            write_json(temporary / "config.json", {**self.config(), "sha256": sha256, "about": about})
            complete(temporary)
        return sha256

    def without_training_networks(self) -> Self:
        """Itself, less the networks that only training needs."""
        for name in self.training_only:
            setattr(self, name, None)
        return self

    def is_training_only(self, name: str) -> bool:
        """Whether a tensor of the state dict is one of a network that only training needs."""
        return name.partition(".")[0] in self.training_only


def adam(groups: list[dict[str, Any]], training: TrainingSettings) -> torch.optim.Optimizer:
    """Adam, which leaves weight decay beside the gradient, or in it."""
    kind = torch.optim.AdamW if training.weight_decay_form == "decoupled" else torch.optim.Adam
    return kind(groups, betas=(training.adam_betas[0], training.adam_betas[1]), fused=True)
