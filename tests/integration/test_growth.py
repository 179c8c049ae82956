"""An archive that grows while workers are at it is the one that is made at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_killed_at_random import content, different
from tiny import GENERATION, WORK, Inputs

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.archive.reading_order import training_indices
from hkdpipe.manifests.ground.errors import Interrupted
from hkdpipe.stages.generation import generate
from hkdpipe.stages.generation.worker import ALONE, Worker
from hkdpipe.stages.settings.generation_settings import GenerationSettings

LARGE = replace(GENERATION, count=26, shard_size=4, steps=2)
SMALL = replace(LARGE, count=10)  # two whole shards, and one that is to grow


def make(inputs: Inputs, out: Path, settings: GenerationSettings, worker: Worker = ALONE, **more: Any) -> Any:
    return generate.generate(str(inputs.teacher), out, settings, worker=worker, **{**WORK, **more}).data


@pytest.fixture(params=["zarr", "webdataset"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(out: Path, inputs: Inputs, form: str) -> None:
    at_once = out.parent / "at once"
    make(inputs, at_once, replace(LARGE, format=form))
    assert not different(content(out), content(at_once))


@pytest.mark.parametrize("call", [1, 2, 4, 5])
def test_a_worker_that_knows_the_smaller_count_goes_on_beside_larger_ones(
    call: int, form: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one of its network batches, of its last shard too, another one makes the rest of a larger archive.

    What it knows as a short last shard is a longer one then, and left alone.
    """
    small, large = replace(SMALL, format=form), replace(LARGE, format=form)
    sample, calls = generate.sample_batch, 0

    def growing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            make(inputs, tmp_path / "out", large, Worker(1, 2))
        return sample(*arguments)

    monkeypatch.setattr(generate, "sample_batch", growing)
    last_is_taken = call == 5
    left = make(inputs, tmp_path / "out", small, Worker(0, 3))["missing"]
    assert left == last_is_taken
    assert (tmp_path / "out" / "manifest.json").exists() != last_is_taken
    monkeypatch.setattr(generate, "sample_batch", sample)
    make(inputs, tmp_path / "out", large)
    check(tmp_path / "out", inputs, form)


def test_growing_by_other_workers_and_interrupted(form: str, inputs: Inputs, tmp_path: Path) -> None:
    out, validation = tmp_path / "out", 4
    make(inputs, out, replace(SMALL, format=form), Worker(1, 3))
    with open_archive(out) as opened:
        held_out = opened.read(range(validation), range(3))
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    for number, worker in enumerate((Worker(4, 5), Worker(0, 2), Worker(1, 7))):
        larger, asked = replace(LARGE, format=form, count=14 + 6 * number), 0
        with pytest.raises(Interrupted):
            make(inputs, out, larger, worker, stop=stop)
        if number == 1:
            make(inputs, out, larger, Worker(3, 4))
    make(inputs, out, replace(LARGE, format=form))
    check(out, inputs, form)
    with open_archive(out) as opened:
        np.testing.assert_array_equal(opened.read(range(validation), range(3)), held_out)
    for count in (SMALL.count, LARGE.count):
        trained_on = training_indices(0, 0, count - validation, validation, count)
        assert set(trained_on.tolist()) == set(range(validation, count))
