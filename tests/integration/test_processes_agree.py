"""Two processes that share a global batch do what one process does with all of it."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import HKDPIPE, TORCHRUN, Ran, hkdpipe, run, succeeded
from tiny import KDM, KOOPMAN, TRAINING, Inputs, settings

from hkdpipe.trainer.settings.training_settings import TrainingSettings

# The second process may write to no file more than the 512 bytes with which Python tries a temporary folder.
ONLY_THE_FIRST_WRITES = ["sh", "-c", '[ "$RANK" = 0 ] || ulimit -f 1; exec "$@"', "sh"]


def command(inputs: Inputs, out: str, training: TrainingSettings) -> list[str]:
    places = ["--out", out, "--teacher", str(inputs.teacher), "--archive", str(inputs.archive())]
    return ["train", *places, *settings(training=training, koopman=KOOPMAN, kdm=KDM)]


def two_processes(folder: Path, *arguments: str) -> Ran:
    launcher = [TORCHRUN, "--standalone", "--no-python", "--nproc-per-node", "2"]
    return run([*launcher, *ONLY_THE_FIRST_WRITES, HKDPIPE, *arguments], folder)


def moments(out: Path) -> torch.Tensor:
    """Adam's first moments after four steps."""
    state = torch.load(out / "checkpoints" / "step-00000004" / "optimizer.pt", weights_only=True)["state"]
    found = [state[key]["exp_avg"].flatten() for key in sorted(state)]
    assert found[-1].any(), "the last group, HKD's operators, has not learned"
    return torch.cat(found)


def rows(out: Path) -> list[dict[str, float]]:
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("method", ["hkd", "kdm"])
def test_gradients(inputs: Inputs, tmp_path: Path, method: str) -> None:
    """Of four steps, in the last of which the operators learn from the latent consistency."""
    few = replace(TRAINING, method=method, budget=32, batch_size=8, gradient_clip=0.0, precision="float64")
    succeeded(hkdpipe(tmp_path, *command(inputs, "one", few)))
    ran = succeeded(two_processes(tmp_path, *command(inputs, "two", few)))
    assert "4 of 8, 2 process(es)" in ran.out
    one, two = moments(tmp_path / "one"), moments(tmp_path / "two")
    assert one.norm() > 0
    assert (one - two).norm() / one.norm() < 1e-10


@pytest.mark.slow
def test_two_hundred_steps_and_on_with_one_process(inputs: Inputs, tmp_path: Path) -> None:
    # Nothing that depends on the budget, since it grows.
    short = replace(
        TRAINING, budget=800, precision="float64", schedule="constant", mse_decades=0.0, checkpoint_every=400
    )
    longer = replace(short, budget=960)
    succeeded(hkdpipe(tmp_path, *command(inputs, "one", longer)))
    succeeded(two_processes(tmp_path, *command(inputs, "two", short)))
    assert [row["seen"] for row in rows(tmp_path / "two")] == list(range(80, 801, 80))
    succeeded(hkdpipe(tmp_path, *command(inputs, "two", longer)))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["seen"] for row in one] == [row["seen"] for row in two] == list(range(80, 961, 80))
    for expected, row in zip(one, two, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    # The loss has moved, so that agreeing says something.
    assert one[-1]["loss"] < 0.9 * one[0]["loss"]


def test_a_batch_that_cannot_be_divided(inputs: Inputs, tmp_path: Path) -> None:
    ran = two_processes(tmp_path, *command(inputs, "two", replace(TRAINING, batch_size=5)))
    assert ran.code != 0
    message = "training.batch_size: got 5; accepted: a multiple of the 2 processes"
    assert ran.errors
    assert {line.replace(" (rank 1)", "").removeprefix("hkdpipe: error: ") for line in ran.errors} == {
        message
    }
    assert not (tmp_path / "two").exists()
