"""Train an EDM teacher on a set of images."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.manifests.ground.errors import InputError, Name, WrongValue
from hkdpipe.manifests.ground.sections import digest, of_kind
from hkdpipe.stages.shared.reporting import Reporter, Summary
from hkdpipe.stages.training.metrics_log import MetricsLog
from hkdpipe.stages.training.train import resume_in, training_folder
from hkdpipe.trainer.images.image_sets import formats, load_images, load_labels
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
    arch = _architecture(data, images, classes, settings)
    identity = digest({"data": data, **_identity(settings)})
    out.mkdir(parents=True, exist_ok=True)
    with training_folder(out) as check_owned:
        state = _new_state(arch, settings, device)
        resume_in(out, state, identity, reporter)
        budget, batch_size = settings.iterations * settings.batch_size, settings.batch_size
        every = settings.checkpoint_every * batch_size
        loop = LoopSettings(budget, batch_size, "cosine", every, keep_checkpoints=2, workers=1)
        did_nothing = state.seen >= budget and _exported_step(out / "export") == state.step
        if not did_nothing:
            metrics = MetricsLog(out / "metrics.csv", state.seen)

            def log(seen: int, values: dict[str, float]) -> None:
                check_owned()
                metrics.append(seen, values)
                advance(seen, loss=values["loss"])

            read = partial(read_noisy_images, images, settings, one_hot(classes, arch.label_dim))
            loss = partial(_loss, device, arch.sigma_data)
            calls, kept = Callbacks(stop, log, check_owned=check_owned), {"identity": identity}
            with reporter.phase("training the teacher", budget, "images", state.seen) as advance:
                fit(state, read, loss, loop, out / "checkpoints", kept, calls, World())
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
            ("images", f"{len(images):,} of {'x'.join(map(str, arch.image_shape))}"),
            *([("classes", f"{arch.label_dim:,}")] if settings.conditional else []),
            ("parameters", f"{state.model.parameter_count():,}"),
            ("iterations", f"{state.step:,}"),
        ),
        files=(out / "export",),
        data={"teacher": str(out / "export"), "iterations": state.step},
        did_nothing=did_nothing,
    )


def _architecture(
    data: str,
    images: NDArray[np.float32],
    classes: NDArray[np.int64] | None,
    settings: TeacherTrainingSettings,
) -> Architecture:
    """Of DDPM++'s network. Raises InputError where the images cannot be halved as often as it needs."""
    channels, height, width = images.shape[1:]
    levels = len(settings.channel_mult)
    if not levels:
        channels_of = Name("channel_mult", TeacherTrainingSettings)
        raise WrongValue(channels_of, ": got []; accepted: at least one integer")
    if height != width or height % (1 << (levels - 1)):
        accepted = f"square, a multiple of {1 << (levels - 1)}"
        raise InputError(f"{data}: pictures of {height}x{width}; accepted: {accepted}")
    return Architecture(
        img_resolution=height,
        img_channels=channels,
        label_dim=0 if classes is None else int(classes.max()) + 1,
        model_channels=settings.model_channels,
        channel_mult=settings.channel_mult,
        num_blocks=settings.num_blocks,
        attn_resolutions=settings.attn_resolutions,
    )


def _identity(settings: TeacherTrainingSettings) -> dict[str, Any]:
    """What a training may not change on the way. Settings that are newer count where they are set."""
    default, newer = TeacherTrainingSettings(), ("noise_mean", "noise_std")
    unset = {name for name in newer if getattr(settings, name) == getattr(default, name)}
    return {name: value for name, value in of_kind(settings, "identity").items() if name not in unset}


def _new_state(
    arch: Architecture, settings: TeacherTrainingSettings, device: torch.device
) -> TrainingState[PreconditionedUNet]:
    torch.manual_seed(settings.seed)
    try:
        network = arch.network().to(device)
    except ValueError as error:
        accepted = f"one whose channels can be grouped ({error})"
        got = f": got {settings.model_channels}; accepted: {accepted}"
        raise WrongValue(Name("model_channels", TeacherTrainingSettings), got) from None
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, fused=True)
    return new_state(network, optimizer, [settings.ema])


def _classes(data: str) -> NDArray[np.int64]:
    """The classes of the images. InputError where they have none, or numbers are left out."""
    classes = load_labels(data)
    if classes is None:
        accepted = f"; accepted: {', '.join(form.words_of_classes for form in formats())}"
        raise InputError(f"{data}: no classes to train with ", Name("conditional"), accepted)
    counts = np.bincount(classes)
    if not counts.all():
        accepted = f"labels from 0 to {len(counts) - 1}, none of them left out"
        raise InputError(f"{data}: no image has label {counts.argmin()}; accepted: {accepted}")
    return classes


def _exported_step(export: Path) -> int | None:
    """The step whose weights are exported: an earlier one if the export of a longer training was cut off."""
    try:
        return int(read_json(export / "config.json")["about"]["training"]["iterations"])
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _loss(
    device: torch.device, sigma_data: float, model: nn.Module, batch: NoisyImages, progress: float
) -> dict[str, Tensor]:
    clean, noise, sigma, label = batch
    told = None if label is None else label.to(device)
    return {"loss": edm_loss(model, (clean.to(device), noise.to(device), sigma.to(device), told), sigma_data)}
