"""Stage 2: train a student from an archive of trajectories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.manifests.ground.atomic_files import make_folders, remove_temporaries, sha256_file
from hkdpipe.manifests.ground.claims import owning
from hkdpipe.manifests.ground.errors import InputError, Name, UsageError, WrongValue
from hkdpipe.manifests.ground.sections import digest, of_kind
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.shared.reporting import Reporter, Summary
from hkdpipe.stages.shared.stage_state import newest_state
from hkdpipe.stages.training.batch_reader import Reader
from hkdpipe.stages.training.running_distance import RunningDistance
from hkdpipe.stages.training.watching import Watch
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.loop.checkpoint import TrainingState, checkpoints
from hkdpipe.trainer.loop.distributed import connected, sum_over_processes
from hkdpipe.trainer.loop.training_loop import Callbacks, LoopSettings, fit, new_state, resume
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.losses.distillation_loss import Batch
from hkdpipe.trainer.losses.perceptual import BACKBONES, Distance, backbone_file, perceptual_distance
from hkdpipe.trainer.methods.hkd.hkd_settings import check_without_states_between
from hkdpipe.trainer.methods.method_settings import MethodSettings
from hkdpipe.trainer.methods.registry import METHODS, load_model
from hkdpipe.trainer.methods.student import Student, saved_model
from hkdpipe.trainer.numbers.precision import tf32
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher


def train(
    teacher: str,
    archive: Path | str,
    out: Path,
    training: TrainingSettings,
    options: MethodSettings | None,
    *,
    device: torch.device,
    world: World,
    reporter: Reporter,
    stop: Callable[[], bool],
    evaluation: EvaluationSettings | None = None,
) -> Summary:
    """Train in `out` (checkpoints/, metrics.csv) until the budget is seen, from where it was interrupted.

    `options` are the settings of the method's own section, None where it has none; `evaluation` are those of
    the distance that training.fd_images asks for. Every process of `world` calls this with the same
    arguments. Raises UsageError where `out` holds another training or the archive is another teacher's.
    """
    if training.batch_size % world.size:
        accepted = f": got {training.batch_size}; accepted: a multiple of the {world.size} processes"
        raise WrongValue(Name("batch_size", TrainingSettings), accepted)
    loaded = load_teacher(teacher, device)
    with open_archive(archive, check_sizes=training.on_damage == "stop") as trajectories:
        check_archive(trajectories, loaded, training, archive)
        distance = perceptual_distance(
            training.perceptual,
            training.perceptual_file,
            loaded.arch.img_channels,
            device,
            WEIGHTS.get(training.precision, torch.float32),
            training.perceptual_size,
        )
        make_folders(out)
        started = started_from(training, out / "checkpoints")
        identity = training_identity(trajectories, training, options, started)
        with (
            _owned_by_first(out, world) as check_owned,
            connected(world, device),
            tf32(training.precision == "tf32"),
        ):
            begun = bool(checkpoints(out / "checkpoints"))
            settings = replace(training, init_from="") if begun else training
            state = new_student(loaded, trajectories, settings, options, device)
            resume_in(out, state, identity, reporter)
            did_nothing = state.seen >= training.budget
            replaced = 0
            if not did_nothing:
                running = None
                if training.fd_images and world.first:
                    measured = evaluation or EvaluationSettings()
                    running = RunningDistance(trajectories, measured, training.fd_images, device)
                with closing(Reader(trajectories, training, reporter.warn)) as reading, ExitStack() as stack:
                    callbacks = Callbacks(stop)
                    if world.first:
                        advance = stack.enter_context(
                            reporter.phase("training", training.budget, "trajectories", state.seen)
                        )
                        watch = Watch(out, reading, state.seen, device, reporter, advance, running)
                        callbacks = _watching(stack.enter_context(closing(watch)), stop, check_owned)
                    origin = {"identity": identity, "init_from": started}
                    _fit(state, reading, distance, origin, out, world, device, callbacks)
                replaced = sum_over_processes(reading.replaced(state.seen), world)
    checkpoint = checkpoints(out / "checkpoints")[-1]
    trained_on = len(trajectories) - training.validation
    epochs = state.seen / trained_on
    return Summary(
        title="train",
        rows=(
            ("method", training.method),
            ("trajectories seen", f"{state.seen:,} ({epochs:.1f} passes over {trained_on:,})"),
            ("steps", f"{state.step:,} of {training.batch_size}, {world.size} process(es)"),
            *([("trajectories replaced", f"{replaced:,}, of damaged shards")] if replaced else []),
            ("checkpoint", str(checkpoint)),
        ),
        files=(checkpoint, out / "metrics.csv"),
        next_commands=(
            f"hkdpipe evaluate --checkpoint {out / 'checkpoints'} --archive {archive} --teacher {teacher} "
            "--out EVALUATION",
        ),
        data={"checkpoint": str(checkpoint), "seen": state.seen, "steps": state.step, "replaced": replaced},
        did_nothing=did_nothing,
    )


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {"float64": torch.float64}
"""The type of the weights by training.precision, if it is not float32."""


def check_archive(archive: Archive, teacher: Teacher, training: TrainingSettings, path: Path | str) -> None:
    """Raises UsageError where the archive is another teacher's, or holds too little for the settings."""
    made_with = archive.plan.teacher["sha256"]
    if made_with != teacher.sha256:
        raise UsageError(
            f"{path}: made with another teacher (SHA-256 {made_with[:12]}...) than teacher.source "
            f"'{teacher.source}' ({teacher.sha256[:12]}...)"
        )
    if training.validation >= len(archive):
        raise UsageError(
            f"training.validation: got {training.validation}; accepted: below the archive's {len(archive)}"
        )
    if len(archive.sigmas) == 2:
        check_without_states_between(training, f"{path} holds no states in between")
    if training.streaming:
        _check_streaming(archive, training, path)


