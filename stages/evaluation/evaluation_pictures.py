"""The pictures of an evaluation: samples.png and strip.png."""

import numpy as np
import torch
from torch import Tensor

from hkdpipe.stages.evaluation.context import Context, Sampler
from hkdpipe.stages.shared.picture_grids import beside, grid, save_png, strip

PICTURED = 64
STRIP_ROWS = 4


@torch.inference_mode()
def sample_picture(context: Context) -> None:
    """Samples beside the teacher's from the same noise, in the order of their classes if they have any."""
    context.check_stop()
    (noise, labels, drawn), classes = context.given(0, PICTURED), context.classes(0, PICTURED)
    order, sorted_by = np.arange(PICTURED), ""
    if classes is not None and labels is not None:
        order, sorted_by = np.argsort(classes, kind="stable"), ", by class"
        labels = labels[order]

    def made(sampler: Sampler) -> Tensor:
        return sampler(noise[order], labels, lambda step: drawn(step)[order])

    teacher, nfe = context.whole_sampler()
    parts = []
    for _, steps, sampler in context.students(folded=False):
        caption = "one step (1 evaluation)" if steps == 1 else f"{steps} steps ({steps} evaluations)"
        parts.append((f"{caption}{sorted_by}", made(sampler)))
    parts.append((f"teacher, same noise ({nfe}){sorted_by}", made(teacher)))
    pictures = [(caption, grid(images.float().cpu().numpy(), 8)) for caption, images in parts]
    picture = beside(pictures)
    context.check_owned()
    save_png(context.out / "samples.png", picture)


@torch.inference_mode()
def strip_picture(context: Context) -> None:
    """Stored states of some held-out trajectories, and what the student makes of each of them."""
    context.check_stop()
    sigmas = context.archive.sigmas
    count = min(STRIP_ROWS, len(context.archive))
    states = context.archive.read(range(count), range(len(sigmas)))
    classes = context.archive.plan.labels(range(count))
    rows, captions = [], []
    for index, trajectory in enumerate(states):
        x = torch.from_numpy(trajectory).float().to(context.device)
        known = context.predicted
        own = None if classes is None else np.repeat(classes[index], known)
        levels = torch.from_numpy(sigmas[:known]).float().to(context.device)
        made = context.student.predict(x[:known], levels, context.told(own))
        shown = trajectory.astype(np.float32) / np.maximum(1, sigmas)[:, None, None, None]
        blank = torch.ones_like(x[known:-1])
        rows += [shown, torch.cat([made, blank, x[-1:]]).cpu().numpy()]
        captions += [
            f"trajectory {index}{'' if classes is None else f', class {classes[index]}'}: "
            "states (x / max(1, sigma))",
            "one step from each state; the end itself",
        ]
    picture = strip(rows, captions, [f"{sigma:.2g}" for sigma in sigmas])
    context.check_owned()
    save_png(context.out / "strip.png", picture)
