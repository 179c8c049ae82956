"""What is written of a training while it goes on: its numbers, and how it does on held-out trajectories."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hkdpipe.stages.shared.picture_grids import beside, grid
from hkdpipe.stages.shared.reporting import Advance, Reporter
from hkdpipe.stages.training.batch_reader import Reader
from hkdpipe.stages.training.metrics_log import MetricsLog
from hkdpipe.stages.training.running_distance import RunningDistance
from hkdpipe.stages.training.tensorboard_events import Events
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.loop.checkpoint import TrainingState
from hkdpipe.trainer.losses.distillation_loss import Batch
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.whitebox.koopman_skill import has_operator, koopman_skill, largest_eigenvalues

HELD_OUT = 256  # trajectories that a training is measured on
_PICTURED = 16


class Watch:
    """The tables (.csv) and TensorBoard's events of a training in `out`, as the loop calls for."""

    def __init__(
        self,
        out: Path,
        reading: Reader,
        seen: int,
        device: torch.device,
        reporter: Reporter,
        advance: Advance,
        check_owned: Callable[[], None],
        distance: RunningDistance | None = None,
    ) -> None:
        """Goes on at `seen`; what was written of later steps is dropped. `check_owned` raises where the
        folder is another process's now. `distance` is measured, too."""
        self._reading, self._device, self._reporter, self._advance = reading, device, reporter, advance
        self._check_owned = check_owned
        self._held_out = held_out(reading, device)
        self._metrics = MetricsLog(out / "metrics.csv", seen)
        self._validation = MetricsLog(out / "validation.csv", seen)
        self._distance = distance
        self._distances = MetricsLog(out / "distance.csv", seen)
        self._events = Events(out / "tensorboard", seen) if reading.training.tensorboard else None

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def log(self, seen: int, values: dict[str, float]) -> None:
        """The terms of the loss, and what else the loop says of a step."""
        self._check_owned()
        values = {**values, "replaced": self._reading.replaced(seen)}
        self._written("training", self._metrics, seen, values)
        shown = {"loss": values["loss"], "mse": values["mse"], "peak GB": _peak_memory(self._device) / 1e9}
        self._advance(seen, **shown)

    def score(self, state: TrainingState[Student]) -> float | None:
        """The one-step error of the averaged weights, or None; all that is measured of them is written."""
        self._check_owned()
        after = f"after {state.seen:,} trajectories:"
        if self._distance is not None:
            metric, found = self._distance.metric, self._distance(state.ema)
            self._written("distance", self._distances, state.seen, {metric: found})
            self._reporter.line(f"{after} {metric} {found:.2f}")
        if self._held_out is None:
            return None
        values, images = validate(state.ema, self._held_out)
        self._written("validation", self._validation, state.seen, values)
        if self._events is not None:
            ends = self._held_out.ends[:_PICTURED]
            pictures = [grid(some.cpu().numpy(), 4) for some in (images[:_PICTURED], ends)]
            picture = beside([*zip(("student", "teacher"), pictures, strict=True)])
            self._events.picture("held out", state.seen, picture)
        self._reporter.line(f"{after} one-step MSE on {len(images)} held-out ones {values['mse']:.4f}")
        return values["mse"]

    def _written(self, group: str, log: MetricsLog, seen: int, values: dict[str, float]) -> None:
        log.append(seen, values)
        if self._events is not None:
            self._events.scalars(group, seen, values)


@torch.inference_mode()
def validate(student: Student, batch: Batch) -> tuple[dict[str, float], Tensor]:
    """Numbers on held-out trajectories, and the images predicted from their starts.

    'mse'; of a student with operators, by level (the height H of its tensors): `skill_H`, the Koopman skill
    from the start, where the batch has a later state, and `alpha_H` and `beta_H`, the largest magnitudes.
    """
    images = student.predict(batch.states[:, 0], batch.sigmas[:, 0], batch.labels)
    values = {"mse": float(((images - batch.ends) ** 2).mean())}
    if has_operator(student):
        if batch.states.shape[1] > 1:
            skill = koopman_skill(student, batch.states, batch.sigmas[0].tolist(), batch.labels)
            values |= {f"skill_{level}": at_start for level, (at_start,) in skill.items()}
        for level, (alpha, beta) in largest_eigenvalues(student).items():
            values |= {f"alpha_{level}": alpha, f"beta_{level}": beta}
    return values, images.float()


def held_out(reader: Reader, device: torch.device) -> Batch | None:
    """Start, last state above sigma = 0 if that is another one, and end of up to HELD_OUT held-out
    trajectories; None where none are held out, or can be read."""
    archive = reader.archive
    indices = reader.undamaged(np.arange(min(HELD_OUT, reader.training.validation)))
    if not len(indices):
        return None
    end = len(archive.sigmas) - 1
    numbers = sorted({0, end - 1})
    states = torch.from_numpy(archive.read(indices, [*numbers, end]))
    sigmas = torch.from_numpy(archive.sigmas[numbers]).float().expand(len(indices), -1)
    labels = one_hot(archive.plan.labels(indices), archive.plan.label_dim)
    drawn = torch.tensor(numbers).expand(len(indices), -1)
    return Batch(states[:, :-1], drawn, sigmas, states[:, -1], labels).to(device)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU's memory, or of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
