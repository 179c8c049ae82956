"""What inpainting and colorization keep, judged on digits.

python examples/trial_editing.py MODEL [COLOUR_MODEL]: exports or checkpoints of hkd, of the digits
and of the tinted ones. The lower half of the last 297 digits, which no shipped classifier was trained on, is
made up once; what the metric's classifier sees in them is compared with what it sees in the digits.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hkdpipe.manifests.ground import rng
from hkdpipe.stages.settings.completion_settings import CompletionSettings
from hkdpipe.stages.shared.reporting import Silent, Summary
from hkdpipe.stages.whitebox.completions import colorize, inpaint
from hkdpipe.trainer.images.colour import chroma
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.images.image_sets import load_images
from hkdpipe.trainer.metrics.digits_classifier import HELD_OUT, load_classifier

WORK: dict[str, Any] = {"device": torch.device("cpu"), "reporter": Silent(), "stop": lambda: False}


def images_of(summary: Summary) -> Tensor:
    with np.load(summary.data["images"]) as arrays:
        return torch.from_numpy(arrays["images"].transpose(0, 3, 1, 2)).float() / 127.5 - 1


def inpainting(model: Path, folder: Path) -> None:
    classifier = load_classifier("digits-classifier-metric")
    digits = torch.from_numpy(load_digits()[0][-HELD_OUT:])
    np.savez(folder / "digits.npz", images=((digits[:, 0] + 1) * 127.5).round().byte().numpy())
    seen = classifier(digits).argmax(dim=1)

    def line(name: str, filled: Tensor) -> None:
        judged = classifier(filled).softmax(dim=1)
        kept = (judged.argmax(dim=1) == seen).float().mean()
        print(f"| {name} | {kept:.1%} | {(judged.amax(dim=1) > 0.9).float().mean():.1%} |", flush=True)

    def with_lower_half(other: Tensor) -> Tensor:
        return torch.cat([digits[:, :, :4], other[:, :, 4:]], dim=2)

    print("| lower half | keeps the class | p > 0.9 |\n| --- | --- | --- |")
    line("the digit's own", digits)
    line("of a random digit", with_lower_half(digits[rng.permutation(0, "fill", 0, HELD_OUT)]))
    noise = (
        torch.from_numpy(rng.uniform(0, "fill", range(HELD_OUT), 64)).float().reshape(digits.shape) * 2 - 1
    )
    line("uniform noise", with_lower_half(noise))
    line("black", with_lower_half(-torch.ones_like(digits)))
    for steps in (9, 18, 36):
        settings = CompletionSettings(count=1, steps=steps)
        begun = time.perf_counter()
        found = inpaint(model, str(folder / "digits.npz"), "lower-half", folder, settings, **WORK)
        seconds = time.perf_counter() - begun
        line(f"inpainted in {steps} steps ({seconds:.0f} s)", images_of(found))


def colorization(model: Path, folder: Path) -> None:
    """Spread of the hues over completions of a digit, and how far one has a single hue."""
    np.savez(
        folder / "digits.npz",
        images=((load_images("digits-color")[-32:] + 1) * 127.5)
        .round()
        .astype(np.uint8)
        .transpose(0, 2, 3, 1),
    )
    settings = CompletionSettings(count=16)
    found = colorize(model, str(folder / "digits.npz"), folder, settings, **WORK)
    colours = chroma(images_of(found)).flatten(2)
    one_hue = colours.sum(dim=2).norm(dim=1) / colours.norm(dim=1).sum(dim=1)
    print(f"luminance kept to {found.data['luminance_error']:.2f} of 255 levels")
    print(f"spread of a digit's hues over 16 completions: {found.data['hue_spread']:.2f}")
    own = chroma(torch.from_numpy(load_images("digits-color")))
    tinted = own.square().sum(dim=1).mean().sqrt()
    print(f"colour: {found.data['chroma']:.3f} RMS from grey (the tinted digits: {tinted:.3f})")
    print(f"how far a completion has one hue (1: wholly): {one_hue.mean():.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        inpainting(Path(sys.argv[1]), Path(temporary))
        if len(sys.argv) > 2:
            colorization(Path(sys.argv[2]), Path(temporary))
