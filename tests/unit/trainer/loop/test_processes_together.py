"""Processes that train together, for real: each step and each resumption does what it would undisturbed."""

import datetime
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fit_together import Sitting, free_port, together
from safetensors.torch import load_file

from hkdpipe.manifests.ground.errors import HkdpipeError
from hkdpipe.trainer.loop import distributed
from hkdpipe.trainer.loop.checkpoint import FILES, checkpoints, read_state
from hkdpipe.trainer.loop.world import World


def finished(size: int, logs: Path, *sittings: Sitting, spoil: int | None = None) -> None:
    ended = together(size, logs, *sittings, spoil=spoil)
    assert [process.code for process in ended] == [0] * size, ended


def last(folder: Path) -> dict[str, bytes]:
    """The files of a finished training's last checkpoint."""
    path = checkpoints(folder)[-1]
    assert path.name == "step-00000012"
    return {name: (path / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By three processes in one sitting."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finished(3, folder, (folder / "run", math.inf))
    return folder / "run"


def test_three_processes_resumed_again_and_again_change_no_bit(undisturbed: Path, tmp_path: Path) -> None:
    """Another one of them is asked to stop each time, and all do at the same step."""
    finished(3, tmp_path, *((tmp_path / "run", steps) for steps in (1, 1, 3, 2, math.inf)))
    assert last(tmp_path / "run") == last(undisturbed)


def test_a_process_killed_at_any_step_ends_the_others_in_one_line_and_changes_no_bit(
    undisturbed: Path, tmp_path: Path
) -> None:
    step = random.randrange(12)
    print(f"the last process is gone after {step} steps")
    *others, killed = together(3, tmp_path, (tmp_path / "run", math.inf), vanish=step)
    assert killed.code == 9, killed
    for ended in others:
        assert ended.code == 1, ended
        # On a busy machine one that lives may be late to say so.
        assert re.fullmatch(
            r"process(es \d,)? 2 of this training (is|are) gone, so this one ends too \(.+\n", ended.errors
        )
    finished(3, tmp_path, (tmp_path / "run", math.inf))
    assert last(tmp_path / "run") == last(undisturbed)


def test_a_loss_that_is_not_finite_on_one_of_two_processes_is_a_skipped_step_of_both(tmp_path: Path) -> None:
    """And they go on with the same weights, as they see for themselves."""
    finished(2, tmp_path, (tmp_path / "run", 3), spoil=1)
    assert read_state(checkpoints(tmp_path / "run")[-1])["skipped"] == [1, 0]


def test_processes_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(distributed, "PATIENCE", datetime.timedelta(seconds=2))
    monkeypatch.setattr(distributed, "GRACE", datetime.timedelta(seconds=1))

    def said(rank: int) -> str:
        with (
            pytest.raises(HkdpipeError) as caught,
            distributed.connected(World(rank, 4, rank), torch.device("cpu")),
        ):
            pass
        return str(caught.value)

    with ThreadPoolExecutor() as threads:
        found = list(threads.map(said, (0, 2)))
    assert (
        found
        == [
            f"the 4 processes of this training did not meet at 127.0.0.1:{port}: processes 1, 3 did not "
            "come within 2 s"
        ]
        * 2
    )
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    assert "processes of this training did not meet at 127.0.0.1:" in said(1)


def test_one_process_and_two_in_turn_do_the_same_steps(tmp_path: Path) -> None:
    """Equal to rounding: the sums are the same, their order is another."""
    for size, steps in ((2, 3), (1, 5), (2, math.inf)):
        finished(size, tmp_path, (tmp_path / "turns", steps))
    finished(1, tmp_path, (tmp_path / "one", math.inf))
    turns, one = (checkpoints(tmp_path / name)[-1] for name in ("turns", "one"))
    assert read_state(turns)["seen"] == read_state(one)["seen"] == 72
    for name in ("weights.safetensors", "ema.safetensors"):
        expected = load_file(one / name)
        for key, value in load_file(turns / name).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
