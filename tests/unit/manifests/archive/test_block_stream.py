import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive.block_stream import BlockStream
from hkdpipe.manifests.archive.reader import Archive, DamagedShard, open_archive
from hkdpipe.manifests.archive.reading_order import Blocks, block_at, training_indices
from hkdpipe.manifests.plan.plan import Plan

Write = Callable[[Path, Plan], NDArray[Any]]
SEED, FIRST, COUNT = 5, 2, 23
BLOCKS = Blocks(shard_size=4, shards=2)  # of six shards: two trajectories held out, the last shard has three
EPOCH = COUNT - FIRST
STATES = np.random.default_rng(0).integers(0, 5, size=(3 * EPOCH, 3))


KINDS = [
    ("float16", "states", "none"),
    ("bfloat16", "states", "none"),
    ("float16", "residual", "none"),
    ("float16", "quantised", "zstd"),
]


@pytest.fixture(params=KINDS, ids="-".join)
def archive(request: pytest.FixtureRequest, tmp_path: Path, plan: Plan, write: Write) -> Iterator[Archive]:
    dtype, encoding, codec = request.param
    kind = {"dtype": dtype, "encoding": encoding, "codec": codec}
    write(tmp_path, dataclasses.replace(plan, form="webdataset", count=COUNT, **kind))
    with open_archive(tmp_path) as opened:
        yield opened


@pytest.fixture
def form() -> str:
    return "webdataset"


def stream(archive: Archive) -> closing[BlockStream]:
    return closing(BlockStream(archive, SEED, FIRST, BLOCKS))


def at_random(archive: Archive, start: int, stop: int) -> NDArray[Any]:
    indices = training_indices(SEED, start, stop, FIRST, COUNT, BLOCKS)
    return archive.read(indices, STATES[start:stop])


@pytest.mark.parametrize("batch", [1, 4, 13, 3 * EPOCH])
def test_same_bits_as_reading_at_random_from_any_position_on(archive: Archive, batch: int) -> None:
    for resumed in (0, 3, EPOCH - 1, EPOCH, 2 * EPOCH + 5):
        with stream(archive) as streamed:
            for start in range(resumed, 3 * EPOCH, batch):
                stop = min(start + batch, 3 * EPOCH)
                values = streamed.read(start, stop, STATES[start:stop])
                expected = at_random(archive, start, stop)
                assert values.dtype == expected.dtype
                assert values.tobytes() == expected.tobytes()


def test_threads_that_read_ahead_and_behind_one_another(archive: Archive) -> None:
    wrong = []

    def read(first: int) -> None:
        for start in range(first, 3 * EPOCH - 4, 8):
            values = streamed.read(start, start + 4, STATES[start : start + 4])
            if values.tobytes() != at_random(archive, start, start + 4).tobytes():
                wrong.append(start)

    with stream(archive) as streamed:
        threads = [threading.Thread(target=read, args=(first,)) for first in (0, 4, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_every_shard_is_streamed_once_an_epoch_and_two_blocks_are_kept(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed: list[int] = []
    shard_bytes = Archive.shard_bytes

    def noting(self: Archive, k: int) -> bytes:
        streamed.append(k)
        return shard_bytes(self, k)

    monkeypatch.setattr(Archive, "shard_bytes", noting)
    monkeypatch.setattr(Archive, "read", lambda *_: pytest.fail("read at random"))
    expected = []
    with stream(archive) as reading:
        for start in range(0, 2 * EPOCH, 3):
            reading.read(start, start + 3, STATES[start : start + 3])
            assert len(reading._blocks) <= 2
    position = 0
    while position < 2 * EPOCH:
        block = block_at(SEED, position, FIRST, COUNT, BLOCKS)
        expected += block.shards
        position = block.stop
    assert streamed[: len(expected)] == expected
    assert sorted(expected) == sorted(2 * list(range(6)))


def test_damage_is_found_before_anything_of_its_shard_is_used(archive: Archive, tmp_path: Path) -> None:
    """Also a tar that says it is smaller, or that is none: it is not even looked at."""
    block = block_at(SEED, 0, FIRST, COUNT, BLOCKS)
    shard = archive.shards[block.shards[-1]]
    path = tmp_path / shard.file
    content = path.read_bytes()
    for damaged in (content[:-1], b"", content[:5] + b"\x01" + content[6:], content + b"more"):
        path.write_bytes(damaged)
        with (
            stream(archive) as reading,
            pytest.raises(DamagedShard, match=rf"shard {shard.index} \({shard.file}\) is damaged"),
        ):
            reading.read(0, 1, STATES[:1])
    path.unlink()
    with stream(archive) as reading, pytest.raises(DamagedShard, match="is missing"):
        reading.read(0, 1, STATES[:1])


def test_closing_waits_for_one_shard_at_most(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    streamed: list[int] = []
    shard_bytes = Archive.shard_bytes

    def slow(self: Archive, k: int) -> bytes:
        streamed.append(k)
        begun.set()
        go_on.wait(60)
        return shard_bytes(self, k)

    monkeypatch.setattr(Archive, "shard_bytes", slow)
    reading = BlockStream(archive, SEED, FIRST, BLOCKS)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(reading.read, 0, 1, STATES[:1])
        begun.wait(60)
        closed = threads.submit(reading.close)
        while not reading._closed:
            time.sleep(0.001)
        go_on.set()
        closed.result(60)
        with pytest.raises(ValueError, match="the stream is closed"):
            waiting.result(60)
    assert len(streamed) == 1
