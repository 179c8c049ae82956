from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.losses.distillation_loss import Batch
from hkdpipe.trainer.methods.hkd.hkd_settings import KoopmanSettings
from hkdpipe.trainer.methods.kd import KD
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmSettings
from hkdpipe.trainer.methods.registry import METHODS, load_model
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm import PreconditionedUNet


def test_methods_are_those_that_can_be_chosen() -> None:
    field = {field.name: field for field in dataclasses.fields(TrainingSettings)}["method"]
    assert tuple(METHODS) == field.metadata["choices"]
    assert all(METHODS[name].name == name for name in METHODS)


@pytest.mark.parametrize(
    "config", [[], None, {}, {"method": "other"}, {"method": ["kd"]}, {"format": "hkdpipe-teacher"}]
)
def test_model_of_no_method(tmp_path: Path, network: PreconditionedUNet, config: Any) -> None:
    KD.from_teacher(network).save(tmp_path / "export", {})
    described = tmp_path / "export/config.json"
    described.write_text(json.dumps(config))
    with pytest.raises(InputError) as raised:
        load_model(tmp_path / "export")
    assert str(raised.value) == f"{described}: not the configuration of a model; methods: hkd, kd, kdm"


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no such model"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("hkd", {"times": 1}),
        ("hkd", {"times": 3}),
        ("hkd", {"times": 1, "latent_weight": 0.1}),
        ("kdm", {}),
    ],
)
def test_evaluations_are_the_work_of_a_step_over_that_of_kd(
    method: str, settings: dict[str, Any], network: PreconditionedUNet
) -> None:
    """Torch counts the operations; KDM's networks as large as the teacher's."""
    arch = network.arch
    options = {
        "kd": None,
        "hkd": KoopmanSettings(),
        "kdm": KdmSettings(arch.model_channels, arch.channel_mult, arch.num_blocks, arch.attn_resolutions),
    }
    sigmas = np.array([80.0, 10.0, 1.0, 0.1, 0.0])

    def operations(training: TrainingSettings) -> int:
        student = METHODS[training.method].from_teacher(network, options[training.method])
        drawn = student.draw_states(training, np.arange(2), sigmas)
        states = torch.randn(*drawn.shape, *student.image_shape)
        labels = torch.eye(arch.label_dim)[:2] if arch.label_dim else None
        batch = Batch(
            states,
            torch.from_numpy(drawn),
            torch.from_numpy(sigmas[drawn]).float(),
            states[:, 0],
            labels,
            np.arange(2),
        )
        with FlopCounterMode(display=False) as counter:
            student.loss(student, batch, None, training, 0.0)["loss"].backward()
        return counter.get_total_flops()

    training = TrainingSettings(method=method, **settings)
    work = operations(training) / operations(TrainingSettings(method="kd"))
    assert work == pytest.approx(METHODS[method].evaluations(training), rel=0.1)
