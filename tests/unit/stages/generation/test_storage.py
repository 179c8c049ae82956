import dataclasses
from collections import namedtuple
from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import HkdpipeError
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.generation import disk_space
from hkdpipe.stages.generation.disk_space import check_storage, in_bytes
from hkdpipe.stages.shared.reporting import Silent

Usage = namedtuple("Usage", "total used free")
NEED = 12 * 5 * 8  # trajectories, states, bytes of a 1 x 2 x 2 state in float16


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def leave(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(10**9, 0, free))


def test_what_just_fits_is_reported(
    plan: Plan, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, NEED)
    check_storage(tmp_path, plan, range(plan.shards), heard)
    (line,) = heard.lines
    assert line.startswith("storage: 12 trajectories x 5 states x 8 B = 480 B; 480 B free on /")


def test_what_compression_makes_of_it_is_not_foretold(
    plan: Plan, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 100)
    check_storage(tmp_path, dataclasses.replace(plan, codec="lz4"), range(plan.shards), heard)
    (line,) = heard.lines
    assert line.startswith(
        "storage: 12 trajectories x 5 states x 8 B = 480 B before compression; 100 B free on /"
    )


def test_what_does_not_fit_is_refused(
    plan: Plan, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, NEED - 1)
    with pytest.raises(HkdpipeError, match=r"x 8 B = 480 B are to be stored, 479 B are free on /") as caught:
        check_storage(tmp_path, plan, range(plan.shards), heard)
    assert caught.value.exit_code == 1
    assert not heard.lines


def test_missing_shards_count(
    plan: Plan, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, 7 * 5 * 8)
    check_storage(tmp_path, plan, [1, 2], heard)  # of 5 and of 2 trajectories
    check_storage(tmp_path, plan, [], heard)
    (line,) = heard.lines
    assert line.startswith("storage: 7 trajectories x ")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (6144, "6.1 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (116_736_000_000, "116.7 GB"),
        (2_560_000_000_000_000, "2,560.0 TB"),
    ],
)
def test_bytes_in_words(number: int, words: str) -> None:
    assert in_bytes(number) == words
