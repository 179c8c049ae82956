"""Stage 2: train a student from an archive of trajectories."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import fields, replace
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
from hkdpipe.stages.training.real_images import RealImages, real_images
from hkdpipe.stages.training.running_distance import RunningDistance
from hkdpipe.stages.training.watching import Watch
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.loop.checkpoint import TrainingState, checkpoints
from hkdpipe.trainer.loop.distributed import connected, sum_over_processes
from hkdpipe.trainer.loop.hooks import AfterStep, AverageWeights, ClipGradient
from hkdpipe.trainer.loop.training_loop import Callbacks, LoopSettings, fit, new_state, resume
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.losses.perceptual import BACKBONES, backbone_file, perceptual_distance
from hkdpipe.trainer.numbers.precision import tf32
from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.loading import restore_weights, saved_model, student_of
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher


def train(
    teacher: str,
    archive: Path | str,
    out: Path,
    training: TrainingSettings,
    options: Any,
    *,
    device: torch.device,
    world: World,
    reporter: Reporter,
    stop: Callable[[], bool],
    evaluation: EvaluationSettings | None = None,
) -> Summary:
    """Train in `out` (checkpoints/, metrics.csv) until the budget is seen, from where it was interrupted.

    `options` are the method's own (of its declaration's type `options`); `evaluation` are the settings of the
    distance that `fd_images` of the training asks for. Every process of `world` calls this with the same
    arguments. Raises UsageError where `out` holds another training or the archive is another teacher's.
    """
    if training.batch_size % world.size:
        accepted = f": got {training.batch_size}; accepted: a multiple of the {world.size} processes"
        raise WrongValue(Name("batch_size", TrainingSettings), accepted)
    loaded = load_teacher(teacher, device)
    with open_archive(archive, check_sizes=training.on_damage == "stop") as trajectories:
        check_archive(trajectories, loaded, training, options, archive)
        lesson = first_lesson(training, loaded, device)
        real = real_images(training, loaded.image_shape, loaded.arch.label_dim)
        make_folders(out)
        started = started_from(training, out / "checkpoints")
        identity = training_identity(trajectories, training, options, started, real)
        with (
            # The processes of one training are one, of which the first owns the folder.
            training_folder(out) if world.first else nullcontext(lambda: None) as check_owned,
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
                reader = Reader(trajectories, training, reporter.warn, real)
                with closing(reader) as reading, ExitStack() as stack:
                    callbacks = Callbacks(stop)
                    if world.first:
                        phase = reporter.phase("training", training.budget, "trajectories", state.seen)
                        advance = stack.enter_context(phase)
                        watch = Watch(
                            out, reading, state.seen, device, reporter, advance, check_owned, running
                        )
                        stack.enter_context(closing(watch))
                        callbacks = Callbacks(stop, watch.log, watch.score, check_owned)
                    origin = {"identity": identity, "init_from": started}
                    _fit(state, reading, lesson, origin, out, world, device, callbacks)
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
        data={"checkpoint": str(checkpoint), "seen": state.seen, "steps": state.step, "replaced": replaced},
        did_nothing=did_nothing,
    )


def first_lesson(training: TrainingSettings, teacher: Teacher, device: torch.device) -> Lesson:
    """What the steps of a training have beside their batches."""
    channels, dtype = teacher.arch.img_channels, WEIGHTS.get(training.precision, torch.float32)
    kind, file, size = training.perceptual, training.perceptual_file, training.perceptual_size
    distance = perceptual_distance(kind, file, channels, device, dtype, size, training.pseudo_huber_c)
    asked = "teacher" in methods()[training.method].learns_from
    return Lesson(training, distance, teacher=teacher.network if asked else None)


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = {"float64": torch.float64}
"""The type of the weights by the training's precision, if it is not float32."""


def check_archive(
    archive: Archive, teacher: Teacher, training: TrainingSettings, options: Any, path: Path | str
) -> None:
    """Raises UsageError where the archive is another teacher's, or holds too little for the settings."""
    made_with = archive.plan.teacher["sha256"]
    if made_with != teacher.sha256:
        other = f"{path}: made with another teacher (SHA-256 {made_with[:12]}...) than "
        raise UsageError(other, Name("source"), f" '{teacher.source}' ({teacher.sha256[:12]}...)")
    if training.validation >= len(archive):
        accepted = f": got {training.validation}; accepted: below the archive's {len(archive)}"
        raise WrongValue(Name("validation", TrainingSettings), accepted)
    missing = f"{path} holds no states in between" if len(archive.sigmas) == 2 else ""
    methods()[training.method].check(options, missing)
    if training.streaming:
        _check_streaming(archive, training, path)


def _check_streaming(archive: Archive, training: TrainingSettings, path: Path | str) -> None:
    streaming, order, on_damage = (Name(key, TrainingSettings) for key in ("streaming", "order", "on_damage"))
    if training.order != "blocks":
        raise WrongValue(streaming, ": got true; accepted: false, or ", order, ' = "blocks"')
    if training.on_damage != "stop":
        raise WrongValue(on_damage, ': got "skip"; accepted: "stop", as ', streaming, " is on")
    if archive.plan.form != "webdataset":
        form = f'{path} is of the form "{archive.plan.form}", not "webdataset"'
        raise WrongValue(streaming, f": got true; accepted: false, as {form}")


