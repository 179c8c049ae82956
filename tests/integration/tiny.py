"""A teacher, settings and inputs so small that a whole stage takes about a second."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hkdpipe.stages.evaluation.evaluate import evaluate
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent, Summary
from hkdpipe.stages.teachers.train_teacher import train_teacher
from hkdpipe.stages.training.train import train
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions, KdmSettings
from hkdpipe.trainer.settings.method_registry import NoOptions
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import save_teacher

ARCHITECTURE = Architecture(8, 1, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
# Three shards, the last one partial; batches that do not divide it.
GENERATION = GenerationSettings(count=20, steps=3, shard_size=8, batch_size=3)
TRAINING = TrainingSettings(
    budget=48,
    batch_size=4,
    validation=4,
    perceptual="digits",
    schedule="cosine",
    gradient_clip=10.0,
    ema=(0.9,),
    checkpoint_every=12,
)
KOOPMAN = KoopmanSettings(learning_rate_factor=2.0)
KDM = KdmSettings(width=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), operator="factorised")
OPTIONS: dict[str, Any] = {"hkd": HkdOptions(koopman=KOOPMAN), "kd": NoOptions(), "kdm": KdmOptions(KDM)}
EVALUATION = EvaluationSettings(samples=10, batch_size=4, teacher_steps=(3, 2))
TEACHER_TRAINING = TeacherTrainingSettings(
    model_channels=16, channel_mult=(1, 2), iterations=8, batch_size=4, checkpoint_every=2
)
WORK: dict[str, Any] = {"device": torch.device("cpu"), "reporter": Silent(), "stop": lambda: False}


@dataclass(frozen=True)
class Inputs:
    """A teacher, its archive in both forms and a training on it, in one folder."""

    folder: Path
    label_dim: int = 0

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def training(self) -> Path:
        return self.folder / "training"

    def archive(self, form: str = "zarr") -> Path:
        return self.folder / f"archive-{form}"

    def make(self) -> None:
        make_teacher(self.teacher, 0, self.label_dim)
        for form in ("zarr", "webdataset"):
            generate_tiny(self, self.archive(form), form)
        train_tiny(self, self.training)


def make_teacher(folder: Path, seed: int, label_dim: int = 0) -> None:
    """An untrained teacher that answers finitely to every noise level, and not with nearly nothing.

    One that knows classes says they are digits, so that they are judged as such.
    """
    torch.manual_seed(seed)
    network = PreconditionedUNet(replace(ARCHITECTURE, label_dim=label_dim))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_teacher(folder, network, {"dataset": "digits" if label_dim else "none"}, torch.float32)


def generate_tiny(inputs: Inputs, out: Path, form: str = "zarr") -> None:
    generate(str(inputs.teacher), out, replace(GENERATION, format=form), **WORK)


def train_tiny(inputs: Inputs, out: Path, form: str = "zarr", training: TrainingSettings = TRAINING) -> None:
    archive = inputs.archive(form)
    options = OPTIONS[training.method]
    train(str(inputs.teacher), archive, out, training, options, world=World(), evaluation=EVALUATION, **WORK)


def evaluate_tiny(
    inputs: Inputs, out: Path, settings: EvaluationSettings = EVALUATION, world: World | None = None
) -> Summary:
    given = str(inputs.teacher), inputs.archive(), inputs.training / "checkpoints"
    return evaluate(*given, out, out / "export", settings, world=world or World(), **WORK)


def train_teacher_tiny(inputs: Inputs, out: Path) -> None:
    train_teacher("digits", out, TEACHER_TRAINING, **WORK)


STAGES: dict[str, Callable[[Inputs, Path], object]] = {
    "generate-zarr": generate_tiny,
    "generate-webdataset": lambda inputs, out: generate_tiny(inputs, out, "webdataset"),
    "train": train_tiny,
    "train-kd": lambda inputs, out: train_tiny(inputs, out, training=replace(TRAINING, method="kd")),
    "train-kdm": lambda inputs, out: train_tiny(inputs, out, training=replace(TRAINING, method="kdm")),
    "evaluate": evaluate_tiny,
    "train-teacher": train_teacher_tiny,
}


def settings(**sections: Any) -> list[str]:
    """The options --set that make the default configuration these sections."""
    options = []
    for section, values in sections.items():
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            if value != field.default:
                options += ["--set", f"{section}.{field.name}={json.dumps(value)}"]
    return options


def whole(inputs: Inputs) -> list[str]:
    """The options that make a run from the tiny teacher as tiny in all its stages."""
    return [
        "--set",
        f"teacher.source={inputs.teacher}",
        *settings(generation=GENERATION, training=TRAINING, koopman=KOOPMAN, evaluation=EVALUATION),
    ]
