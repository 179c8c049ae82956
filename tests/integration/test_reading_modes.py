"""However an archive is read, a training on it is the same."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Called, succeeded
from tiny import KOOPMAN, OPTIONS, TRAINING, WORK, Inputs, settings

from hkdpipe.stages.training.train import train
from hkdpipe.trainer.loop.distributed import World
from hkdpipe.trainer.settings.training_settings import TrainingSettings

RESULTS = ("weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json")
# Nothing that depends on the budget, since it grows.
BLOCKS = replace(
    TRAINING, order="blocks", block_shards=2, schedule="constant", mse_decades=0.0, checkpoint_every=24
)


def train_on(inputs: Inputs, archive: Path | str, out: Path, training: TrainingSettings) -> None:
    train(str(inputs.teacher), archive, out, training, OPTIONS["hkd"], world=World(), **WORK)


def results(out: Path) -> dict[str, bytes]:
    newest = max((out / "checkpoints").iterdir())
    return {name: (newest / name).read_bytes() for name in RESULTS}


def test_at_random_or_streamed_or_from_elsewhere_also_where_it_goes_on(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 trajectories, three epochs of 16; the streamed one is continued in the middle of the second."""
    monkeypatch.setenv("HKDPIPE_CACHE", str(tmp_path / "cache"))
    train_on(inputs, inputs.archive("webdataset"), tmp_path / "random", replace(BLOCKS, workers=0))
    url = f"file://{inputs.archive('webdataset')}"
    streaming = replace(BLOCKS, streaming=True, workers=3)
    train_on(inputs, inputs.archive("webdataset"), tmp_path / "streamed", replace(streaming, budget=24))
    train_on(inputs, url, tmp_path / "streamed", streaming)
    train_on(inputs, f"file://{inputs.archive()}", tmp_path / "fetched", BLOCKS)
    expected = results(tmp_path / "random")
    for other in ("streamed", "fetched"):
        assert results(tmp_path / other) == expected, other
    assert len(list((tmp_path / "cache").glob("*"))) == 1 + 1 + 3, "locks, the held-out shard, all in zarr"


def test_a_damaged_shard_is_skipped_if_asked(inputs: Inputs, tmp_path: Path, called: Called) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(inputs.archive(), archive)
    shard = archive / "states" / "c" / "1" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    command = ["train", "--teacher", str(inputs.teacher), "--archive", str(archive)]
    command += settings(training=TRAINING, koopman=KOOPMAN)
    ran = called(*command, "--out", str(tmp_path / "stopped"))
    assert ran.code == 3
    assert "shard 1 (states/c/1/0/0/0/0) is damaged" in ran.errors[0]
    skipping = ["--set", "training.on_damage=skip", "--out", str(tmp_path / "skipped")]
    ran = succeeded(called(*command, *skipping))
    warnings = [line for line in ran.err.splitlines() if "is damaged" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{archive}: shard 1 (states/c/1/0/0/0/0)")
    # Half of the 16 trajectories that are trained on, three times over.
    assert "24, of damaged shards" in ran.out
    with (tmp_path / "skipped" / "metrics.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file))[-1]["replaced"] == "24"
