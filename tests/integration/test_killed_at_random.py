"""Killed at any moment and started again, a stage ends with what an undisturbed run gives."""

import json
import random
import re
import shlex
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from commands import hkdpipe, run, started, succeeded
from tiny import (
    GENERATION,
    KOOPMAN,
    STAGES,
    TEACHER_TRAINING,
    TRAINING,
    WORK,
    Inputs,
    settings,
    train_tiny,
    whole,
)

from hkdpipe.stages.generation import generate
from hkdpipe.stages.teachers import train_teacher

pytestmark = pytest.mark.timeout(1200)
HARNESS = Path(__file__).with_name("crash.py")
LEFTOVER = re.compile(r"\..+\.(tmp|old)")


@dataclass(frozen=True)
class Disturbed:
    """What the harness did to all stages."""

    folder: Path
    seed: int
    reports: dict[str, Any]

    def report(self, stage: str) -> Any:
        report = self.reports[stage]
        assert "error" not in report, f"seed {self.seed}: {report['error']} (see stderr above)"
        return report

    def results(self, stage: str) -> list[Path]:
        return sorted((self.folder / stage).glob("round-*"))


def disturb(inputs: Inputs, folder: Path, kills: int, phases: str) -> Disturbed:
    seed = random.randrange(10**6)
    options = ["--kills", str(kills), "--phases", phases, "--seed", str(seed)]
    ran = run([sys.executable, str(HARNESS), str(inputs.folder), str(folder), *options], folder)
    print(ran.out, ran.err)
    assert ran.code == 0, f"seed {seed}"
    return Disturbed(folder, seed, json.loads((folder / "report.json").read_text()))


