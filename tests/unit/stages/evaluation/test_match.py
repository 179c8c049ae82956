import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.stages.evaluation.context import Context
from hkdpipe.stages.evaluation.distribution import subjects
from hkdpipe.stages.evaluation.metrics.match import match_to_teacher
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.losses.perceptual import perceptual_distance
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.whitebox.koopman_skill import koopman_skill

SIGMAS = [80.0, 3.0, 0.4, 0.002, 0.0]
ARCHITECTURE = Architecture(8, 1, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())
CPU = torch.device("cpu")


def states(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> NDArray[np.float32]:
    """(count, 5, C, H, W) at SIGMAS."""
    torch.manual_seed(1)
    values = torch.randn(count, len(SIGMAS), *shape) * torch.tensor(SIGMAS)[:, None, None, None]
    values[:, -1] = torch.rand(count, *shape) * 2 - 1
    return values.numpy()


def context(student: Any, stored: Any, **settings: Any) -> Context:
    archive: Any = SimpleNamespace(
        sigmas=np.array(SIGMAS),
        read=lambda rows, columns: stored[: len(rows)],
        plan=SimpleNamespace(labels=lambda rows: None, label_dim=0, sampler={"solver": "heun"}),
    )
    teacher: Any = SimpleNamespace(sha256="")
    given = len(stored), EvaluationSettings(**settings), Path(), CPU, Silent()
    return Context(teacher, student, archive, *given, lambda: False, lambda: None)


class Off:
    """Predicts an end that is off by so much at each noise level."""

    between = True
    image_shape = (1, 4, 4)

    def __init__(self, ends: Tensor, offsets: dict[float, float]) -> None:
        self.ends, self.offsets = ends, offsets

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.ends + self.offsets[round(sigma[0].item(), 6)]


def test_errors_deviation_and_variance_are_those_of_known_offsets() -> None:
    stored = states(3, (1, 4, 4))
    offsets = [0.5, 0.25, -0.1, 0.05]
    student = Off(torch.from_numpy(stored[:, -1]), dict(zip(SIGMAS, offsets, strict=False)))
    found = match_to_teacher(context(student, stored))
    assert [row["state"] for row in found["match"]] == [0, 1, 2, 3]
    for row, offset in zip(found["match"], offsets, strict=True):
        assert row["mse"] == pytest.approx(offset**2, rel=1e-4)
        assert row["psnr"] == pytest.approx(20 * math.log10(2 / abs(offset)), rel=1e-4)
        assert row["deviation"] == pytest.approx((offset - 0.5) ** 2, rel=1e-4)
        assert row.keys() == {"state", "sigma", "mse", "psnr", "deviation"}
    assert found["consistency"] == {"variance": pytest.approx(np.var(offsets), rel=1e-4)}


def test_from_the_start_alone_there_is_nothing_to_be_consistent_with() -> None:
    stored = states(2, (1, 4, 4))
    student = Off(torch.from_numpy(stored[:, -1]), {80.0: 0.5})
    student.between = False
    found = match_to_teacher(context(student, stored))
    assert [row.keys() for row in found["match"]] == [{"state", "sigma", "mse", "psnr"}]
    assert found["consistency"] == {}


@pytest.fixture
def students() -> tuple[HKD, HKD]:
    """One whose operators are at work, and one with the same networks and no operators."""
    torch.manual_seed(0)
    teacher = PreconditionedUNet(ARCHITECTURE)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    working, none = (
        HKD.from_teacher(teacher, HkdOptions(koopman=KoopmanSettings(hierarchy=hierarchy)))
        .eval()
        .requires_grad_(False)
        for hierarchy in ("full", "none")
    )
    for operator in working.koopman.values():
        assert isinstance(operator, KoopmanOperator)
        operator.alpha.normal_(), operator.beta.normal_()
    return working, none


def test_with_a_set_to_zero_it_is_as_a_student_without_operators(students: tuple[HKD, HKD]) -> None:
    stored = states(3)
    with_operator, without = (match_to_teacher(context(student, stored)) for student in students)
    names = ("mse", "psnr", "perceptual", "deviation")
    for row, other in zip(with_operator["match"], without["match"], strict=True):
        assert [row[f"{name}_without_evolution"] for name in names] == [other[name] for name in names]
        if row["state"] < 3:
            assert row["mse"] != other["mse"]
        assert other.keys() == {"state", "sigma", *names}
    assert with_operator["consistency"]["variance_without_evolution"] == without["consistency"]["variance"]
    assert without["consistency"].keys() == {"variance"}


def test_every_state_but_the_last_has_a_skill_of_each_level(students: tuple[HKD, HKD]) -> None:
    stored = states(3)
    rows = match_to_teacher(context(students[0], stored))["match"]
    expected = koopman_skill(students[0], torch.from_numpy(stored[:, :-1]), SIGMAS[:-1])
    for level in (8, 4):
        assert [row[f"skill_{level}"] for row in rows[:-1]] == expected[level]
        assert f"skill_{level}" not in rows[-1]


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_is_measured_where_its_file_is_at_hand(
    students: tuple[HKD, HKD], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = states(2)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "lpips" not in match_to_teacher(context(students[1], stored))["match"][0]
    with torch.device("meta"):
        names = torchvision.models.alexnet(weights=None).state_dict()
    weights = {
        name: 0.1 * torch.randn(value.shape) if "features" in name else torch.zeros(1).expand(value.shape)
        for name, value in names.items()
    }
    file = tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth"
    file.parent.mkdir()
    torch.save(weights, file)
    cached, named = (
        match_to_teacher(context(students[1], stored, lpips=name))["match"] for name in ("", str(file))
    )
    distance = perceptual_distance("alex", str(file), 1, CPU)
    assert distance is not None
    made = students[1].predict(torch.from_numpy(stored[:, 1]), torch.full((2,), SIGMAS[1]))
    expected = distance(made, torch.from_numpy(stored[:, -1])).mean().item()
    assert cached[1]["lpips"] == named[1]["lpips"] == pytest.approx(expected, rel=1e-5)
    assert expected > 0


def test_a_named_lpips_file_that_is_missing_is_one_line(students: tuple[HKD, HKD]) -> None:
    with pytest.raises(InputError, match=r"^/none\.pth: missing;.*name it as lpips$"):
        match_to_teacher(context(students[1], states(2), lpips="/none.pth"))


def test_distance_without_evolution_needs_the_distance() -> None:
    with pytest.raises(UsageError, match=r"^metrics: .*beside 'fd'$"):
        dataclasses.replace(EvaluationSettings(), metrics=("fd_without_evolution", "speed"))


@pytest.mark.parametrize("paths", [("student",), ("runs/a", "runs/b", "runs/a")])
def test_every_row_has_a_name_of_its_own(paths: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=rf"^compared: '{paths[0]}' .* two rows; accepted: .*'./student'"):
        EvaluationSettings(compared=paths)


def test_the_row_without_evolution_is_of_a_student_without_operators(students: tuple[HKD, HKD]) -> None:
    _, none = students
    asked: dict[str, Any] = {"metrics": ("fd", "fd_without_evolution"), "teacher_steps": ()}
    (whole, idle), (only,) = (
        subjects(context(student, states(2), **asked), "weights") for student in students
    )
    assert (whole.name, idle.name, only.name) == ("student", "student, A = 0", "student")
    assert len({whole.identity, idle.identity}) == 2
    noise = torch.randn(2, 1, 8, 8)
    assert torch.equal(idle.sampler(noise, None), none.sample(noise))
    assert not torch.equal(whole.sampler(noise, None), none.sample(noise))
