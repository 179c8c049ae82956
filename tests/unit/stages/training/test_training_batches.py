import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.manifests.archive.reading_order import Blocks, training_indices
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.training.batch_reader import Reader
from hkdpipe.stages.training.train import check_archive, read_batch, training_identity
from hkdpipe.stages.training.watching import held_out
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings, KoopmanSettings
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm import Architecture
from hkdpipe.trainer.teachers.teacher import Teacher

WriteShards = Callable[[Path, Plan, int], None]
TRAINING = TrainingSettings(validation=3, seed=2)
ARCH = Architecture(2, 1, model_channels=4, channel_mult=(1,), num_blocks=1)


def student(times: int = 1) -> HKD:
    return HKD(ARCH, HkdOptions(HkdSettings(times=times)), 0.002, 80.0, 7.0)


@pytest.fixture
def archive(tmp_path: Path, plan: Plan, write_shards: WriteShards) -> Iterator[Archive]:
    write_shards(tmp_path / "archive", plan, plan.shards)
    with open_archive(tmp_path / "archive") as opened:
        yield opened


@pytest.mark.parametrize("times", [1, 3])
def test_batch_holds_the_drawn_states_their_levels_and_the_end(archive: Archive, times: int) -> None:
    """State k of trajectory i holds 10 i + k: which was read can be told from the values."""
    batch = read_batch(Reader(archive, TRAINING, print), student(times), 5, 25)
    indices = training_indices(2, 5, 25, 3, 12)
    drawn = student(times).draw_states(TRAINING.seed, np.arange(5, 25), archive.sigmas)
    assert batch.states.shape == (20, times + 1, 1, 2, 2), "that of the last state follows"
    assert batch.ends.shape == (20, 1, 2, 2)
    there = batch.to(torch.device("cpu"))
    assert {there.states.dtype, there.sigmas.dtype, there.ends.dtype} == {torch.float32}
    assert batch.states.dtype == getattr(torch, archive.plan.dtype), "as stored"
    assert np.array_equal(batch.numbers, drawn)
    assert np.array_equal(batch.positions, np.arange(5, 25))  # type: ignore[arg-type]
    if archive.plan.classes:
        assert batch.labels is not None
        assert batch.labels.shape == (20, 4)
        assert batch.labels.argmax(dim=1).tolist() == archive.plan.labels(indices).tolist()  # type: ignore[union-attr]
        assert set(batch.labels.sum(dim=1).tolist()) == {1.0}
    assert (batch.states == torch.from_numpy(10 * indices[:, None] + drawn)[:, :, None, None, None]).all()
    assert (batch.ends == torch.from_numpy(10 * indices + 4)[:, None, None, None]).all()
    np.testing.assert_allclose(batch.sigmas, archive.sigmas[drawn], rtol=1e-6)
    assert batch.ends.min() >= 30, "a held-out trajectory was read"


def test_batches_depend_on_the_positions_alone(archive: Archive) -> None:
    whole = read_batch(Reader(archive, TRAINING, print), student(), 0, 30)
    parts = [
        read_batch(Reader(archive, TRAINING, print), student(), *part) for part in ((0, 4), (4, 17), (17, 30))
    ]
    assert (whole.labels is None) == (not archive.plan.classes)
    for name, value in ((name, value) for name, value in vars(whole).items() if value is not None):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), value)


def test_batches_in_blocks_of_shards(archive: Archive) -> None:
    """Shards of 5 of 12 trajectories, blocks of one shard each: an epoch of 9 goes from shard to shard."""
    training = dataclasses.replace(TRAINING, order="blocks", block_shards=1)
    blocks = Blocks(shard_size=5, shards=1)
    ends = read_batch(Reader(archive, training, print), student(), 0, 18).ends[:, 0, 0, 0]
    assert ((ends - 4) / 10).tolist() == training_indices(2, 0, 18, 3, 12, blocks).tolist()


def test_held_out_trajectories_are_the_first_ones(archive: Archive) -> None:
    batch = held_out(Reader(archive, TRAINING, print), torch.device("cpu"))
    assert batch is not None
    assert batch.states[:, 0, 0, 0, 0].tolist() == [0, 10, 20]
    assert batch.states[:, 1, 0, 0, 0].tolist() == [3, 13, 23]
    assert batch.ends[:, 0, 0, 0].tolist() == [4, 14, 24]
    assert batch.sigmas[:, 0].tolist() == pytest.approx([80] * 3)
    assert batch.sigmas[:, 1].tolist() == pytest.approx([archive.sigmas[3]] * 3)
    labels = archive.plan.labels(range(3))
    assert (None if batch.labels is None else batch.labels.argmax(dim=1).tolist()) == (
        None if labels is None else labels.tolist()
    )
    none = dataclasses.replace(TRAINING, validation=0)
    assert held_out(Reader(archive, none, print), torch.device("cpu")) is None


def test_archive_of_another_teacher_or_too_small(archive: Archive) -> None:
    teacher, other = (Teacher(cast(Any, None), "source") for _ in range(2))
    vars(teacher)["sha256"], vars(other)["sha256"] = "ab" * 32, "cd" * 32
    check_archive(archive, teacher, TRAINING, HkdOptions(), Path("archive"))
    with pytest.raises(UsageError, match=r"made with another teacher \(SHA-256 abababababab\.\.\.\)"):
        check_archive(archive, other, TRAINING, HkdOptions(), Path("archive"))
    few = dataclasses.replace(TRAINING, validation=12)
    with pytest.raises(UsageError, match="validation: got 12; accepted: below the archive's 12"):
        check_archive(archive, teacher, few, HkdOptions(), Path("archive"))


def test_identity_of_a_training(
    tmp_path: Path, plan: Plan, archive: Archive, write_shards: WriteShards
) -> None:
    """What it learns and from what: not the form of the archive, nor what may change on the way."""

    def identity(opened: Archive = archive, options: Any = None, **changes: Any) -> str:
        return training_identity(
            opened, dataclasses.replace(TRAINING, perceptual="none", **changes), options or HkdOptions()
        )

    write_shards(tmp_path / "tar", dataclasses.replace(plan, form="webdataset"), plan.shards)
    write_shards(tmp_path / "seed", dataclasses.replace(plan, seed=8), plan.shards)
    with open_archive(tmp_path / "tar") as tar, open_archive(tmp_path / "seed") as seed:
        assert identity(tar) == identity()
        assert identity(seed) != identity()
    assert identity(budget=10**9, checkpoint_every=7, keep_checkpoints=9) == identity()
    assert identity(workers=9) == identity()
    assert identity(order="blocks") != identity()
    assert identity(learning_rate=0.5) != identity()
    assert identity(options=HkdOptions(koopman=KoopmanSettings(time="log"))) != identity()
