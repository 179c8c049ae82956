import json
import threading
from pathlib import Path

import numpy as np
import pytest

from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import InputError, Interrupted
from hkdpipe.stages.evaluation.feature_parts import Outputs, compute_parts, part_ranges, read_parts

PARTS = [range(0, 4), range(4, 8), range(8, 10)]


def outputs_of(part: range) -> Outputs:
    """A function of the images' numbers."""
    numbers = np.array(part, dtype=np.float32)[:, None]
    return Outputs(numbers * [1, 2], -numbers)


def ignore(done: int) -> None:
    pass


@pytest.mark.parametrize("batch_size", [1, 7, 256, 1024, 3000])
@pytest.mark.parametrize("count", [1, 1024, 5000])
def test_parts_hold_every_image_once_in_whole_batches(count: int, batch_size: int) -> None:
    parts = part_ranges(count, batch_size)
    assert [number for part in parts for number in part] == list(range(count))
    assert all(part.start % batch_size == 0 for part in parts)
    assert all(1024 <= len(part) < 1024 + batch_size for part in parts[:-1])


def test_parts_are_computed_once_and_read_in_their_order(tmp_path: Path) -> None:
    computed: list[range] = []

    def compute(part: range) -> Outputs:
        computed.append(part)
        return outputs_of(part)

    told: list[int] = []
    for _ in range(2):
        compute_parts(tmp_path / "parts", PARTS, compute, told.append, wait=True)
    assert computed == PARTS
    assert told == [0, 10, 10]
    features = np.concatenate([part.features for part in read_parts(tmp_path / "parts", PARTS)])
    logits = np.concatenate([part.logits for part in read_parts(tmp_path / "parts", PARTS)])
    assert np.array_equal(features, outputs_of(range(10)).features)
    assert np.array_equal(logits, outputs_of(range(10)).logits)


def test_interruption_loses_the_part_under_way_alone(tmp_path: Path) -> None:
    computed: list[int] = []

    def compute(part: range) -> Outputs:
        if part.start == 4 and part.start not in computed:
            computed.append(part.start)
            raise Interrupted("stopped")
        computed.append(part.start)
        return outputs_of(part)

    with pytest.raises(Interrupted):
        compute_parts(tmp_path, PARTS, compute, ignore, wait=True)
    compute_parts(tmp_path, PARTS, compute, ignore, wait=True)
    assert computed == [0, 4, 4, 8]
    assert sum(len(part.features) for part in read_parts(tmp_path, PARTS)) == 10


def test_a_helper_leaves_what_another_process_computes(tmp_path: Path) -> None:
    """And the first process waits for it."""
    begun, may_end = threading.Event(), threading.Event()
    by: dict[str, list[int]] = {"first": [], "helper": []}

    def compute(who: str, part: range) -> Outputs:
        by[who].append(part.start)
        if who == "helper":
            begun.set()
            assert may_end.wait(30)
        return outputs_of(part)

    def help_out() -> None:
        compute_parts(tmp_path, PARTS[:1], lambda part: compute("helper", part), ignore, wait=False)

    helper = threading.Thread(target=help_out)
    helper.start()
    assert begun.wait(30)

    def release(done: int) -> None:
        # The two others are there: what is left is the helper's.
        if done == 6:
            may_end.set()

    compute_parts(tmp_path, PARTS, lambda part: compute("first", part), release, wait=True)
    helper.join()
    assert by == {"first": [4, 8], "helper": [0]}


def test_the_claim_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    """Also of a part that it had finished."""
    compute_parts(tmp_path, PARTS, outputs_of, ignore, wait=True)
    with Claims(tmp_path) as claims:
        assert claims.take("000001")
        record = tmp_path / "claims/000001.json"
        content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "pid": 2**22 + 1}))  # a number that no process has
    compute_parts(tmp_path, PARTS, outputs_of, ignore, wait=True)
    assert not list((tmp_path / "claims").iterdir())


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    compute_parts(tmp_path, PARTS, outputs_of, ignore, wait=True)
    path = tmp_path / "000001.npz"
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], (tmp_path / "000002.npz").read_bytes()):
        path.write_bytes(damage)
        with pytest.raises(InputError, match=r"000001\.npz: damaged, and deleted; the same command"):
            list(read_parts(tmp_path, PARTS))
        compute_parts(tmp_path, PARTS, outputs_of, ignore, wait=True)
        assert path.read_bytes() == whole
