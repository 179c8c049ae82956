import pytest
import torch
from torch import Tensor

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.hkd.koopman_operator import KoopmanOperator
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.whitebox import koopman_skill as module
from hkdpipe.trainer.whitebox.koopman_skill import koopman_skill, largest_eigenvalues, without_evolution

SIGMAS = [80.0, 3.0, 0.4, 0.002]
COUNT = 3


@pytest.fixture
def states() -> Tensor:
    """(N, 4, 1, 8, 8) at SIGMAS."""
    return torch.randn(COUNT, 4, 1, 8, 8) * torch.tensor(SIGMAS)[:, None, None, None]


def generator(operator: KoopmanOperator, channels: int, height: int, width: int) -> Tensor:
    """A of one tensor as an explicit matrix on its flattened entries."""
    entries = torch.arange(channels * height * width).reshape(channels, height, width)
    a = torch.zeros(entries.numel(), entries.numel(), dtype=torch.float64)
    for pair in range(channels // 2):
        for y in range(height):
            for x in range(width):
                real, imaginary = entries[pair, y, x], entries[pair + channels // 2, y, x]
                alpha, beta = operator.alpha[pair, y, x].double(), operator.beta[pair, y, x].double()
                a[real, real] = a[imaginary, imaginary] = alpha
                a[real, imaginary], a[imaginary, real] = beta, -beta
    return a


@pytest.mark.parametrize("at_once", [2, 64])
def test_skill_is_that_of_the_definition(
    student: HKD, states: Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With A as a matrix, its exponential by torch.matrix_exp, and Karras' time by its formula."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    found = koopman_skill(student, states, SIGMAS)
    assert list(found) == [8, 4]
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    observables = [student.encode(states[:, k], torch.full((COUNT,), s)) for k, s in enumerate(SIGMAS)]
    for level in found:
        numbers = [n for n, shape in enumerate(student.shapes) if shape[1] == level]
        assert len(numbers) > 1
        for k, sigma in enumerate(SIGMAS[:-1]):
            dt = (low - sigma ** (1 / 7)) / (high - low)
            error = change = 0.0
            for n in numbers:
                operator = student.koopman[str(n)]
                assert isinstance(operator, KoopmanOperator)
                propagator = torch.matrix_exp(generator(operator, *student.shapes[n]) * dt)
                z, end = (observables[j][n].double().flatten(1) for j in (k, -1))
                error += float((z @ propagator.T - end).square().sum())
                change += float((z - end).square().sum())
            assert found[level][k] == pytest.approx(1 - error / change, abs=1e-5)


def test_without_evolution_the_skill_is_zero_and_the_model_unchanged(student: HKD, states: Tensor) -> None:
    before = {name: value.clone() for name, value in student.state_dict().items()}
    idle = without_evolution(student)
    assert koopman_skill(idle, states, SIGMAS) == {8: [0.0] * 3, 4: [0.0] * 3}
    noise = torch.randn(2, 1, 8, 8)
    sigma = torch.full((2,), student.sigma_max)
    expected = student.decode(student.encode(noise * student.sigma_max, sigma))
    assert torch.equal(idle.sample(noise), expected)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize("hierarchy", ["full", "bottleneck", "none"])
def test_largest_eigenvalues_are_of_the_levels_matrices(network: PreconditionedUNet, hierarchy: str) -> None:
    """|alpha| and |beta| from torch's eigenvalues, with a bound on alpha and low rank."""
    settings = HkdOptions(
        koopman=KoopmanSettings(hierarchy=hierarchy, sharing="low-rank", rank=3, alpha_bound=0.2)
    )
    model = HKD.from_teacher(network, settings).requires_grad_(False)
    for parameter in model.koopman.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    expected: dict[int, list[Tensor]] = {}
    for name, operator in model.koopman.items():
        assert isinstance(operator, KoopmanOperator)
        alpha, beta = operator.eigenvalues()
        blocks = torch.stack([torch.stack([alpha, beta], -1), torch.stack([-beta, alpha], -1)], -2)
        values = torch.linalg.eigvals(blocks.double()).flatten()
        expected.setdefault(model.shapes[int(name)][1], []).append(values)
    found = largest_eigenvalues(model)
    assert list(found) == list(expected) == {"full": [8, 4], "bottleneck": [4], "none": []}[hierarchy]
    for level, parts in expected.items():
        values = torch.cat(parts)
        assert found[level] == pytest.approx(
            (values.real.abs().max().item(), values.imag.abs().max().item()), rel=1e-5
        )