def _check_streaming(archive: Archive, training: TrainingSettings, path: Path | str) -> None:
    if training.order != "blocks":
        raise UsageError('training.streaming: got true; accepted: false, or training.order = "blocks"')
    if training.on_damage != "stop":
        raise UsageError('training.on_damage: got "skip"; accepted: "stop", as training.streaming is on')
    if archive.plan.form != "webdataset":
        raise UsageError(
            f"training.streaming: got true; accepted: false, as {path} is of the form "
            f'"{archive.plan.form}", not "webdataset"'
        )


def started_from(training: TrainingSettings, folder: Path) -> str | None:
    """SHA-256 of the weights that a training starts from, None where they are the teacher's.

    Of one that has begun its checkpoints in `folder` tell: the model that training.init_from names may be
    gone since. Raises UsageError where it is another one.
    """
    given = Path(training.init_from) if training.init_from else None
    newest = newest_state(folder)
    if newest is None or "init_from" not in newest[1]:
        return saved_model(given, "raw").sha256 if given else None
    started: str | None = newest[1]["init_from"]
    if given and (started is None or (given.exists() and saved_model(given, "raw").sha256 != started)):
        raise UsageError(
            f"training.init_from: {given} is not what the training in {folder} has begun with; accepted: "
            "that one, or '', now that it has begun"
        )
    return started


def training_identity(
    archive: Archive,
    training: TrainingSettings,
    options: MethodSettings | None,
    started: str | None = None,
) -> str:
    """Digest of what a training learns and from what; archives of the same numbers give the same.

    `started` is what `started_from` says. Raises InputError where the weights of LPIPS are missing.
    """
    plan = archive.plan.identity_values()
    values = {key: value for key, value in plan.items() if key not in ("form", "codec")}
    files = {"init_from": started} if started else {}
    if training.perceptual in BACKBONES:
        files["perceptual"] = sha256_file(backbone_file(training.perceptual, training.perceptual_file))
    return digest(
        {
            **files,
            "archive": values,
            "training": of_kind(training, "identity"),
            "method": of_kind(options, "identity") if options else {},
        }
    )


def new_student(
    teacher: Teacher,
    archive: Archive,
    training: TrainingSettings,
    options: MethodSettings | None,
    device: torch.device,
) -> TrainingState[Student]:
    """The student before its first step, with its optimiser."""
    method = METHODS[training.method]
    with torch.random.fork_rng(devices=[]):
        # Of weights that do not come from the teacher.
        torch.manual_seed(training.seed)
        student = method.from_teacher(teacher.network, options, **archive.plan.schedule)
    if training.init_from:
        begun = load_model(training.init_from, device, "raw")
        if begun.config() != student.config():
            raise UsageError(
                f"training.init_from: {training.init_from} has another method, network or settings of the "
                "method than this training"
            )
        student.load_state_dict(begun.state_dict())
    student.to(device, WEIGHTS.get(training.precision, torch.float32))
    if training.channels_last:
        student.to(memory_format=torch.channels_last)
    for module in student.modules():
        if hasattr(module, "recompute"):
            setattr(module, "recompute", training.recompute)  # noqa: B010 - of whichever family's blocks
    optimizer = new_optimizer(student.parameter_groups(training), training)
    return new_state(student, optimizer, training.ema, scaled=training.precision == "fp16")


