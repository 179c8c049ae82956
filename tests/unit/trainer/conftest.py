import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet

Randomise = Callable[[nn.Module], None]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def arch() -> Architecture:
    """Two levels, 8 and 4 pixels, attention at the lower one."""
    return Architecture(8, 1, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))


@pytest.fixture
def randomise() -> Randomise:
    """Shift every parameter, so that nothing stays at an initial zero that would hide a mistake."""

    @torch.no_grad()
    def shift(module: nn.Module) -> None:
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)

    return shift


@pytest.fixture
def network(arch: Architecture, randomise: Randomise) -> PreconditionedUNet:
    teacher = PreconditionedUNet(arch)
    randomise(teacher)
    return teacher.eval().requires_grad_(False)


@pytest.fixture
def student(network: PreconditionedUNet, randomise: Randomise) -> HKD:
    """A student whose operators are at work: over Karras' time, learning from the whole loss."""
    model = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(time="karras", learns_from="all")))
    randomise(model.koopman)
    return model.requires_grad_(False)


@pytest.fixture
def relative() -> Callable[[Tensor, Tensor], float]:
    """Norm of the difference over the norm of what is expected."""

    def compare(found: Tensor, expected: Tensor) -> float:
        found, expected = found.double(), expected.double()
        assert found.shape == expected.shape
        return ((found - expected).norm() / expected.norm()).item()

    return compare


class _MakesFolder:
    """Unpickled without care, it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.proof,)


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[object, Path]:
    """An object that runs code when it is unpickled, and the path that proves that it did."""
    proof = tmp_path / "executed"
    return _MakesFolder(proof), proof
