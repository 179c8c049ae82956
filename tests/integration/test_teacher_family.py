"""A family of teachers is one module that registers itself: this one, of which nothing else knows."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from commands import Called, succeeded
from safetensors.torch import load_file, save_file
from tiny import Inputs, whole
from torch import Tensor, nn

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers import families
from hkdpipe.trainer.teachers.teacher import load_teacher


@dataclass(frozen=True)
class ToyArchitecture(families.TeacherArchitecture):
    family: ClassVar[str] = "toy"
    width: int = 4
    sigma_data: float = 1.0

    @property
    def steps(self) -> int:
        return 7

    def network(self) -> families.TeacherNetwork:
        return ToyNetwork(self)


class ToyEncoder(families.Encoder):
    def __init__(self, arch: ToyArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.fine = nn.Conv2d(arch.img_channels, arch.width, 3, padding=1)
        self.coarse = nn.Conv2d(arch.width, 2 * arch.width, 2, stride=2)
        self.noise = nn.Linear(1, arch.width)

    def shapes(self) -> list[tuple[int, int, int]]:
        side, width = self.arch.img_resolution, self.arch.width
        return [(width, side, side), (2 * width, side // 2, side // 2)]

    def observe(self, x: Tensor, sigma: Tensor, told: Tensor, labels: Tensor | None) -> list[Tensor]:
        scaled = x / (sigma**2 + 1).sqrt()[:, None, None, None]
        fine = self.fine(scaled) + self.noise(told.log()[:, None])[:, :, None, None]
        return [fine, self.coarse(fine.tanh())]


class ToyDecoder(families.Decoder):
    def __init__(self, arch: ToyArchitecture) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * arch.width, arch.width, 2, stride=2)
        self.out = nn.Conv2d(arch.width, arch.img_channels, 3, padding=1)

    def image(self, z: Sequence[Tensor], told: Tensor, labels: Tensor | None) -> Tensor:
        images: Tensor = self.out((z[0] + self.up(z[1])).tanh())
        return images


class ToyNetwork(families.TeacherNetwork):
    def __init__(self, arch: ToyArchitecture) -> None:
        super().__init__(arch)
        self.first, self.second = ToyEncoder(arch), ToyDecoder(arch)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        x = x.float()
        level = torch.as_tensor(sigma, dtype=torch.float32).expand(len(x))
        inner = self.second.image(self.first.observe(x, level, level, labels), level, labels)
        share = (level**2 / (level**2 + 1))[:, None, None, None]
        return x * (1 - share) + inner * share.sqrt()

    def split(self) -> tuple[families.Encoder, families.Decoder]:
        return copy.deepcopy(self.first), copy.deepcopy(self.second)


class Toy(families.Family):
    name = "toy"
    architecture = ToyArchitecture
    files = ("a toy (.toy)",)
    suffixes = (".toy",)

    def from_file(self, file: Path) -> families.TeacherNetwork:
        return self.from_state_dict(load_file(file))

    def from_state_dict(self, state: Mapping[str, Tensor]) -> families.TeacherNetwork:
        width, channels = state["first.fine.weight"].shape[:2]
        return families.with_weights(ToyArchitecture(8, channels, width=width), state)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of its own kind."""
    others = {family.name: family for family in families.families()}
    monkeypatch.setattr(families, "_FAMILIES", others)
    families.register(Toy())
    torch.manual_seed(0)
    save_file(ToyNetwork(ToyArchitecture(8, 1)).state_dict(), tmp_path / "teacher.toy")
    return tmp_path / "teacher.toy"


def test_all_stages_take_a_family_that_nothing_else_knows(toy: Path, tmp_path: Path, called: Called) -> None:
    teacher, folder = load_teacher(toy), tmp_path / "imported"
    ran = succeeded(called("import-teacher", str(toy), str(folder)))
    assert "generation.steps=7" in ran.out
    assert json.loads((folder / "config.json").read_text())["architecture"]["family"] == "toy"
    imported = load_teacher(folder)
    assert (imported.sha256, imported.arch) == (teacher.sha256, teacher.arch)
    torch.save(teacher.network.state_dict(), tmp_path / "teacher.pt")
    assert load_teacher(tmp_path / "teacher.pt").sha256 == teacher.sha256
    for method in ("hkd", "kd"):
        run = tmp_path / method
        changes = ("--set", f"teacher.source={toy}", "--set", f"training.method={method}")
        succeeded(called("run", "--run-dir", str(run), *whole(Inputs(tmp_path)), *changes))
        with open_archive(run / "trajectories") as archive:
            assert archive.plan.teacher["architecture"] == teacher.arch.to_json()
        student = load_model(run / "export")
        assert student.arch == teacher.arch
        noise = torch.randn(2, 1, 8, 8)
        begun = type(student).from_teacher(teacher.network, student.options)
        assert not torch.equal(student.sample(noise), begun.sample(noise))
        metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
        assert metrics["model"]["architecture"]["family"] == "toy"


def test_hkd_needs_two_halves(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ToyNetwork, "split")
    with pytest.raises(UsageError, match=r"^teacher: its family is 'toy'; accepted for hkd: one"):
        HKD.from_teacher(load_teacher(toy).network, HkdOptions())
