"""Train an EDM teacher on a set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import digest, of_kind
from hkdpipe.stages.shared.reporting import Reporter, Summary
from hkdpipe.stages.training.metrics_log import MetricsLog
from hkdpipe.stages.training.train import resume_in, training_folder
from hkdpipe.trainer.images.image_sets import load_images, load_labels
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.loop.checkpoint import TrainingState
from hkdpipe.trainer.loop.training_loop import Callbacks, LoopSettings, fit, new_state
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.losses.denoising_loss import NoisyImages, edm_loss, read_noisy_images
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import save_teacher


def train_teacher(
    data: str,
    out: Path,
    settings: TeacherTrainingSettings,
    *,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Train on `data` (see `load_images`) in `out`, and write `out`/export, which `load_teacher` reads.

    Resumes where an interrupted call stopped. Raises UsageError where `out` holds a training with other
    settings.
    """
    images = load_images(data)
    classes = _classes(data) if settings.conditional else None
    channels, height, width = images.shape[1:]
    levels = len(settings.channel_mult)
    if not levels:
        raise UsageError("train-teacher.channel_mult: got []; accepted: at least one integer")
    if height != width or height % (1 << (levels - 1)):
        raise InputError(
            f"{data}: pictures of {height}x{width}; accepted: square, a multiple of {1 << (levels - 1)}"
        )
    arch = Architecture(
        img_resolution=height,
        img_channels=channels,
        label_dim=0 if classes is None else int(classes.max()) + 1,
        model_channels=settings.model_channels,
        channel_mult=settings.channel_mult,
        num_blocks=settings.num_blocks,
        attn_resolutions=settings.attn_resolutions,
    )
    identity = digest({"data": data, **of_kind(settings, "identity")})
    out.mkdir(parents=True, exist_ok=True)
    with training_folder(out) as check_owned:
        torch.manual_seed(settings.seed)
        try:
            network = PreconditionedUNet(arch).to(device)
        except ValueError as error:
            raise UsageError(
                f"train-teacher.model_channels: got {settings.model_channels}; accepted: one whose "
                f"channels can be grouped ({error})"
            ) from None
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
        state = new_state(network, optimizer, [settings.ema])
        resume_in(out, state, identity, reporter)
        budget = settings.iterations * settings.batch_size
        did_nothing = state.seen >= budget and _exported_step(out / "export") == state.step
        if not did_nothing:
            _fit(state, images, classes, settings, budget, out, identity, device, reporter, stop, check_owned)
            about = {
                "dataset": data,
                "images": len(images),
                "training": {**asdict(settings), "iterations": state.step},
                "torch": torch.__version__,
            }
            check_owned()
            save_teacher(out / "export", state.ema, about, torch.float16)
    return Summary(
        title="train-teacher",
        rows=(
            ("images", f"{len(images):,} of {channels}x{height}x{width}"),
            *([("classes", f"{arch.label_dim:,}")] if settings.conditional else []),
            ("parameters", f"{network.parameter_count():,}"),
            ("iterations", f"{state.step:,}"),
        ),
        files=(out / "export",),
        next_commands=(f"hkdpipe generate-trajectories --teacher {out / 'export'} --out ARCHIVE",),
        data={"teacher": str(out / "export"), "iterations": state.step},
        did_nothing=did_nothing,
    )


def _classes(data: str) -> NDArray[np.int64]:
    """The classes of the images. InputError where they have none, or numbers are left out."""
    classes = load_labels(data)
    if classes is None:
        raise InputError(
            f"{data}: no classes to train with --conditional; accepted: 'digits', a folder whose subfolders "
            "are the classes, an .npz file with an array 'labels', a .zip with EDM's dataset.json"
        )
    counts = np.bincount(classes)
    if not counts.all():
        raise InputError(
            f"{data}: no image has label {counts.argmin()}; accepted: labels from 0 to {len(counts) - 1}, "
            "none of them left out"
        )
    return classes


def _exported_step(export: Path) -> int | None:
    """The step whose weights are exported: an earlier one if the export of a longer training was cut off."""
    try:
        return int(read_json(export / "config.json")["about"]["training"]["iterations"])
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _fit(
    state: TrainingState[PreconditionedUNet],
    images: NDArray[np.float32],
    classes: NDArray[np.int64] | None,
    settings: TeacherTrainingSettings,
    budget: int,
    out: Path,
    identity: str,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
    check_owned: Callable[[], None],
) -> None:
    loop = LoopSettings(
        budget=budget,
        batch_size=settings.batch_size,
        schedule="cosine",
        gradient_clip=0.0,
        checkpoint_every=settings.checkpoint_every * settings.batch_size,
        keep_checkpoints=2,
        workers=1,
    )
    metrics = MetricsLog(out / "metrics.csv", state.seen)
    labels = one_hot(classes, state.model.arch.label_dim)
    with reporter.phase("training the teacher", budget, "images", state.seen) as advance:

        def log(seen: int, values: dict[str, float]) -> None:
            check_owned()
            metrics.append(seen, values)
            advance(seen, loss=values["loss"])

        def loss(model: nn.Module, batch: NoisyImages, progress: float) -> dict[str, Tensor]:
            clean, noise, sigma, label = batch
            told = None if label is None else label.to(device)
            noisy = clean.to(device), noise.to(device), sigma.to(device), told
            return {"loss": edm_loss(model, noisy, state.model.arch.sigma_data)}

        fit(
            state,
            lambda start, end: read_noisy_images(images, settings.seed, start, end, labels),
            loss,
            loop,
            out / "checkpoints",
            {"identity": identity},
            Callbacks(stop, log, check_owned=check_owned),
            World(),
        )
