from dataclasses import replace

import torch

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet

ARCHITECTURE = Architecture(8, 1, model_channels=16, channel_mult=(1, 2), num_blocks=1)


@torch.no_grad()
def shift(module: torch.nn.Module, alpha: float) -> None:
    """Every parameter, so that nothing stays at an initial zero that would hide a mistake."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=alpha)


def working_student(label_dim: int = 0) -> HKD:
    """A small student, of a teacher of two levels, whose operators are at work."""
    torch.manual_seed(0)
    network = PreconditionedUNet(replace(ARCHITECTURE, label_dim=label_dim)).requires_grad_(False)
    shift(network, 0.1)
    student = HKD.from_teacher(network, HkdOptions()).requires_grad_(False)
    shift(student.koopman, 0.3)
    return student
