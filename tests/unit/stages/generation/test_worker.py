import pytest

from hkdpipe.stages.generation.worker import ALONE, Worker


@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_workers_begin_apart_and_each_knows_all_shards(count: int) -> None:
    shards = list(range(40))
    orders = [Worker(index, count).order(shards) for index in range(count)]
    assert all(sorted(order) == shards for order in orders)
    own = [order[: len(range(index, 40, count))] for index, order in enumerate(orders)]
    assert sorted(k for part in own for k in part) == shards


def test_of_what_is_missing_each_takes_its_own_first_and_then_begins_elsewhere() -> None:
    missing = [0, 1, 2, 4, 7, 8, 9]
    assert Worker(1, 3).order(missing) == [1, 4, 7, 2, 8, 9, 0]
    assert Worker(2, 3).order(missing) == [2, 8, 7, 9, 0, 1, 4]


def test_one_worker_goes_in_order() -> None:
    assert ALONE.order([3, 5, 9]) == [3, 5, 9]
