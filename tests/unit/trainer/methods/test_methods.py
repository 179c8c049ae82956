import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import parse_section
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings, KoopmanSettings
from hkdpipe.trainer.methods.kd.kd import KD
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions, KdmSettings
from hkdpipe.trainer.settings.method_registry import NoOptions, methods
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers.edm import PreconditionedUNet


def test_methods_are_those_that_can_be_chosen() -> None:
    with pytest.raises(UsageError, match=r'got "ddim"; accepted: one of "hkd", "kd", "kdm"'):
        parse_section(TrainingSettings, {"method": "ddim"}, "training")
    assert all(method.student_class.method is method for method in methods().values())


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
    ("method", "hkd"),
    [("hkd", {"times": 1}), ("hkd", {"times": 3}), ("hkd", {"latent_weight": 0.0}), ("kdm", {})],
)
def test_evaluations_are_the_work_of_a_step_over_that_of_kd(
    method: str, hkd: dict[str, Any], network: PreconditionedUNet
) -> None:
    """Torch counts the operations; KDM's networks as large as the teacher's."""
    arch = network.arch
    own = KdmSettings(arch.model_channels, arch.channel_mult, arch.num_blocks, arch.attn_resolutions)
    koopman = KoopmanSettings(learns_from="all")
    options = {"kd": NoOptions(), "hkd": HkdOptions(HkdSettings(**hkd), koopman), "kdm": KdmOptions(own)}
    sigmas = np.array([80.0, 10.0, 1.0, 0.1, 0.0])

    def operations(method: str) -> int:
        student = methods()[method].student_class.from_teacher(network, options[method])
        drawn = student.draw_states(0, np.arange(2), sigmas)
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
            student.loss(student, batch, Lesson(training))["loss"].backward()
        return counter.get_total_flops()

    training = TrainingSettings(perceptual="none")
    work = operations(method) / operations("kd")
    assert work == pytest.approx(methods()[method].evaluations(options[method]), rel=0.1)
