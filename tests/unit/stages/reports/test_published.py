import pytest

from hkdpipe.stages.reports.published import published

CIFAR10, FFHQ = (3, 32, 32), (3, 64, 64)


@pytest.mark.parametrize(
    ("dataset", "shape", "conditional", "hkd"),
    [
        ("cifar10", CIFAR10, False, 3.30),
        ("CIFAR-10", CIFAR10, True, 2.77),
        ("cifar10-32x32", CIFAR10, False, 3.30),
        ("FFHQ-64", FFHQ, False, 5.70),
        ("ffhq64", FFHQ, False, 5.70),
    ],
)
def test_numbers_of_the_teachers_data_set(
    dataset: str, shape: tuple[int, int, int], conditional: bool, hkd: float
) -> None:
    rows = published(dataset, shape, conditional)
    assert [row["fid"] for row in rows if row["name"] == "HKD"] == [hkd]
    assert all("arXiv" in row["source"] and row["nfe"] >= 1 for row in rows)


@pytest.mark.parametrize(
    ("dataset", "shape"),
    [
        ("cifar100", CIFAR10),
        ("cifar10", FFHQ),
        ("ffhq", (3, 256, 256)),
        ("", CIFAR10),
        ("my-cifar10", CIFAR10),
    ],
)
def test_other_data_sets_have_none(dataset: str, shape: tuple[int, int, int]) -> None:
    assert published(dataset, shape, False) == []
