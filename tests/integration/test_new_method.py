"""A method that this module alone knows of goes through every command that takes a method."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Called, succeeded
from safetensors.torch import load_file
from tiny import EVALUATION, GENERATION, TRAINING, Inputs, settings
from torch import Tensor, nn

from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.manifests.ground.sections import setting
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.settings import method_registry
from hkdpipe.trainer.settings.method_registry import Method, register
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.students.student import Student


@dataclass(frozen=True)
class ToySettings:
    width: int = setting(3, "channels of the toy", minimum=1)
    pull: float = setting(0.5, "weight of the pull to what the teacher makes of real images", minimum=0.0)


@dataclass(frozen=True)
class ToyOptions:
    toy: ToySettings = field(default_factory=ToySettings)


class Toy(Student):
    """Two convolutions, and a target that follows them: in checkpoints, and not in exports."""

    training_only = ("target",)

    def __init__(self, arch: Any, options: ToyOptions, *schedule: float, **named: float) -> None:
        super().__init__(arch, options, *schedule, **named)
        images, width = arch.img_channels, options.toy.width
        first, last = (nn.Conv2d(*sizes, 3, padding=1) for sizes in ((images, width), (width, images)))
        self.net = nn.Sequential(first, nn.SiLU(), last)
        self.target: nn.Module | None = copy.deepcopy(self.net).requires_grad_(False)

    def start_from(self, teacher: Any) -> None:
        """Nothing of the teacher's."""

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.net(x.to(self.dtype) / (1 + sigma[:, None, None, None]))
        return images

    forward = predict

    def loss(self, module: nn.Module, batch: Batch, lesson: Lesson) -> dict[str, Tensor]:
        terms = super().loss(module, batch, lesson)
        assert lesson.teacher is not None
        assert batch.real is not None
        level = torch.ones(len(batch.real))
        made, wanted = module(batch.real, level, None), lesson.teacher(batch.real, level, batch.real_labels)
        pull = (made - wanted.detach()).square().mean()
        return {**terms, "pull": pull, "loss": terms["loss"] + self.options.toy.pull * pull}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        assert self.target is not None
        for followed, parameter in zip(self.target.parameters(), self.net.parameters(), strict=True):
            followed.lerp_(parameter, 1 / step)


METHOD = Method(
    name="toy",
    title="a toy",
    paper="arXiv 0000.00000",
    description="two convolutions",
    student=Toy,
    options=ToyOptions,
    network_sections=("toy",),
    learns_from=frozenset({"states", "teacher", "images"}),
    starts_from_teacher=False,
)
Toy.method = METHOD
TOY_TRAINING = replace(TRAINING, method="toy", schedule="constant", mse_decades=0.0, checkpoint_every=4)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_registry, "_METHODS", method_registry.methods())
    register(METHOD)


def sections(budget: int, **changes: Any) -> list[str]:
    training = replace(TOY_TRAINING, budget=budget, images="digits", **changes)
    evaluation = replace(EVALUATION, student_steps=(1, 4))
    return settings(generation=GENERATION, training=training, evaluation=evaluation)


def test_it_runs_resumes_samples_exports_and_is_reported(
    inputs: Inputs, folder: Path, called: Called
) -> None:
    places = ["--teacher", str(inputs.teacher), "--archive", str(inputs.archive())]
    # In two parts, and at once.
    for budget in (8, 16):
        succeeded(called("train", *places, "--out", "parts", *sections(budget)))
    taught = ["--set", f"teacher.source={inputs.teacher}", "--set", "toy.width=3"]
    succeeded(called("run", "--run-dir", "run", *taught, *sections(16)))
    newest = Path("run/training/checkpoints/step-00000004")
    for name in ("weights", "ema"):
        whole, parts = (
            load_file(folder / f"{name}.safetensors")
            for folder in (newest, Path("parts/checkpoints/step-00000004"))
        )
        assert {key.partition(".")[0] for key in whole} == {"net", "target"}
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    for key, value in load_file(newest / "weights.safetensors").items():
        # With a rate of 1 / step the target is the mean of the weights after each step.
        assert not key.startswith("target") or value.abs().max() > 0
    assert {key.partition(".")[0] for key in load_file("run/export/model.safetensors")} == {"net"}
    model, checkpoint = load_model("run/export"), load_model(newest)
    noise = torch.randn(3, 1, 8, 8)
    assert torch.equal(model.sample(noise), checkpoint.sample(noise))

    pictures = {}
    for steps in ("1", "4"):
        succeeded(called("sample", "--model", "run/export", "--steps", steps, "--count", "3", "--out", steps))
        with np.load(f"{steps}/samples.npz") as made:
            pictures[steps] = made["images"]
    assert not np.array_equal(pictures["1"], pictures["4"])

    rows = read_json(Path("run/evaluation/metrics.json"))["rows"]
    assert [(row["name"], row["nfe"]) for row in rows][:2] == [("student", 1), ("student", 4)]
    page = Path("run/evaluation/report.html").read_text(encoding="utf-8")
    assert "Method toy" in page
    assert "toy.width" in page
    assert "were trained on its samples" in Path("run/export/README.md").read_text()
    refused = called("run", "--run-dir", "run", "--set", "toy.pull=0.25")
    assert refused.code == 2
    assert refused.errors[0].startswith("toy.pull: this run has 0.5, given 0.25; ")
    nothing = called("train", *places, "--out", "none", *sections(8), "--set", "training.images=")
    assert nothing.errors == ["training.images: got ''; accepted: a set of images, as toy learns from them"]


def test_it_is_compared_and_explained(inputs: Inputs, folder: Path, called: Called) -> None:
    rows = '[[rows]]\nname = "Toy"\ntraining.method = "toy"\ntraining.images = "digits"\ntoy.width = 2\n'
    Path("rows.toml").write_text(
        f'[comparison]\nseeds = 0\n{rows}[[rows]]\nname = "KD"\ntraining.method = "kd"\n'
    )
    command = ["compare", "--config", "rows.toml", "--out", "out", "--archive", str(inputs.archive())]
    small = settings(
        generation=GENERATION, training=TRAINING, evaluation=replace(EVALUATION, teacher_steps=())
    )
    more = ["--set", f"teacher.source={inputs.teacher}", "--set", "training.budget=8"]
    succeeded(called(*command, *small, *more))
    table = Path("out/comparison.md").read_text()
    assert "| Toy |" in table
    assert "| KD |" in table
    explained = succeeded(called("config", "--explain", "--set", "toy.width=2")).out
    assert '"toy" (a toy, arXiv 0000.00000: two convolutions)' in " ".join(
        explained.replace("\n#", "").split()
    )
    assert "\n[toy]\n# channels of the toy\n" in explained
    assert "\nwidth = 2\n" in explained


def test_two_of_one_name_or_section_are_refused() -> None:
    with pytest.raises(ValueError, match="method 'toy': its name or a section of it is that of 'toy'"):
        register(METHOD)
    with pytest.raises(ValueError, match="method 'other': its name or a section of it is that of 'toy'"):
        register(replace(METHOD, name="other"))
