import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.archive.reader import Archive, DamagedShard, open_archive
from hkdpipe.manifests.archive.reading_order import Blocks, training_indices
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.ground.rng import uniform
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.training.batch_reader import Reader
from hkdpipe.stages.training.watching import held_out
from hkdpipe.trainer.settings.training_settings import TrainingSettings

WriteShards = Callable[[Path, Plan, int], None]
COUNT, FIRST, SIZE = 43, 3, 5  # nine shards, the last one of three
SKIP = TrainingSettings(validation=FIRST, seed=2, on_damage="skip", block_shards=2)
ORDERS = pytest.mark.parametrize("order", ["full", "blocks"])


@pytest.fixture
def archive(tmp_path: Path, plan: Plan, write_shards: WriteShards) -> Iterator[Archive]:
    plan = dataclasses.replace(plan, count=COUNT)
    write_shards(tmp_path, plan, plan.shards)
    with open_archive(tmp_path) as opened:
        yield opened


def damage(archive: Archive, *shards: int) -> None:
    """The first one is missing, the others have another last byte."""
    for k in shards:
        path = Path(archive.name) / archive.shards[k].file
        if k == shards[0]:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"?")


def ends(reader: Reader, start: int, stop: int) -> NDArray[np.int64]:
    """Trajectories read, as their values say: state k of trajectory i holds 10 i + k."""
    indices, states = reader.read(start, stop, np.full((stop - start, 1), 4))
    read = (states[:, 0, 0, 0, 0] - 4) / 10
    assert read.tolist() == indices.tolist()
    return indices


def replacement(order: str, position: int, damaged: set[int]) -> int:
    """By the definition."""
    blocks = Blocks(SIZE, 2) if order == "blocks" else None
    attempt = 0
    while True:
        reach = min(2 * (COUNT - FIRST), SIZE * 2**attempt)
        later = position + 1 + int(uniform(2, f"replacement-{attempt}", [position], 1)[0, 0] * reach)
        index = int(training_indices(2, later, later + 1, FIRST, COUNT, blocks)[0])
        if index // SIZE not in damaged:
            return index
        attempt += 1


@ORDERS
@pytest.mark.parametrize("damaged", [(1,), (4, 8), (0, 1, 2, 3, 4, 5, 7, 8)])
def test_only_what_is_damaged_is_replaced_whoever_reads_it(
    archive: Archive, order: str, damaged: tuple[int, ...]
) -> None:
    training = dataclasses.replace(SKIP, order=order)
    whole = np.concatenate([ends(Reader(archive, training, print), at, at + 8) for at in range(0, 96, 8)])
    expected = [
        replacement(order, position, set(damaged)) if index // SIZE in damaged else index
        for position, index in enumerate(whole.tolist())
    ]
    assert expected != whole.tolist()
    damage(archive, *damaged)
    for batch in (96, 8, 3, 1):
        for begin in (0, 48):  # resumed, by a process that has met no damage yet
            with open_archive(archive.name, check_sizes=False) as opened:
                warned: list[str] = []
                reader = Reader(opened, training, warned.append)
                read = [ends(reader, at, min(at + batch, 96)) for at in range(begin, 96, batch)]
                assert np.concatenate(read).tolist() == expected[begin:]
                assert reader.replaced(96) == int(np.isin(whole[begin:] // SIZE, damaged).sum())
                assert reader.replaced(begin) == 0
            named = {k for k in damaged if np.isin(k, whole[begin:] // SIZE)}
            assert sorted(warned) == sorted(set(warned)), "a shard was named twice"
            assert {line.partition(": shard ")[2].partition(" ")[0] for line in warned} >= set(
                map(str, named)
            )


def test_readers_in_threads_agree(archive: Archive) -> None:
    damage(archive, 2, 6)
    with open_archive(archive.name, check_sizes=False) as opened:
        warned: list[str] = []
        together = Reader(opened, SKIP, warned.append)
        with ThreadPoolExecutor(4) as threads:
            read = list(threads.map(lambda at: ends(together, at, at + 4).tolist(), range(0, 160, 4)))
        alone = Reader(opened, SKIP, print)
        assert read == [ends(alone, at, at + 4).tolist() for at in range(0, 160, 4)]
        assert together.replaced(160) == alone.replaced(160) > 0
        assert len(warned) == 2


def test_damage_stops_a_training_that_is_not_to_skip_it(archive: Archive) -> None:
    stopping = dataclasses.replace(SKIP, on_damage="stop")
    damage(archive, 8, 4)
    with open_archive(archive.name, check_sizes=False) as opened:
        reader = Reader(opened, stopping, lambda line: pytest.fail(line))
        with pytest.raises(DamagedShard, match=r"shard [48] \(.*\) is (missing|damaged)"):
            reader.read(0, 40, np.zeros((40, 1), dtype=int))
    with pytest.raises(DamagedShard, match=r"shard 8 .* is missing"):
        open_archive(archive.name)


def test_nothing_left_to_train_on(archive: Archive) -> None:
    damage(archive, *range(9))
    with (
        open_archive(archive.name, check_sizes=False) as opened,
        pytest.raises(InputError, match=f"{archive.name}: every shard to train on is missing or damaged"),
    ):
        Reader(opened, SKIP, print).read(0, 4, np.zeros((4, 1), dtype=int))


def test_held_out_trajectories_of_damaged_shards_are_left_out(archive: Archive) -> None:
    training = dataclasses.replace(SKIP, validation=12)
    damage(archive, 1)
    with open_archive(archive.name, check_sizes=False) as opened:
        warned: list[str] = []
        batch = held_out(Reader(opened, training, warned.append), torch.device("cpu"))
        assert batch is not None
        assert (batch.ends[:, 0, 0, 0] / 10).int().tolist() == [0, 1, 2, 3, 4, 10, 11]
        if batch.labels is not None:
            labels = opened.plan.labels([0, 1, 2, 3, 4, 10, 11])
            assert labels is not None
            assert batch.labels.argmax(dim=1).tolist() == labels.tolist()
        assert len(warned) == 1
        stopping = dataclasses.replace(training, on_damage="stop")
        with pytest.raises(DamagedShard, match=r"shard 1 .* is missing"):
            held_out(Reader(opened, stopping, print), torch.device("cpu"))
        none = dataclasses.replace(training, validation=3)
        damage(archive, 0)
        with open_archive(archive.name, check_sizes=False) as again:
            assert held_out(Reader(again, none, print), torch.device("cpu")) is None
