import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft
from torch import Tensor

from hkdpipe.trainer.methods.hkd.koopman_operator import (
    KoopmanOperator,
    cosine_maps,
    evolution_time,
    evolved,
    propagators,
)

Relative = Callable[[Tensor, Tensor], float]


SHARINGS = pytest.mark.parametrize("sharing", ["location", "channel", "low-rank"])


def operator(dtype: torch.dtype = torch.float64, sharing: str = "location", **more: Any) -> KoopmanOperator:
    """At work on tensors of 6 x 3 x 2."""
    made = KoopmanOperator(6, 3, 2, sharing, rank=2, **more).to(dtype)
    with torch.no_grad():
        made.alpha.uniform_(-1, 1)
        made.beta.uniform_(-4, 4)
    return made


def generator(of: KoopmanOperator) -> Tensor:
    """A as dense matrices (3, 2, 6, 6), one a location, written out from its definition."""
    pairs = of.alpha.shape[0]
    dense = torch.zeros(3, 2, 2 * pairs, 2 * pairs, dtype=of.alpha.dtype)
    for pair in range(pairs):
        alpha, beta = (values.detach().expand(pairs, 3, 2)[pair] for values in of.eigenvalues())
        real, imaginary = pair, pair + pairs
        dense[..., real, real], dense[..., real, imaginary] = alpha, beta
        dense[..., imaginary, real], dense[..., imaginary, imaginary] = -beta, alpha
    return dense


@SHARINGS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_evolution_is_the_matrix_exponential_of_the_block_matrix(
    dtype: torch.dtype, tolerance: float, sharing: str, relative: Relative
) -> None:
    evolve = operator(dtype, sharing)
    z, dt = torch.randn(4, 6, 3, 2, dtype=dtype), torch.tensor([-1.0, -0.3, 0.0, 0.8], dtype=dtype)
    dense = torch.linalg.matrix_exp(generator(evolve).double() * dt.double()[:, None, None, None, None])
    expected = torch.einsum("nhwij,njhw->nihw", dense, z.double())
    assert relative(evolve(z, dt).detach(), expected) < tolerance


@SHARINGS
def test_each_distinct_time_is_computed_once_and_none_differs_by_a_bit(sharing: str) -> None:
    """Where no gradient is asked for; of 31 rows, as vectorised loops treat the last ones apart."""
    evolve = operator(torch.float32, sharing)
    z, dt = torch.randn(31, 6, 3, 2), torch.tensor([0.3, -1.0, 0.0, -1.0, 0.3]).repeat(7)[:31]
    with torch.no_grad():
        found = evolve(z, dt)
    assert torch.equal(found, evolve(z, dt))
    assert torch.equal(found, torch.cat([evolve(*row) for row in zip(z.split(1), dt.split(1), strict=True)]))


def test_parameters_per_location_and_per_channel() -> None:
    for sharing, shape in (("location", (3, 3, 2)), ("channel", (3, 1, 1))):
        made = KoopmanOperator(6, 3, 2, sharing)
        assert {name: tuple(p.shape) for name, p in made.named_parameters()} == {
            "alpha": shape,
            "beta": shape,
        }


def test_low_rank_eigenvalues_are_sums_of_maps() -> None:
    """With maps that learn, too."""
    made = operator(sharing="low-rank")
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes == {"alpha": (3, 2), "beta": (3, 2), "alpha_maps": (2, 3, 2), "beta_maps": (2, 3, 2)}
    with torch.no_grad():
        made.beta_maps.normal_()
    for part, found in zip(("alpha", "beta"), made.eigenvalues(), strict=True):
        factors, maps = (getattr(made, name).detach().numpy() for name in (part, f"{part}_maps"))
        expected = sum(factors[:, r, None, None] * maps[r] for r in range(2))
        np.testing.assert_allclose(found.detach(), expected, rtol=1e-12)
    # There are no more independent maps than locations.
    assert KoopmanOperator(6, 3, 2, "low-rank", rank=100).alpha.shape == (3, 6)


def test_cosine_maps_are_the_discrete_cosine_transform_smoothest_first() -> None:
    maps = cosine_maps(12, 4, 3).double()
    assert (maps[0] == 1).all()
    waves = [fft.dctn(wave.numpy(), type=2) for wave in maps]
    found = [tuple(int(i[0]) for i in np.nonzero(np.abs(wave) > 1e-5)) for wave in waves]
    assert [len(np.nonzero(np.abs(wave) > 1e-5)[0]) for wave in waves] == [1] * 12
    assert sorted(found) == [(u, v) for u in range(4) for v in range(3)]
    lengths = [math.hypot(*frequency) for frequency in found]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("free", [-50.0, -0.5, 0.0, 1e-4, 2.0, 30.0])
def test_bound_of_alpha(free: float) -> None:
    """bound * tanh(free / bound): below the bound, and as it was where it is small; beta is free."""
    made = operator(alpha_bound=1.5)
    with torch.no_grad():
        made.alpha.fill_(free)
        made.beta.fill_(100.0)
    alpha, beta = made.eigenvalues()
    assert alpha.flatten()[0].item() == pytest.approx(1.5 * math.tanh(free / 1.5), rel=1e-12)
    assert alpha.abs().max() <= 1.5
    assert (beta == 100).all()
    grown = made(torch.ones(1, 6, 3, 2).double(), torch.ones(1).double()).abs().max().item()
    assert grown <= math.sqrt(2) * math.exp(1.5)
    if abs(free) < 1e-3:
        assert alpha.flatten()[0].item() == pytest.approx(free, rel=1e-7)
        slope = torch.autograd.grad(alpha.sum(), made.alpha)[0]
        torch.testing.assert_close(slope, torch.ones_like(slope))