def new_optimizer(groups: list[dict[str, Any]], training: TrainingSettings) -> torch.optim.Optimizer:
    """Adam, which leaves weight decay beside the gradient, or in it."""
    adam = torch.optim.AdamW if training.weight_decay_form == "decoupled" else torch.optim.Adam
    return adam(groups, fused=True)


def read_batch(reader: Reader, start: int, stop: int) -> Batch:
    """The trajectories at positions start..stop-1 at their drawn times, their ends and labels, as stored."""
    archive, training = reader.archive, reader.training
    positions = np.arange(start, stop)
    drawn = METHODS[training.method].draw_states(training, positions, archive.sigmas)
    end = np.full((len(drawn), 1), len(archive.sigmas) - 1)
    indices, values = reader.read(start, stop, np.concatenate([drawn, end], axis=1))
    states = torch.from_numpy(values)
    sigmas = torch.from_numpy(archive.sigmas[drawn]).float()
    labels = one_hot(archive.plan.labels(indices), archive.plan.label_dim)
    return Batch(states[:, :-1], torch.from_numpy(drawn), sigmas, states[:, -1], labels, positions)


@contextmanager
def _owned_by_first(out: Path, world: World) -> Iterator[Callable[[], None]]:
    """One training at a time in a folder; the processes of one training are one. Yields what checks that."""
    if not world.first:
        yield lambda: None
        return
    with training_folder(out) as check_owned:
        yield check_owned


@contextmanager
def training_folder(out: Path) -> Iterator[Callable[[], None]]:
    """Own the folder of a training, cleared of what killed ones left. Yields what checks that it is owned."""
    with owning(out, f"training in {out}") as check_owned:
        for folder in (out, out / "checkpoints"):
            remove_temporaries(folder)
        yield check_owned


def resume_in(out: Path, state: TrainingState[Any], identity: str, reporter: Reporter) -> None:
    """Go on from the newest whole checkpoint in the folder of a training, if it has begun.

    Raises InputError where it has begun and its checkpoints are gone: nothing starts again by itself.
    """
    folder, log = out / "checkpoints", out / "metrics.csv"
    if resume(folder, state, identity, reporter.warn) is None and log.exists():
        raise InputError(
            f"{folder}: no checkpoint, though {log} says that the training has begun; put one back, or "
            "delete that file to train from the start"
        )


def _fit(
    state: TrainingState[Student],
    reading: Reader,
    distance: Distance | None,
    origin: dict[str, Any],
    out: Path,
    world: World,
    device: torch.device,
    callbacks: Callbacks,
) -> None:
    archive, training = reading.archive, reading.training
    loop = LoopSettings(
        budget=training.budget,
        batch_size=training.batch_size,
        schedule=training.schedule,
        warmup=training.warmup,
        gradient_clip=training.gradient_clip,
        checkpoint_every=training.checkpoint_every,
        keep_checkpoints=training.keep_checkpoints,
        workers=training.workers,
        micro_batch=training.micro_batch,
        autocast=AUTOCAST.get(training.precision),
        compile=training.compile,
        checkpoint_minutes=training.checkpoint_minutes,
        max_skipped=training.max_skipped,
    )

    def loss(module: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return state.model.loss(module, batch.to(device), distance, training, progress)

    about = {
        **origin,
        "model": state.model.config(),
        "validation": training.validation,
        "classes": list(archive.plan.classes),
        "world_size": world.size,
        "torch": torch.__version__,
    }
    fit(
        state,
        lambda start, end: read_batch(reading, start, end),
        loss,
        loop,
        out / "checkpoints",
        about,
        callbacks,
        world,
    )


def _watching(watch: Watch, stop: Callable[[], bool], check_owned: Callable[[], None]) -> Callbacks:
    """What the loop calls in the process that writes; it stops where the folder is another one's now."""

    def log(seen: int, values: dict[str, float]) -> None:
        check_owned()
        watch.log(seen, values)

    def score(state: TrainingState[Student]) -> float | None:
        check_owned()
        return watch.score(state)

    return Callbacks(stop, log, score, check_owned)
