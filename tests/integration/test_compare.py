"""`hkdpipe compare`: what it trains, that it goes on where it was killed, that processes share the work."""

import contextlib
import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
from commands import Called, started, succeeded
from tiny import EVALUATION, GENERATION, TRAINING, Inputs, settings

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground.claims import owning
from hkdpipe.pipeline.cli import main
from hkdpipe.pipeline.configuration.config import resolve

ROWS = """
[comparison]
seeds = [0, 1]

[[rows]]
name = "HKD"

[[rows]]
name = "KD"
training.method = "kd"
"""


@pytest.fixture(scope="module")
def command(inputs: Inputs) -> list[str]:
    """For a folder with rows.toml."""
    return [
        *("compare", "--config", "rows.toml", "--out", "out"),
        *settings(generation=GENERATION, training=TRAINING, evaluation=EVALUATION),
        *("--set", f"teacher.source={inputs.teacher}", "--set", "training.budget=8"),
        *("--set", "training.batch_size=2"),
        *("--set", "hkd.times=2", "--set", 'evaluation.metrics=["fd", "fd_without_evolution", "match"]'),
        *("--set", "evaluation.reference=archive", "--set", "evaluation.teacher_steps=[]"),
        *("--set", "koopman.learning_rate_factor=100"),
    ]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of a comparison that is complete."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "rows.toml").write_text(ROWS, encoding="utf-8")
    with contextlib.chdir(folder), contextlib.redirect_stdout((folder / "shown").open("w")):
        assert main(command) == 0
    return folder


