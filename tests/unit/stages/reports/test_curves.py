import math
from xml.etree import ElementTree

import pytest

from hkdpipe.stages.reports.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, chart, nice_ticks

SIGMAS = [100.0, 1.0, 0.01]


def drawn(*curves: Curve) -> ElementTree.Element:
    return ElementTree.fromstring(chart("of <this> & that", SIGMAS, curves))


def points(picture: ElementTree.Element) -> list[list[tuple[float, float]]]:
    lines = [line.attrib["points"].split() for line in picture.iter("polyline")]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line)] for line in lines]


def test_points_lie_where_their_noise_level_and_value_say() -> None:
    """From high noise on the left, by its logarithm; values from 0 at the bottom to the last tick."""
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    (found,) = points(drawn(Curve("error", [0.0, 0.5, 1.0])))
    assert found == [(LEFT, floor), ((LEFT + right) / 2, (TOP + floor) / 2), (right, TOP)]


def test_negative_values_have_room_below_zero() -> None:
    picture = drawn(Curve("skill", [-1.0, 0.0, 1.0]))
    ((_, low), (_, zero), (_, high)) = points(picture)[0]
    assert (low, zero, high) == (HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2, TOP)
    (line,) = [line for line in picture.iter("line") if line.get("class") == "zero"]
    assert float(line.attrib["y1"]) == zero


def test_values_that_are_not_there_are_left_out() -> None:
    first, second = points(drawn(Curve("a", [0.0, math.nan, 1.0]), Curve("b", [1.0, 1.0, None], "second")))
    assert [x for x, _ in first] == [LEFT, WIDTH - RIGHT]
    assert len(second) == 2


def test_it_is_read_out_by_its_title_and_says_each_value() -> None:
    picture = drawn(Curve("A < 0", [0.25, 0.5, 1.0]))
    assert (picture.attrib["role"], picture.attrib["aria-label"]) == ("img", "of <this> & that")
    assert next(title.text for title in picture.iter("title")) == "A < 0, σ 100: 0.25"
    assert {"100", "1", "0.01", "0", "0.2"} <= {text.text for text in picture.iter("text")}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.0037, [0, 0.001, 0.002, 0.003, 0.004]),
        (-0.2, 0.7, [-0.2, 0, 0.2, 0.4, 0.6, 0.8]),
        (0, 23, [0, 5, 10, 15, 20, 25]),
        (0, 0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_hold_all(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)
