import pytest
import torch

from hkdpipe.stages.training.watching import validate
from hkdpipe.trainer.losses.distillation_loss import Batch
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.methods.kd.kd import KD
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet

ARCHITECTURE = Architecture(8, 1, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())


@pytest.fixture
def network() -> PreconditionedUNet:
    torch.manual_seed(0)
    made = PreconditionedUNet(ARCHITECTURE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.fixture
def batch() -> Batch:
    sigmas = torch.tensor([80.0, 0.002]).expand(5, 2)
    states = torch.randn(5, 2, 1, 8, 8) * sigmas[:, :, None, None, None]
    return Batch(states, torch.tensor([0, 2]).expand(5, 2), sigmas, torch.randn(5, 1, 8, 8))


def test_numbers_of_a_student_with_operators(network: PreconditionedUNet, batch: Batch) -> None:
    student = HKD.from_teacher(network, HkdOptions())
    torch.manual_seed(1)
    largest: dict[str, float] = {}
    for index, operator in student.koopman.items():
        assert isinstance(operator, KoopmanOperator)
        height = student.shapes[int(index)][1]
        for name, parameter in (("alpha", operator.alpha), ("beta", operator.beta)):
            torch.nn.init.normal_(parameter, std=0.1)
            key = f"{name}_{height}"
            largest[key] = max(largest.get(key, 0.0), parameter.detach().abs().max().item())
    values, images = validate(student, batch)
    start, end = (batch.states[:, state] for state in (0, 1))
    sigma, last = (batch.sigmas[:, state] for state in (0, 1))
    with torch.no_grad():
        assert torch.equal(images, student.predict(start, sigma))
        groups = zip(
            student.observe(start, sigma),
            student.encode(end, last),
            student.encode(start, sigma),
            strict=True,
        )
        errors: dict[int, list[float]] = {8: [0.0, 0.0], 4: [0.0, 0.0]}
        for reached, goal, left in groups:
            errors[goal.shape[2]][0] += (reached - goal).square().sum().item()
            errors[goal.shape[2]][1] += (left - goal).square().sum().item()
    expected = {f"skill_{level}": 1 - one / other for level, (one, other) in errors.items()}
    expected["mse"] = torch.nn.functional.mse_loss(images, batch.ends).item()
    assert values == pytest.approx({**expected, **largest}, rel=1e-4)
    assert all(abs(expected[f"skill_{level}"]) > 1e-3 for level in errors)


def test_students_without_operators_and_archives_without_states_between(
    network: PreconditionedUNet, batch: Batch
) -> None:
    start = batch.with_states(slice(1))
    assert list(validate(KD.from_teacher(network), batch)[0]) == ["mse"]
    idle = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(hierarchy="none")))
    assert list(validate(idle, batch)[0]) == ["mse"]
    student = HKD.from_teacher(network, HkdOptions())
    assert list(validate(student, start)[0]) == ["mse", "alpha_8", "beta_8", "alpha_4", "beta_4"]
