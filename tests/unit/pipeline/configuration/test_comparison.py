"""What a comparison trains: rows over one base, equal trajectories or evaluations, each training once."""

import dataclasses
from pathlib import Path

import pytest

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.configuration.comparison_plan import resolve_comparison, slug, trials
from hkdpipe.pipeline.configuration.config import parse, presets, read_preset

TEXT = """
[comparison]
seeds = [3, 5]

[training]
budget = 100
batch_size = 10

[hkd]
times = 4

[[rows]]
name = "HKD: all"

[[rows]]
name = "two times"
hkd.times = 2
koopman.time = "log"

[[rows]]
name = "KD"
training.method = "kd"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "comparison.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_rows_differ_from_the_base_in_what_they_say(file: Path) -> None:
    comparison = resolve_comparison(None, file, ["training.budget=50", "koopman.rank=7"])
    shared = {"training": {"budget": 50, "batch_size": 10}, "hkd": {"times": 4}, "koopman": {"rank": 7}}
    assert comparison.base == parse(shared)
    assert comparison.rows == {
        "HKD: all": parse(shared),
        "two times": parse({**shared, "hkd": {"times": 2}, "koopman": {"rank": 7, "time": "log"}}),
        "KD": parse({**shared, "training": {**shared["training"], "method": "kd"}}),
    }


def test_a_base_preset_is_changed_key_by_key(file: Path) -> None:
    comparison = resolve_comparison(None, file, ['comparison.base="digits"'])
    digits = parse(read_preset("digits"))
    of_methods = {**digits.of_methods, "hkd": dataclasses.replace(digits.section("hkd"), times=4)}
    changed = dataclasses.replace(digits.training, budget=100, batch_size=10)
    assert comparison.base == dataclasses.replace(digits, training=changed, of_methods=of_methods)


def test_equal_trajectories_and_equal_evaluations(file: Path) -> None:
    """(row, seed) to (trajectories, of a step, tables); the row with the most times is trained once."""
    found = {
        (trial.row, trial.config.training.seed, trial.config.training.budget): (
            trial.config.training.batch_size,
            trial.equal,
        )
        for trial in trials(resolve_comparison(None, file, ()))
    }
    both = ("trajectories", "evaluations")
    expected = {}
    for seed in (3, 5):
        expected["HKD: all", seed, 100] = (10, both)
        expected["two times", seed, 100] = (10, ("trajectories",))
        expected["two times", seed, 200] = (20, ("evaluations",))
        expected["KD", seed, 100] = (10, ("trajectories",))
        expected["KD", seed, 400] = (40, ("evaluations",))
    assert found == expected


def test_evaluations_that_cannot_be_equal_are_refused(file: Path) -> None:
    """KDM takes four of a trajectory: 2.5 trajectories would have as many as one with ten times."""
    message = (
        r"training.batch_size: got 3; accepted with comparison.equal = 'evaluations': a multiple of 2, as "
        "'KD' takes 4 evaluations of a trajectory and another row 10"
    )
    file.write_text(TEXT.replace('"kd"', '"kdm"'), encoding="utf-8")
    changed = ["hkd.times=10", "training.batch_size=3"]
    with pytest.raises(UsageError, match=message):
        trials(resolve_comparison(None, file, changed))
    assert trials(resolve_comparison(None, file, [*changed, "comparison.equal=trajectories"]))


def test_warm_up_takes_as_many_steps_of_larger_batches(file: Path) -> None:
    found = trials(resolve_comparison(None, file, ["training.warmup=30"]))
    steps = {trial.config.training.warmup / trial.config.training.batch_size for trial in found}
    assert steps == {3.0}
    assert len({trial.config.training.batch_size for trial in found}) == 3


def test_trainings_have_folders_of_their_own_and_whole_seeds_come_first(file: Path) -> None:
    planned = trials(resolve_comparison(None, file, ()))
    assert len({trial.folder for trial in planned}) == len(planned)
    assert planned[0].folder == Path("hkd-all/100-trajectories/seed-3")
    assert [trial.config.training.seed for trial in planned] == [3] * 5 + [5] * 5


def test_one_table_alone(file: Path) -> None:
    comparison = resolve_comparison(None, file, ["comparison.equal=evaluations", "comparison.seeds=0"])
    assert [trial.config.training.budget for trial in trials(comparison)] == [100, 200, 400]


@pytest.mark.parametrize("name", presets("comparisons"))
def test_rows_of_shipped_comparisons_share_archive_and_evaluation(name: str) -> None:
    comparison = resolve_comparison(name, None, ())
    for row in comparison.rows.values():
        assert (row.teacher, row.generation, row.evaluation) == (
            comparison.base.teacher,
            comparison.base.generation,
            comparison.base.evaluation,
        )


def test_the_ablation_of_the_paper() -> None:
    """Its table's four rows, as docs/METHOD.md lists them, and the other methods."""
    rows = resolve_comparison("digits-ablation", None, ()).rows
    settings = [
        (row.training.method, row.section("koopman").hierarchy, hkd.times, hkd.endpoint_share)
        for row, hkd in ((row, row.section("hkd")) for row in rows.values())
    ]
    assert settings[:4] == [
        ("hkd", "none", 1, 1.0),
        ("hkd", "full", 1, 1.0),
        ("hkd", "bottleneck", 5, 1.0),
        ("hkd", "full", 5, 1.0),
    ]
    assert [row.training.method for row in rows.values()][4:] == ["hkd", "kd", "kdm"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "KD"\n', "", "rows: number 3 has no name; accepted: words, as in name = 'kd'"),
        ('"KD"', '"hkd - all"', "rows: 'hkd - all' and 'HKD: all' would share a folder; rename one"),
        ('method = "kd"', "budget = 5", "row 'KD': training.budget: refused: it is the same for all rows"),
        ('method = "kd"', "seed = 5", "row 'KD': training.seed: refused: it is the same for all rows"),
        ('training.method = "kd"', "generation.seed = 5", "row 'KD': generation: unknown section"),
        ('"kd"', '"kod"', "row 'KD': training.method: got \"kod\"; accepted: one of"),
        ("[3, 5]", "[3, 3]", "comparison.seeds: got [3, 3]; accepted: at least one, none of them twice"),
        ("[3, 5]", "[]", "comparison.seeds: got []; accepted: at least one, none of them twice"),
        ("seeds", "seed", "comparison.seed: unknown key; did you mean 'seeds'?"),
        (TEXT[TEXT.index("[[rows]]") :], "", "rows: missing; accepted: [[rows]], each with a name"),
        ("[training]", "[trainin]", "trainin: unknown section; did you mean 'training'?"),
    ],
)
def test_what_is_no_comparison_is_refused(old: str, new: str, message: str, file: Path) -> None:
    file.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        resolve_comparison(None, file, ())
    assert str(error.value).startswith(message)


def test_a_comparison_must_be_named_once(file: Path) -> None:
    for given in ((None, None), ("digits-ablation", file)):
        with pytest.raises(UsageError, match="--preset or --config: give one of them"):
            resolve_comparison(*given, ())
    with pytest.raises(UsageError, match="no preset 'digits'"):
        resolve_comparison("digits", None, ())


def test_folders_have_plain_names() -> None:
    assert slug("HKD, one time (of 5)") == "hkd-one-time-of-5"