@pytest.fixture
def compare(command: list[str], whole: Path, folder: Path) -> list[str]:
    """The command line, in a copy of that folder."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    return command


def lines(folder: Path = Path()) -> list[dict[str, str]]:
    with (folder / "out/comparison.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained() -> dict[Path, int]:
    """When each checkpoint was written."""
    return {path: path.stat().st_mtime_ns for path in Path("out").rglob("state.json")}


def test_rows_are_trained_evaluated_and_tabulated(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    with open_archive("out/trajectories") as archive:
        assert len(archive) == GENERATION.count
    table = {(line["equal"], line["row"]): line for line in lines()}
    amounts = {key: (line["trajectories"], line["evaluations"]) for key, line in table.items()}
    assert amounts == {
        ("trajectories", "HKD"): ("8.0", "16.0"),
        ("trajectories", "KD"): ("8.0", "8.0"),
        ("evaluations", "HKD"): ("8.0", "16.0"),
        ("evaluations", "KD"): ("16.0", "16.0"),
    }
    values = []
    for seed in (0, 1):
        folder = Path(f"out/hkd/8-trajectories/seed-{seed}")
        assert resolve(None, None, folder / "config.toml", ()).training.seed == seed
        metrics = json.loads((folder / "evaluation/metrics.json").read_text())
        values.append(metrics["rows"][0]["fd_digits"])
        names = [row["name"] for row in metrics["rows"]]
        assert names == ["student", "student, A = 0", "two halves of the reference"]
        numbers = json.loads((folder / "result.json").read_text())
        assert numbers["fd_digits_without_evolution"] == metrics["rows"][1]["fd_digits"] != values[-1]
        skill = {key: value for key, value in metrics["match"][0].items() if "skill" in key}
        assert len(skill) == 2
        assert {key: numbers[key] for key in skill} == skill
        errors = [row["mse"] for row in metrics["match"]]
        assert numbers["mse_start"] == errors[0]
        assert numbers["mse_between"] == pytest.approx(sum(errors[1:]) / len(errors[1:]))
    for equal in ("trajectories", "evaluations"):
        line = table[equal, "HKD"]
        assert float(line["fd_digits"]) == pytest.approx(sum(values) / 2)
        assert float(line["fd_digits_std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert not table["trajectories", "KD"]["skill_8"]
    assert "at equal network evaluations" in Path("shown").read_text()
    assert Path("out/comparison.md").read_text().count("| KD | 2 |") == 2


def test_nothing_is_repeated_and_more_seeds_may_follow(compare: list[str], called: Called) -> None:
    before = trained()
    more = [*compare, "--set", "comparison.equal=trajectories", "--set", "comparison.seeds=[0, 2]"]
    assert json.loads(succeeded(called(*more, "--json")).out)["left_to_others"] == 0
    after = trained()
    assert {path: after[path] for path in before} == before
    assert [line["seeds"] for line in lines()] == ["2", "2"]


def test_other_settings_are_refused_where_a_row_has_begun(compare: list[str], called: Called) -> None:
    before = trained()
    ran = called(*compare, "--set", "training.learning_rate=0.5")
    assert ran.code == 2
    assert ran.errors == [
        "training.learning_rate: out/hkd/8-trajectories/seed-0 has 0.001, given 0.5: keep the value, or take "
        "another --out"
    ]
    succeeded(called(*compare, "--set", "training.checkpoint_every=5"))
    assert trained() == before


def test_other_archives_are_refused(compare: list[str], inputs: Inputs, called: Called) -> None:
    """Rows of two would stand in one table; a copy of the same is as good."""
    shutil.rmtree("out/kd")
    other = ["generate-trajectories", "--teacher", str(inputs.teacher), *settings(generation=GENERATION)]
    succeeded(called(*other, "--out", "other", "--set", "generation.seed=5"))
    ran = called(*compare, "--archive", "other")
    assert ran.code == 2
    assert ran.errors == [
        "--archive: other has other trajectories than what the trainings in out learn from; keep that one, "
        "or take another --out"
    ]
    assert not Path("out/kd").exists()
    shutil.copytree("out/trajectories", "moved")
    succeeded(called(*compare, "--archive", "moved"))
    assert [line["seeds"] for line in lines()] == ["2", "2", "2", "2"]


def test_a_row_that_diverges_does_not_keep_the_others_from_their_end(
    inputs: Inputs, command: list[str], folder: Path, called: Called
) -> None:
    diverging = "training.learning_rate = 1e30\ntraining.max_skipped = 1\n"
    Path("rows.toml").write_text(
        ROWS.replace("seeds = [0, 1]", "seeds = [0]").replace('"HKD"\n', f'"HKD"\n{diverging}')
    )
    ran = called(*command, "--archive", str(inputs.archive()), "--json")
    assert ran.code == 1
    assert ran.errors == ["trainings failed, and the tables lack them: HKD, seed 0, 8 trajectories"]
    assert json.loads(ran.out)["failed"] == ["HKD, seed 0, 8 trajectories"]
    assert "HKD, seed 0, 8 trajectories: failed: loss or gradient were not finite" in ran.err
    assert {line["row"] for line in lines() if line["fd_digits"]} == {"KD"}


@pytest.mark.slow
def test_a_killed_comparison_goes_on(
    compare: list[str], inputs: Inputs, whole: Path, tmp_path: Path, called: Called
) -> None:
    """Its numbers are those of one that was not; the archive given is learned from where it is."""
    shutil.rmtree("out")
    resumed = [*compare, "--set", "comparison.seeds=0", "--archive", str(inputs.archive())]
    for stop, signal_number, code in (("2 of 3", signal.SIGKILL, -9), ("3 of 3", signal.SIGTERM, 75)):
        with started(tmp_path, *resumed) as running:
            running.wait_for(stop)
            running.process.send_signal(signal_number)
            assert running.end().code == code
    assert len(list(Path("out").rglob("result.json"))) == 2
    succeeded(called(*resumed))
    assert not Path("out/trajectories").exists()
    results = list(Path("out").rglob("result.json"))
    assert len(results) == 3
    for path in results:
        found, expected = (json.loads((folder / path).read_text()) for folder in (tmp_path, whole))
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_what_another_process_trains_is_left_to_it(compare: list[str], called: Called) -> None:
    taken = Path("out/kd/16-trajectories/seed-1")
    shutil.rmtree(taken)
    with owning(taken, "this row"):
        ran = succeeded(called(*compare))
    assert "1 of 6 trainings are another process's" in ran.out
    assert [line["seeds"] for line in lines()] == ["2", "2", "2", "1"]
    succeeded(called(*compare))
    assert [line["seeds"] for line in lines()] == ["2", "2", "2", "2"]
