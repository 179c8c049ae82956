import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.stages.evaluation.by_class import class_rows, match_rows, merged

ASKED = np.array([3, 0, 3, 0, 0, 3])
JUDGED = np.array([3, 0, 1, 0, 2, 3])


def features(shift: float) -> NDArray[np.float64]:
    """Of each class, the same three points moved by its number and by `shift`: one covariance for all."""
    points = {0: iter([0.0, 1.0, 5.0]), 3: iter([0.0, 1.0, 5.0])}
    return np.array([[next(points[c]) + c + shift, 2.0] for c in ASKED.tolist()])


def test_rows_of_the_classes_asked_for() -> None:
    """Between points moved as a whole the Frechet distance is the square of the move."""
    rows = class_rows("fd", (3, 0), ASKED, features(2.0), JUDGED, features(0.0), ASKED)
    assert [row["class"] for row in rows] == [0, 3]
    assert [row["samples"] for row in rows] == [3, 3]
    assert [row["fd"] for row in rows] == pytest.approx([4.0, 4.0])
    assert [row["as_asked"] for row in rows] == pytest.approx([2 / 3, 2 / 3])


def test_what_cannot_be_measured_is_left_out() -> None:
    one = np.array([0, 3, 3, 3, 3, 3])  # a single reference image of class 0
    rows = class_rows("fd", (0, 3, 7), ASKED, features(0.0), None, features(0.0), one)
    assert [set(row) - {"class", "samples"} for row in rows] == [set(), {"fd"}, set()]
    assert rows[2] == {"class": 7, "samples": 0}
    without = class_rows("fd", (0, 7), ASKED, features(0.0), JUDGED, features(0.0), None)
    assert [set(row) - {"class", "samples"} for row in without] == [{"as_asked"}, set()]


def test_match_by_class() -> None:
    rows = match_rows(np.array([7, 1, 7]), np.array([0.5, 2.0, 0.25]))
    assert rows == [
        {"class": 1, "held_out": 1, "match_mse": 2.0},
        {"class": 7, "held_out": 2, "match_mse": 0.375},
    ]


def test_rows_of_the_same_subject_are_one() -> None:
    student, teacher = {"name": "student", "nfe": 1}, {"name": "teacher", "nfe": 5}
    measured = [{**student, "class": 0, "fd": 1.0}, {**teacher, "class": 0, "fd": 2.0}]
    match = [{**student, "class": 0, "match_mse": 3.0}, {**student, "class": 4, "match_mse": 5.0}]
    assert merged(measured, match) == [{**measured[0], "match_mse": 3.0}, measured[1], match[1]]
    assert merged([], match) == match
