"""Archives in the residual encoding, against the formula of the documentation."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive import writer
from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.plan.plan import Plan


@pytest.fixture(params=["float16", "float32"])
def residual(plan: Plan, request: pytest.FixtureRequest) -> Plan:
    return dataclasses.replace(plan, encoding="residual", dtype=request.param)


def stored_in(root: Path, plan: Plan) -> NDArray[Any]:
    """A finished archive of random residuals; returns what it stores."""
    stored = np.random.default_rng(3).normal(size=(plan.count, *plan.states_shape)).astype(plan.dtype)
    stored[:, 0] = rng.unit_noise(plan.seed, "archive", range(plan.count), plan.shape)
    stored[4, 0, 0, 0, 0] = -0.0
    writer.begin(root, plan)
    for k in range(plan.shards):
        writer.write_shard(root, plan, k, stored[slice(*plan.shard_range(k))], {})
    writer.finish(root, plan)
    return stored


def expected(stored: NDArray[Any], plan: Plan, index: int, state: int) -> NDArray[np.float32]:
    """One state, number by number."""
    sigma = np.float32(plan.sigmas[state])
    noise, numbers = stored[index, 0].astype(np.float32), stored[index, state].astype(np.float32)
    return sigma * noise if state == 0 else numbers + sigma * noise


def test_reading_follows_the_formula_bit_by_bit(tmp_path: Path, residual: Plan) -> None:
    stored = stored_in(tmp_path, residual)
    rows = np.array([9, 4, 4, 0, 7, 3])
    columns = np.array([[0, 1, 2], [4, 3, 0], [2, 2, 4], [1, 0, 0], [0, 0, 0], [4, 1, 3]])
    with open_archive(tmp_path) as archive:
        found = archive.read(rows, columns)
        whole = archive.read(range(10), range(5))
        assert archive.read(rows, []).shape == (6, 0, 2, 3, 4)
        assert archive.read([], [0, 2]).shape == (0, 2, 2, 3, 4)
    assert found.dtype == whole.dtype == np.float32
    for b, index in enumerate(rows):
        for j, state in enumerate(columns[b]):
            assert found[b, j].tobytes() == expected(stored, residual, index, state).tobytes()
    states = [[expected(stored, residual, i, state) for state in range(5)] for i in range(10)]
    assert whole.tobytes() == np.array(states).tobytes()


def test_the_noise_is_read_once_and_nothing_besides_what_is_asked_for(
    tmp_path: Path, residual: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_in(tmp_path, residual)
    with open_archive(tmp_path) as archive:
        for columns, states_read in (([0], 1), ([0, 0], 1), ([0, 1, 2], 3), ([4], 2), ([3, 0], 2)):
            archive.read([1], columns)
            assert bytes_read(archive, columns, monkeypatch) == states_read * residual.state_bytes


def bytes_read(archive: Archive, columns: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    counts = []
    preadv = os.preadv

    def counted(*arguments: Any) -> int:
        counts.append(preadv(*arguments))
        return counts[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", counted)
        archive.read([1], columns)
    return sum(counts)


def test_an_archive_keeps_its_encoding(tmp_path: Path, plan: Plan, residual: Plan) -> None:
    stored_in(tmp_path, residual)
    with pytest.raises(Exception, match="encoding: this archive has 'residual', now 'states'"):
        writer.begin(tmp_path, dataclasses.replace(residual, encoding="states"))
    assert "encoding" not in plan.to_json()
    assert residual.to_json()["encoding"] == "residual"


@pytest.mark.parametrize(
    ("change", "message"), [({"encoding": "delta"}, "delta"), ({"dtype": "bfloat16"}, "exactly")]
)
def test_what_cannot_be_encoded_is_refused(residual: Plan, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"encoding: got .*{message}"):
        dataclasses.replace(residual, **change)