@pytest.fixture(scope="module")
def a_few(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    return disturb(inputs, tmp_path_factory.mktemp("few"), kills=4, phases="2")


@pytest.fixture(scope="module")
def many(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    return disturb(inputs, tmp_path_factory.mktemp("many"), kills=20, phases="all")


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def result(stage: str, folder: Path) -> dict[str, Any]:
    """What of a stage's files must not depend on what happened on the way."""
    files: dict[str, Any] = content(folder)
    assert not [name for name in files if any(map(LEFTOVER.fullmatch, Path(name).parts))], files.keys()
    if stage.startswith("train"):
        # A kill between writing the last checkpoint and deleting an older one leaves that one, whole.
        steps = [name.split("/")[1] for name in files if name.startswith("checkpoints/")]
        assert set(Counter(steps).values()) == {4}, steps
        last = max(steps)
        files = {
            name: data
            for name, data in files.items()
            if not name.startswith("checkpoints/") or name.startswith(f"checkpoints/{last}/")
        }
    elif stage == "evaluate":
        for name in ("speed.csv", "report.html"):
            files[name] = name in files
        of_the_clock = dict.fromkeys(("speed", "finished", "seconds"))
        files["metrics.json"] = {**json.loads(files["metrics.json"]), **of_the_clock}
    return files


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def check_results(disturbed: Disturbed, stage: str) -> None:
    report = disturbed.report(stage)
    expected = result(stage, disturbed.folder / stage / "undisturbed")
    for folder in disturbed.results(stage):
        kills = [kill for kill in report["kills"] if f"{kill['round']:03d}" == folder.name.split("-")[1]]
        changed = different(result(stage, folder), expected)
        assert not changed, f"seed {disturbed.seed}: {changed} after {kills}"
    assert len(disturbed.results(stage)) == report["rounds"]
    # The moments counted from the start of an attempt fall into its work, not into imports.
    roots = {name.split(".")[0] for name in report["imported"]}
    assert not roots & {"hkdpipe", "numpy", "pandas", "sklearn", "torch", "webdataset", "zarr"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_few_kills_change_nothing(a_few: Disturbed, stage: str) -> None:
    check_results(a_few, stage)
    assert len(a_few.report(stage)["kills"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_many_kills_change_nothing(many: Disturbed, stage: str) -> None:
    report = many.report(stage)
    landed = Counter(kill["landed"] for kill in report["kills"])
    print(f"\n{stage}: {report['rounds']} rounds of {report['seconds']:.2f} s undisturbed, seed {many.seed}")
    for phase, calls in {"begin": 1, **report["calls"]}.items():
        print(f"  {phase:10} {calls:4} calls {landed[phase]:4} kills")
    check_results(many, stage)
    assert sum(landed.values()) == 20
    assert not [phase for phase in report["calls"] if not landed[phase]]


def test_a_longer_teacher_training_cut_off_before_its_export(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier export must not pass for the one of the longer training."""

    def train(out: Path, iterations: int) -> None:
        longer = replace(TEACHER_TRAINING, iterations=iterations)
        train_teacher.train_teacher("digits", out, longer, **WORK)

    train(tmp_path / "cut", 2)
    train(tmp_path / "whole", 2)
    train(tmp_path / "whole", 4)
    with monkeypatch.context() as patch:
        patch.setattr(train_teacher, "save_teacher", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            train(tmp_path / "cut", 4)
    train(tmp_path / "cut", 4)
    assert content(tmp_path / "cut" / "export") == content(tmp_path / "whole" / "export")


# Through the command line


def stopped_and_resumed(folder: Path, command: list[str], begun: Path, number: signal.Signals) -> None:
    """Stop a command when its first results are there, read what it says, and let the same one finish."""
    with started(folder, *command) as running:
        running.wait_until(begun.exists)
        running.process.send_signal(number)
        ran = running.end()
    assert ran.code == 75, ran.err
    assert "\nstopping at the next safe point (Ctrl-C again: at once)\n" in ran.err
    again = re.escape(shlex.join(["hkdpipe", *command]))
    assert re.fullmatch(
        rf"hkdpipe: interrupted \(stopped (after|in) .*\); to go on: {again}", ran.err.splitlines()[-1]
    )
    assert "Traceback" not in ran.err
    resumed = succeeded(hkdpipe(folder, *command))
    # It starts from what was done, not from zero.
    assert re.search(r"^(training|generating trajectories): [1-9]", resumed.err, re.MULTILINE)
    assert not re.search(r": 0/", resumed.err)


def test_sigterm_amid_training(inputs: Inputs, tmp_path: Path) -> None:
    longer = replace(TRAINING, budget=1200, checkpoint_every=1000)
    train_tiny(inputs, tmp_path / "undisturbed", training=longer)
    places = ["--out", "out", "--teacher", str(inputs.teacher), "--archive", str(inputs.archive())]
    command = ["train", *places, *settings(training=longer, koopman=KOOPMAN)]
    stopped_and_resumed(tmp_path, command, tmp_path / "out" / "metrics.csv", signal.SIGTERM)
    assert not different(*(result("train", tmp_path / name) for name in ("out", "undisturbed")))


def test_ctrl_c_amid_generation(inputs: Inputs, tmp_path: Path) -> None:
    longer = replace(GENERATION, count=96, steps=30)
    generate.generate(str(inputs.teacher), tmp_path / "undisturbed", longer, **WORK)
    options = settings(generation=longer, training=TRAINING)
    command = ["generate-trajectories", "--out", "out", "--teacher", str(inputs.teacher), *options]
    first = tmp_path / "out" / "records" / "000000.json"
    stopped_and_resumed(tmp_path, command, first, signal.SIGINT)
    assert not different(*(content(tmp_path / name) for name in ("out", "undisturbed")))


@pytest.mark.slow
def test_a_whole_run_killed_in_every_stage(inputs: Inputs, tmp_path: Path) -> None:
    options = ["--run-dir", "run", *whole(inputs)]
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    succeeded(hkdpipe(tmp_path, "run", *options))
    (tmp_path / "run").rename(tmp_path / "undisturbed")
    for begun in ("generating trajectories: ", "training: ", "fd_digits of the "):
        with started(tmp_path, "run", *options) as running:
            running.wait_for(begun)
            time.sleep(chance.uniform(0, 0.3))
            running.process.kill()
            killed = running.end()
        assert killed.code == -signal.SIGKILL, f"seed {seed}: {killed.err}"
    succeeded(hkdpipe(tmp_path, "run", *options))
    for stage, part in (("generate", "trajectories"), ("train", "training"), ("evaluate", "evaluation")):
        one, other = (result(stage, tmp_path / name / part) for name in ("run", "undisturbed"))
        assert not different(one, other), f"seed {seed}"
    assert not different(content(tmp_path / "run" / "export"), content(tmp_path / "undisturbed" / "export"))
