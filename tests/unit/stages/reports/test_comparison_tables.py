import numpy as np
import pytest

from hkdpipe.stages.reports.comparison_tables import Line, columns, flat, markdown

KEYS = ("fd_digits", "mse_start", "skill_8", "skill_4", "trajectories", "seconds")
NUMBERS = (
    (30.0, 0.04, 0.1, 0.5, 1000, 9.0),
    (33.0, 0.05, 0.3, 0.6, 1000, 8.0),
    (31.5, 0.06, 0.2, 0.1, 1000, 7.0),
)
SEEDS = [dict(zip(KEYS, numbers, strict=True)) for numbers in NUMBERS]
HKD, KD = Line("HKD", "trajectories", SEEDS), Line("KD", "trajectories", [{"fd_digits": 40.0}])


def test_means_and_spreads_are_those_of_numpy() -> None:
    values = flat(HKD)
    for key in SEEDS[0]:
        found = [numbers[key] for numbers in SEEDS]
        assert values[key] == pytest.approx(np.mean(found))
        assert values[f"{key}_std"] == pytest.approx(np.std(found, ddof=1))
    assert (values["equal"], values["row"], values["seeds"]) == ("trajectories", "HKD", 3)


def test_one_seed_has_no_spread() -> None:
    assert flat(KD) == {"equal": "trajectories", "row": "KD", "seeds": 1, "fd_digits": 40.0}


def test_a_table_has_the_levels_that_are_there_finest_first_and_a_dash_for_what_is_not() -> None:
    header, rows = columns([HKD, KD, Line("KDM", "trajectories", [])], "fd_digits")
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [name for name in header if "skill" in name] == ["skill 8x8", "skill 4x4"]
    assert table[0]["fd_digits"] == "31.50 ± 1.50"
    assert table[0]["skill 4x4"] == "0.40 ± 0.26"
    assert table[0]["trajectories"] == "1,000"
    assert (table[1]["fd_digits"], table[1]["skill 8x8"], table[1]["p > 0.9, %"]) == ("40.00", "-", "-")
    assert table[2]["seeds"] == "0"
    assert set(list(table[2].values())[2:]) == {"-"}


def test_a_table_in_markdown() -> None:
    assert markdown("Title", ("", "a"), [("x", "1"), ("y", "2")]) == (
        "## Title\n\n|  | a |\n| --- | --- |\n| x | 1 |\n| y | 2 |\n"
    )
