import dataclasses

import numpy as np
import pytest
import torch

from hkdpipe.manifests.forms.residual_encoding import decode_states, storable
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import STATE_TYPES, encode
from hkdpipe.stages.generation.device_encoding import stored_numbers


@pytest.fixture
def noise(plan: Plan) -> torch.Tensor:
    return torch.from_numpy(rng.unit_noise(plan.seed, "archive", range(3000), plan.shape))


def states_from(noise: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The noise at each level, but for residuals of magnitude 1 at the later ones; (N, k, C, H, W)."""
    levels = torch.tensor(plan.sigmas, dtype=torch.float64)[:, None, None, None]
    states = levels * noise.double()[:, None]
    return states + torch.randn(states.shape, dtype=torch.float64) * (levels < levels[0])


@pytest.mark.parametrize("dtype", STATE_TYPES)
def test_states_are_rounded_as_the_archive_says(plan: Plan, noise: torch.Tensor, dtype: str) -> None:
    plan = dataclasses.replace(plan, dtype=dtype)
    states = states_from(noise, plan)
    stored = stored_numbers(states, noise, plan)
    assert stored.dtype == plan.stored_dtype
    assert stored.tobytes() == encode(states.numpy(), dtype).tobytes()


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2.0**-11), ("float32", 2.0**-24)])
def test_residuals_give_the_states_back(plan: Plan, noise: torch.Tensor, dtype: str, relative: float) -> None:
    """The first exactly; of the others, no more is lost than the residual's rounding and one of float32."""
    plan = dataclasses.replace(plan, dtype=dtype, encoding="residual")
    states = states_from(noise, plan)
    stored = stored_numbers(states, noise, plan)
    assert stored[:, 0].tobytes() == noise.numpy().astype(dtype).tobytes()
    rows = np.arange(len(noise))[:, None]
    columns = np.broadcast_to(np.arange(5), (len(noise), 5))
    found = decode_states(plan, columns, lambda wanted: stored[rows, wanted])
    assert np.array_equal(found[:, 0], states[:, 0].float())
    levels = np.array(plan.sigmas).astype(np.float32)[:, None, None, None]
    residuals = states.numpy() - (levels * noise.numpy()[:, None].astype(np.float32)).astype(np.float64)
    allowed = np.abs(residuals) * relative + np.abs(states.numpy()) * 2.0**-24 + 2.0**-25
    assert (np.abs(found - states.numpy()) <= allowed).all()


@pytest.fixture
def quantised(plan: Plan) -> Plan:
    return dataclasses.replace(plan, encoding="quantised", codec="lz4")


def test_quantised_residuals_are_half_a_step_off_at_most(quantised: Plan, noise: torch.Tensor) -> None:
    states = states_from(noise, quantised)
    stored = stored_numbers(states, noise, quantised)
    assert stored.dtype == quantised.stored_dtype == np.int16
    assert stored[:, 0].tobytes() == noise.numpy().astype(np.float16).tobytes()
    assert storable(quantised, stored).all()
    rows = np.arange(len(noise))[:, None]
    columns = np.broadcast_to(np.arange(5), (len(noise), 5))
    found = decode_states(quantised, columns, lambda wanted: stored[rows, wanted])
    assert found.dtype == np.float32
    assert np.array_equal(found[:, 0], states[:, 0].float())
    allowed = 1 / 2048 + np.abs(states.numpy()) * 2.0**-23
    assert (np.abs(found - states.numpy()) <= allowed).all()


@pytest.mark.parametrize("beyond", [32.0, -32.0, 1e30, np.inf, np.nan])
def test_what_steps_cannot_hold_is_marked(quantised: Plan, noise: torch.Tensor, beyond: float) -> None:
    """So that writing refuses it; the last steps before, and all other trajectories, are held."""
    levels = torch.tensor(quantised.sigmas, dtype=torch.float32)
    states = levels[:, None, None, None].double() * noise.double()[:, None]
    states[5, 2, 0, 1, 1] += beyond
    states[6, 2, 0, 1, 1] += 32766 / 1024
    stored = stored_numbers(states, noise, quantised)
    assert np.flatnonzero(~storable(quantised, stored)).tolist() == [5]
    assert stored[6, 2, 0, 1, 1] == 32766