def started_from(training: TrainingSettings, folder: Path) -> str | None:
    """SHA-256 of the weights that a training starts from, None where they are the teacher's.

    Of one that has begun its checkpoints in `folder` tell: the model that `init_from` names may be gone
    since. Raises UsageError where it is another one.
    """
    given = Path(training.init_from) if training.init_from else None
    newest = newest_state(folder)
    if newest is None or "init_from" not in newest[1]:
        return saved_model(given, "raw").sha256 if given else None
    started: str | None = newest[1]["init_from"]
    if given and (started is None or (given.exists() and saved_model(given, "raw").sha256 != started)):
        begun = f"is not what the training in {folder} has begun with"
        accepted = "accepted: that one, or '', now that it has begun"
        raise WrongValue(Name("init_from", TrainingSettings), f": {given} {begun}; {accepted}")
    return started


def training_identity(
    archive: Archive,
    training: TrainingSettings,
    options: Any,
    started: str | None = None,
    real: RealImages | None = None,
) -> str:
    """Digest of what a training learns and from what, `started` included, as `started_from` says; archives of
    the same numbers give the same. Raises InputError where the weights of LPIPS are missing."""
    plan = archive.plan.identity_values()
    values = {key: value for key, value in plan.items() if key not in ("form", "codec")}
    files = {"init_from": started} if started else {}
    if real is not None:
        files["images"] = real.identity
    if training.perceptual in BACKBONES:
        files["perceptual"] = sha256_file(backbone_file(training.perceptual, training.perceptual_file))
    return digest(
        {
            **files,
            "archive": values,
            "training": of_kind(training, "identity"),
            "method": {name: of_kind(values, "identity") for name, values in vars(options).items()},
        }
    )


def new_student(
    teacher: Teacher, archive: Archive, training: TrainingSettings, options: Any, device: torch.device
) -> TrainingState[Student]:
    """The student before its first step, with its optimiser."""
    method = methods()[training.method].student_class
    with torch.random.fork_rng(devices=[]):
        # Of weights that do not come from the teacher.
        torch.manual_seed(training.seed)
        student = method.from_teacher(teacher.network, options, **archive.plan.schedule)
    if training.init_from:
        begun = saved_model(Path(training.init_from), "raw")
        if student_of(begun).config() != student.config():
            other = "has another method, network or settings of the method than this training"
            raise WrongValue(Name("init_from", TrainingSettings), f": {training.init_from} {other}")
        restore_weights(student, begun)
    student.to(device, WEIGHTS.get(training.precision, torch.float32))
    if training.channels_last:
        student.to(memory_format=torch.channels_last)
    for module in student.modules():
        if hasattr(module, "recompute"):
            setattr(module, "recompute", training.recompute)  # noqa: B010 - of whichever family's blocks
    return new_state(student, student.optimizer(training), training.ema, scaled=training.precision == "fp16")


def read_batch(reader: Reader, student: Student, start: int, stop: int) -> Batch:
    """The trajectories at positions start..stop-1 at their drawn times, their ends and labels, as stored."""
    archive = reader.archive
    positions = np.arange(start, stop)
    drawn = student.draw_states(reader.training.seed, positions, archive.sigmas)
    end = np.full((len(drawn), 1), len(archive.sigmas) - 1)
    indices, values = reader.read(start, stop, np.concatenate([drawn, end], axis=1))
    states = torch.from_numpy(values)
    sigmas = torch.from_numpy(archive.sigmas[drawn]).float()
    labels = one_hot(archive.plan.labels(indices), archive.plan.label_dim)
    real = (None, None) if reader.real is None else reader.real.read(start, stop)
    return Batch(states[:, :-1], torch.from_numpy(drawn), sigmas, states[:, -1], labels, positions, *real)


@contextmanager
def training_folder(out: Path) -> Iterator[Callable[[], None]]:
    """Own the folder of a training, cleared of what killed ones left. Yields what checks that it is owned."""
    with owning(out, f"training in {out}") as check_owned:
        for folder in (out, out / "checkpoints"):
            remove_temporaries(folder)
        yield check_owned


def resume_in(out: Path, state: TrainingState[Any], identity: str, reporter: Reporter) -> None:
    """Go on from the newest whole checkpoint in the folder of a training, if it has begun. Raises InputError
    where its checkpoints are gone: nothing starts again by itself."""
    folder, log = out / "checkpoints", out / "metrics.csv"
    if resume(folder, state, identity, reporter.warn) is None and log.exists():
        remedy = "put one back, or delete that file to train from the start"
        raise InputError(f"{folder}: no checkpoint, though {log} says that the training has begun; {remedy}")


def _fit(
    state: TrainingState[Student],
    reading: Reader,
    lesson: Lesson,
    origin: dict[str, Any],
    out: Path,
    world: World,
    device: torch.device,
    callbacks: Callbacks,
) -> None:
    training = reading.training
    loop = LoopSettings(
        **{
            field.name: getattr(training, field.name)
            for field in fields(LoopSettings)
            if hasattr(training, field.name)
        },
        autocast=AUTOCAST.get(training.precision),
        hooks=(
            *([ClipGradient(training.gradient_clip)] if training.gradient_clip else []),
            AfterStep(state.model.after_step),
            AverageWeights(),
        ),
    )

    def loss(module: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return state.model.loss(module, batch.to(device), replace(lesson, progress=progress))

    def read(start: int, end: int) -> Batch:
        return read_batch(reading, state.model, start, end)

    about = {
        **origin,
        "model": state.model.config(),
        "validation": training.validation,
        "classes": list(reading.archive.plan.classes),
        "world_size": world.size,
        "torch": torch.__version__,
    }
    fit(state, read, loss, loop, out / "checkpoints", about, callbacks, world)
