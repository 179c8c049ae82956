"""Several processes that generate one archive, some of them killed, make what one process makes alone."""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Running, hkdpipe, started, succeeded
from test_killed_at_random import content, different
from tiny import GENERATION, WORK, Inputs, settings

from hkdpipe.manifests.archive import contents
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import Interrupted
from hkdpipe.stages.generation.generate import claim_of, generate
from hkdpipe.stages.settings.generation_settings import GenerationSettings

LONG = replace(GENERATION, count=80, steps=30)


def campaign(
    inputs: Inputs,
    folder: Path,
    generation: GenerationSettings,
    workers: int,
    kills: int,
    chance: random.Random,
) -> Iterator[str]:
    """Keep so many workers going while killing one after the other; yields what was killed."""
    command = ["generate-trajectories", "--out", "out", "--teacher", str(inputs.teacher)]
    options = settings(generation=generation)

    with ExitStack() as stack:

        def start() -> Running:
            # Numbers and counts may change on the way.
            count = chance.randint(1, 2 * workers)
            worker = f"{chance.randrange(count)}/{count}"
            return stack.enter_context(started(folder, *command, "--worker", worker, *options))

        running = [start() for _ in range(workers)]
        out = folder / "out"
        while kills and not (out / "manifest.json").exists():
            time.sleep(chance.uniform(0, 1.5))
            victim = chance.randrange(workers)
            # A shard is being made: no longer imports, nor the plan.
            if running[victim].process.poll() is None and list(out.glob("claims/0*.json")):
                running[victim].process.send_signal(signal.SIGKILL)
                running[victim].end()
                kills -= 1
                yield f"{len(contents.missing_shards(out, contents.planned(out)))} missing"
                running[victim] = start()
        for each in running:
            succeeded(each.end())
    # Of the last two, each may have seen the other one at work.
    succeeded(hkdpipe(folder, *command, *options))


def check(inputs: Inputs, folder: Path, generation: GenerationSettings, workers: int, kills: int) -> None:
    seed = random.randrange(10**6)
    generate(str(inputs.teacher), folder / "alone", generation, **WORK)
    killed = list(campaign(inputs, folder, generation, workers, kills, random.Random(seed)))
    print(f"seed {seed}: {killed}")
    changed = different(content(folder / "out"), content(folder / "alone"))
    assert not changed, f"seed {seed}"
    assert killed


def test_two_workers_and_a_killed_one(inputs: Inputs, tmp_path: Path) -> None:
    check(inputs, tmp_path, LONG, workers=2, kills=1)


def test_a_worker_that_waits_makes_what_another_gives_up(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make = partial(generate, str(inputs.teacher), out, GENERATION)
    with Claims(out) as others:
        others.take(claim_of(1))

        def pass_the_time(seconds: float) -> None:
            others.release(claim_of(1))

        clock = SimpleNamespace(monotonic=time.monotonic, sleep=pass_the_time)
        monkeypatch.setattr("hkdpipe.stages.generation.generate.time", clock)
        assert make(**WORK).data["missing"] == 1
        with pytest.raises(Interrupted, match="stopped while others make the last shards"):
            make(**{**WORK, "stop": lambda: True}, wait=True)
        assert make(**WORK, wait=True).data["missing"] == 0
    generate(str(inputs.teacher), tmp_path / "alone", GENERATION, **WORK)
    assert not different(content(out), content(tmp_path / "alone"))
