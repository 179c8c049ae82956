from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.stages.training.metrics_log import MetricsLog

FIRST = "seen,loss,mse\n20,0.5,0.25\n40,1.2345679e-05,0.125\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_rows_are_appended_under_the_columns_of_the_first(path: Path) -> None:
    log = MetricsLog(path, 0)
    assert not path.exists()
    log.append(20, {"loss": 0.5, "mse": 0.25})
    log.append(40, {"mse": 0.125, "loss": 1.23456789e-5})
    assert path.read_text() == FIRST


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        (0, "seen,loss,mse\n"),
        (20, "seen,loss,mse\n20,0.5,0.25\n"),
        (39, "seen,loss,mse\n20,0.5,0.25\n"),
        (40, FIRST),
    ],
)
def test_rows_after_the_point_of_resuming_are_dropped(path: Path, seen: int, kept: str) -> None:
    path.write_text(FIRST)
    log = MetricsLog(path, seen)
    assert path.read_text() == kept
    log.append(60, {"loss": 3.0, "mse": 2.0})
    assert path.read_text() == kept + "60,3,2\n"


@pytest.mark.parametrize("torn", ["6", "60,0.5", "60,0.5,0.2", "60,0.5\n", "\x006,0.5,0.2\n"])
def test_a_torn_row_is_dropped(path: Path, torn: str) -> None:
    path.write_text(FIRST + torn)
    MetricsLog(path, 100).append(60, {"loss": 3.0, "mse": 2.0})
    assert path.read_text() == FIRST + "60,3,2\n"


@pytest.mark.parametrize("torn", ["", "seen,lo"])
def test_a_torn_header_is_written_again(path: Path, torn: str) -> None:
    path.write_text(torn)
    MetricsLog(path, 0).append(20, {"loss": 0.5, "mse": 0.25})
    assert path.read_text() == "seen,loss,mse\n20,0.5,0.25\n"


def test_a_training_begun_anew_may_have_other_columns(path: Path) -> None:
    path.write_text(FIRST)
    MetricsLog(path, 0).append(20, {"loss": 0.5, "perceptual": 0.25})
    assert path.read_text() == "seen,loss,perceptual\n20,0.5,0.25\n"


def test_other_values_on_the_way_get_columns_of_their_own(path: Path) -> None:
    """As a distance in other features does."""
    path.write_text(FIRST)
    log = MetricsLog(path, 40)
    log.append(60, {"loss": 3.0, "other": 2.0})
    log.append(80, {"mse": 1.0})
    expected = "seen,loss,mse,other\n20,0.5,0.25,\n40,1.2345679e-05,0.125,\n60,3,,2\n80,,1,\n"
    assert path.read_text() == expected
    MetricsLog(path, 80)
    assert path.read_text() == expected


def test_a_file_of_something_else_is_left_alone(path: Path) -> None:
    path.write_text("name,price\nx,3\n")
    with pytest.raises(InputError, match=f"{path}: not the metrics of a training"):
        MetricsLog(path, 0)
    assert path.read_text() == "name,price\nx,3\n"