@SHARINGS
@pytest.mark.parametrize("alpha_bound", [0.0, 2.0])
def test_zero_generator_is_the_identity_bit_for_bit(sharing: str, alpha_bound: float) -> None:
    """And it can leave it: alpha and beta have gradients."""
    z = torch.randn(5, 6, 3, 2)
    made = KoopmanOperator(6, 3, 2, sharing, 2, alpha_bound)
    evolved = made(z, torch.linspace(-1, 1, 5))
    assert torch.equal(evolved, z)
    (evolved * torch.randn_like(z)).sum().backward()
    for parameter in (made.alpha, made.beta):
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


def test_zero_time_is_the_identity_bit_for_bit() -> None:
    z = torch.randn(5, 6, 3, 2)
    assert torch.equal(operator(torch.float32)(z, torch.zeros(1)), z)


def test_semigroup_law_of_the_operator(relative: Relative) -> None:
    evolve = operator()
    z, one, two = torch.randn(4, 6, 3, 2).double(), torch.rand(4).double(), -torch.rand(4).double()
    assert relative(evolve(evolve(z, one), two), evolve(z, one + two)) < 1e-14
    assert relative(evolve(evolve(z, one), -one), z) < 1e-14


@SHARINGS
@pytest.mark.parametrize(("rows", "times"), [(2, 2), (2, 1), (1, 2)])
def test_gradients_of_the_evolution_match_finite_differences(sharing: str, rows: int, times: int) -> None:
    """Of every row its own time, of all one time, and of one row several."""
    made = operator(sharing=sharing, alpha_bound=1.5)
    z = torch.randn(rows, 6, 3, 2, dtype=torch.float64, requires_grad=True)
    dt = torch.tensor([-0.7, 0.4], dtype=torch.float64)[:times]

    def evolve(alpha: Tensor, beta: Tensor, z: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(made, {"alpha": alpha, "beta": beta}, (z, dt))
        return result

    assert torch.autograd.gradcheck(evolve, (made.alpha, made.beta, z))
    with torch.no_grad():
        fixed = propagators([made], dt)[0]
    assert torch.autograd.gradcheck(lambda z: evolved(z, *fixed), z)


def test_compiled_evolution_and_its_gradients_are_the_same() -> None:
    """A compiler is given the formula, whose derivative it finds by itself."""
    made = operator()
    z, dt = torch.randn(3, 6, 3, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    weights = torch.randn_like(z)

    def run(evolve: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [z.clone().requires_grad_(), made.alpha, made.beta]
        found = evolve(inputs[0], dt)
        return [found, *torch.autograd.grad((found * weights).sum(), inputs)]

    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(run(made), run(compiled), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evolution_stays_float32_under_autocast(dtype: torch.dtype) -> None:
    """And the operator's gradients with it: neither adds a rounding to those of z and of the slope."""
    evolve = operator(torch.float32)
    z, dt = torch.randn(2, 6, 3, 2).to(dtype), torch.tensor([-1.0, 0.3])
    with torch.autocast("cpu", torch.bfloat16):
        evolved = evolve(z, dt)
    expected = evolve(z.float(), dt)
    assert evolved.dtype == dtype
    assert torch.equal(evolved, expected.to(dtype))
    slope = torch.randn_like(z)
    gradients = [
        torch.autograd.grad(value, [evolve.alpha, evolve.beta], slope.to(value))
        for value in (evolved, expected)
    ]
    assert all(map(torch.equal, *gradients))


def test_odd_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="5 cannot be paired"):
        KoopmanOperator(5, 2, 2)


def tau(sigma: float, time: str) -> float:
    return evolution_time(torch.tensor([sigma], dtype=torch.float64), time, 0.002, 80.0, 7.0, 0.5).item()


@pytest.mark.parametrize(
    ("time", "sigma", "expected"),
    [
        ("karras", 0.002, 0.0),
        ("karras", 80.0, 1.0),
        ("karras", ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7, 0.5),
        ("karras", ((0.002 ** (1 / 7) * 3 + 80 ** (1 / 7)) / 4) ** 7, 0.25),
        ("log", 0.002, 0.0),
        ("log", 80.0, 1.0),
        ("log", math.sqrt(0.002 * 80), 0.5),
        ("log", 0.002 * (80 / 0.002) ** 0.25, 0.25),
        ("sigma-unit", 80.0, 1.0),
        ("sigma-unit", 20.0, 0.25),
        ("sigma-unit", 0.002, 0.000025),
        ("angle", 0.5, 0.5),
        ("angle", 0.5 * math.tan(math.pi / 6), 1 / 3),
        ("angle", 0.5 * math.sqrt(3), 2 / 3),
    ],
)
def test_evolution_time_values(time: str, sigma: float, expected: float) -> None:
    assert tau(sigma, time) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("time", ["karras", "log", "sigma-unit"])
def test_evolution_time_of_the_end_is_that_of_sigma_min(time: str) -> None:
    assert tau(0.0, time) == tau(0.002, time)
