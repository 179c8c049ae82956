"""How well a student follows its teacher from the stored states of held-out trajectories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hkdpipe.stages.by_class import Row, match_rows
from hkdpipe.stages.evaluation_context import Context
from hkdpipe.trainer.classifier import DIGITS, load_classifier
from hkdpipe.trainer.perceptual import normalised_difference

MATCHED = 256  # held-out trajectories the match is measured on


def match_to_teacher(context: Context) -> tuple[list[Row], list[Row]]:
    """How well the student maps the stored states of held-out trajectories to their end; and the start, by
    class."""
    sigmas = context.archive.sigmas
    held_out = range(min(MATCHED, context.validation))
    states = context.archive.read(held_out, range(len(sigmas)))
    ends = torch.from_numpy(states[:, -1]).float().to(context.device)
    classes = context.archive.plan.labels(held_out)
    labels = context.told(classes)
    layers = _perceptual_layers(context)
    rows = []
    by_class: list[Row] = []
    with (
        context.reporter.phase("match to the teacher", context.predicted, "times") as advance,
        torch.inference_mode(),
    ):
        for index, sigma in enumerate(sigmas[: context.predicted].tolist()):
            context.check_stop()
            x = torch.from_numpy(states[:, index]).float().to(context.device)
            images = context.student.predict(x, torch.full((len(x),), sigma, device=context.device), labels)
            error = ((images - ends) ** 2).mean(dim=(1, 2, 3))
            row = {
                "state": index,
                "sigma": sigma,
                "mse": float(error.mean()),
                "psnr": float((10 * torch.log10(4 / error)).mean()),
            }
            if layers is not None:
                row["perceptual"] = float(normalised_difference(layers(images), layers(ends)).mean())
            rows.append(row)
            if index == 0 and classes is not None:
                found = match_rows(classes, error.cpu().numpy())
                by_class = [{"name": "student", "nfe": 1, **class_row} for class_row in found]
            advance(index + 1)
    return rows, by_class


def _perceptual_layers(context: Context) -> Callable[[Tensor], list[Tensor]] | None:
    """Features of the metric's classifier, not of the one in the loss; None for other images."""
    if context.student.image_shape not in DIGITS:
        return None
    return load_classifier("digits-classifier-metric").to(context.device).features
