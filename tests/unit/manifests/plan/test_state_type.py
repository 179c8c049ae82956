import numpy as np
import pytest
import torch

from hkdpipe.manifests.plan.state_type import STATE_TYPES, decode, encode, finite, stored_dtype


def test_bfloat16_is_torchs() -> None:
    """Of all float32 sign and exponent bits, with mantissas that round down, up, and to even in ties."""
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    numbers = (high[:, None] | low).reshape(-1).view(np.float32)
    expected = torch.from_numpy(numbers).bfloat16()
    found = decode(encode(numbers, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(found, expected.float().numpy())


def test_others_are_numpys() -> None:
    numbers = np.random.default_rng(0).normal(size=1000) * 80
    for name in ("float16", "float32"):
        assert encode(numbers, name).tobytes() == numbers.astype("float32").astype(name).tobytes()
        assert decode(encode(numbers, name), name).dtype == np.dtype(name)


def test_encoded_numbers_have_the_stored_type() -> None:
    for name in STATE_TYPES:
        assert encode(np.zeros(3), name).dtype == stored_dtype(name)


@pytest.mark.parametrize("name", STATE_TYPES)
def test_what_is_not_finite_is_found_in_its_trajectory(name: str) -> None:
    greatest = {"float16": 65504.0, "float32": float(np.finfo("f4").max), "bfloat16": 3.38e38}[name]
    numbers = np.full((6, 2, 3), -greatest)
    numbers[[1, 2, 4], 1, 2] = np.inf, -np.inf, np.nan
    assert finite(encode(numbers, name), name).tolist() == [True, False, False, True, False, True]
