import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hkdpipe.manifests.ground.claims import BEAT_SECONDS, STALE_SECONDS, owning
from hkdpipe.manifests.ground.errors import InputError, Interrupted, InUseError
from hkdpipe.pipeline.cli import COMMANDS
from hkdpipe.stages.settings.teacher_sampling import TeacherSampling
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings

Hkdpipe = Callable[..., Any]
RUN = ("run", "--preset", "digits")


def last_call(stages: Any) -> Any:
    return stages.calls[-1][1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe(command, "--help")
    assert ran.code == 0
    assert f"  hkdpipe {command} " in ran.out


def test_without_a_command_the_help_is_shown(hkdpipe: Hkdpipe) -> None:
    assert hkdpipe().out == hkdpipe("--help").out
    assert all(f"\n  {command} " in hkdpipe().out for command in COMMANDS)


def test_help_and_configuration_load_nothing_heavy() -> None:
    script = (
        "import sys; from hkdpipe.pipeline.cli import main; main(['--help']); main(['train', '--help']); "
        "main(['config']); print(sorted({'torch', 'pandas', 'rich', 'zarr', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(hkdpipe: Hkdpipe) -> None:
    assert hkdpipe("--version").out.startswith("hkdpipe 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("trian", 2, "no command 'trian'; did you mean 'train'? (see hkdpipe --help)"),
        ("config --preset digit", 2, "--preset: no preset 'digit'; did you mean 'digits'?"),
        ("config --explain --check", 2, "--explain and --check: give one of them"),
        ("config --config none.toml", 3, "none.toml: no such file"),
        ("config --config .", 2, ".: Is a directory"),
        ("status --run-dir none", 3, "none/config.toml: missing, so none is not a run directory"),
        ("run", 2, "--run-dir: missing; give it, or --preset or --config, after which runs/NAME is named"),
        ("train", 2, "--run-dir or --out: missing; give one of them"),
        ("train --out x", 2, "--archive: missing; give it, or --run-dir"),
        ("train --out x --run-dir y", 2, "--run-dir and --out: give one of them"),
        ("evaluate --out x --archive y", 2, "--checkpoint: missing; give it, or --run-dir"),
        ("generate-trajectories", 2, "--run-dir or --out: missing; give one of them"),
        (
            "train --method kkd --run-dir x",
            2,
            'training.method: got "kkd"; accepted: one of "hkd", "kd", "kdm"',
        ),
        ("sample --out x", 2, "--model or --teacher: give one of them"),
        ("sample --out x --model m --teacher t", 2, "--model or --teacher: give one of them"),
        (
            "sample --out x --model m --solver euler",
            2,
            "--solver: accepted with --teacher only, for its sampler",
        ),
        (
            "sample --out x --model m --edm-seeds",
            2,
            "--edm-seeds: accepted with --teacher only, for its sampler",
        ),
        ("sample --out x --teacher t --s-max 50", 2, "--s-max: accepted with --churn above 0 only"),
        *(
            (
                f"sample --out x --teacher t --{option} {value}",
                2,
                f"Invalid value for '--{option}': {value} is not a finite number. "
                "(see hkdpipe sample --help)",
            )
            for option, value in (("churn", "inf"), ("s-max", "nan"), ("s-noise", "nan"))
        ),
        (
            "train-teacher --data digits --out x --channel-mult 1,b",
            2,
            'train-teacher.channel_mult: got "[1,b]"; accepted: a list, each an integer, at least 1',
        ),
    ],
)
def test_refusals(arguments: str, code: int, message: str, hkdpipe: Hkdpipe, tmp_path: Path) -> None:
    ran = hkdpipe(*arguments.split())
    assert (ran.error, ran.code) == (message, code)
    assert not list(tmp_path.iterdir())


def test_unknown_options_suggest_the_nearest(hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe("train", "--run-dri", "x")
    assert ran.code == 2
    assert "--run-dri" in ran.error
    assert "--run-dir" in ran.error
    assert ran.error.endswith("(see hkdpipe train --help)")


@pytest.mark.parametrize("command", ["run", "sample --model x --out y"])
def test_only_the_three_stages_are_distributed(
    command: str, hkdpipe: Hkdpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    name, *arguments = command.split()
    ran = hkdpipe(name, *(arguments or ["--run-dir", "x"]))
    assert ran.code == 2
    assert ran.error.startswith(f"{name}: started as one of 2 processes; accepted: one process")


ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "5"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "3"}


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ((), {}, (0, 1)),
        (("--worker", "2/5"), ARRAY, (2, 5)),
        ((), ARRAY, (3, 5)),
        ((), {**ARRAY, "SLURM_ARRAY_TASK_ID": "10", "SLURM_ARRAY_TASK_STEP": "2"}, (3, 5)),
        ((), TORCHRUN, (1, 2)),
        ((), SRUN, (2, 3)),
        ((), {**SRUN, **TORCHRUN}, (1, 2)),
        ((), {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),
        ((), {**ARRAY, **SRUN}, (11, 15)),
    ],
    ids=str,
)
def test_worker_is_named_or_seen_by_the_environment(
    stages: Any,
    hkdpipe: Hkdpipe,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    variables: dict[str, str],
    expected: tuple[int, int],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hkdpipe("generate-trajectories", "--out", "a", *options).code == 0
    worker = last_call(stages)["worker"]
    assert (worker.index, worker.count) == expected


@pytest.mark.parametrize("wait", [True, False])
def test_worker_waits_if_told_to(stages: Any, hkdpipe: Hkdpipe, wait: bool) -> None:
    assert hkdpipe("generate-trajectories", "--out", "a", *["--wait"] * wait).code == 0
    assert last_call(stages)["wait"] is wait


@pytest.mark.parametrize("worker", ["2", "2/2", "-1/2", "a/b", "1/0", "1/2/3"])
def test_worker_that_is_none(hkdpipe: Hkdpipe, worker: str) -> None:
    ran = hkdpipe("generate-trajectories", "--out", "a", "--worker", worker)
    assert ran.code == 2
    assert ran.error == f"--worker: got '{worker}'; accepted: i/n, i from 0 below n, as in 0/8"


def test_workers_share_a_run_directory_that_nothing_else_may_use(stages: Any, hkdpipe: Hkdpipe) -> None:
    generate = ("generate-trajectories", "--run-dir", "x")
    Path("x").mkdir()
    with owning(Path("x"), "x", shared=True):
        assert hkdpipe(*generate, "--worker", "0/2").code == 0
        assert hkdpipe(*generate).code == 4
        assert hkdpipe("train", "--run-dir", "x").code == 4
    with owning(Path("x"), "x"):
        assert hkdpipe(*generate, "--worker", "1/2").code == 4


@pytest.mark.parametrize(
    ("job", "change", "code", "waits"),
    [
        ("7", -50.0, 0, [1, 1, 1, 1, BEAT_SECONDS]),  # silent: at last it counts as lost
        ("7", 0.0, 4, [1] * (int(STALE_SECONDS) + 1)),  # neither, as a process that is held
        ("7", +1.0, 4, [1]),  # it lives
        (None, 0.0, 4, []),
    ],
)
def test_a_job_waits_for_an_owner_that_may_be_lost(
    stages: Any,
    hkdpipe: Hkdpipe,
    monkeypatch: pytest.MonkeyPatch,
    job: str | None,
    change: float,
    code: int,
    waits: list[float],
) -> None:
    claims = Path("x/claims")
    with owning(Path("x"), "x"):
        (claim,) = claims.glob("*.json")
        content = json.loads(claim.read_text()) | {"host": "another"}
    claim.write_text(json.dumps(content))
    waited = []

    def pass_the_time(seconds: float) -> None:
        waited.append(seconds)
        if claim.exists():
            beat = claim.stat().st_mtime + change
            os.utime(claim, (beat, beat))

    monkeypatch.setattr("hkdpipe.pipeline.options.time", SimpleNamespace(sleep=pass_the_time))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    assert hkdpipe("train", "--preset", "digits", "--run-dir", "x").code == code
    assert waited == waits


def test_run_does_three_stages_and_then_nothing(stages: Any, hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe(*RUN, "--device", "cpu")
    assert ran.code == 0
    assert [name for name, _ in stages.calls] == ["generate", "train", "evaluate"]
    assert last_call(stages)["device"].type == "device cpu"
    assert last_call(stages)["checkpoint"] == Path("runs/digits/training/checkpoints")
    assert last_call(stages)["export"] == Path("runs/digits/export")
    assert "run directory: runs/digits" in ran.err
    assert all(f"title of {name}" in ran.out for name in ("generate", "train", "evaluate"))
    assert "after" not in ran.out
    assert ran.out.endswith(
        "  hkdpipe sample --model runs/digits/export --count 64 --out samples\n"
        "  hkdpipe status --run-dir runs/digits\n"
    )
    ran = hkdpipe("run", "--run-dir", "runs/digits")
    assert ran.code == 0
    assert ran.out.startswith("nothing to do: runs/digits is complete\n")
    assert "title of evaluate" in ran.out
    assert "title of train" not in ran.out
    record = json.loads(Path("runs/digits/run.json").read_text())
    assert [entry["state"] for entry in record["stages"].values()] == ["complete"] * 3


def test_run_json_and_quiet(stages: Any, hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe(*RUN, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert isinstance(last_call(stages)["reporter"], Silent)
    ran = hkdpipe(*RUN, "--json")
    assert ran.out.count("\n") == 1
    assert ran.last["did_nothing"] is True
    assert ran.last["stages"]["training"] == {
        "did_nothing": True,
        "files": ["runs/digits/training/metrics.csv"],
        "name": "train",
    }


def test_the_stored_configuration_is_kept_and_guarded(stages: Any, hkdpipe: Hkdpipe) -> None:
    hkdpipe(*RUN, "--set", "training.seed=3", "--set", "training.budget=160000")
    ran = hkdpipe("train", "--run-dir", "runs/digits", "--set", "training.budget=200000")
    assert ran.code == 0
    assert (last_call(stages)["training"].seed, last_call(stages)["training"].budget) == (3, 200_000)
    (change,) = json.loads(Path("runs/digits/run.json").read_text())["changes"]
    assert (change["key"], change["from"], change["to"]) == ("training.budget", 160_000, 200_000)
    message = (
        "training.seed: this run has 3, given 4; it decides results that are there already: "
        "keep the value, or take another --run-dir"
    )
    for command in ("run", "train", "config --check"):
        ran = hkdpipe(*command.split(), "--run-dir", "runs/digits", "--set", "training.seed=4")
        assert (ran.error, ran.code) == (message, 2)
    stored = hkdpipe("config", "--run-dir", "runs/digits", "--json").last
    assert (stored["training"]["seed"], stored["training"]["budget"]) == (3, 200_000)


def test_a_run_directory_in_use(stages: Any, hkdpipe: Hkdpipe) -> None:
    Path("x").mkdir()
    with owning(Path("x"), "x"):
        ran = hkdpipe("train", "--run-dir", "x")
    assert ran.code == 4
    assert ran.error.startswith(f"run directory x is in use by process {os.getpid()} on ")
    assert not Path("x/config.toml").exists()


def test_other_processes_of_a_training_neither_own_nor_speak(
    stages: Any, hkdpipe: Hkdpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    world = SimpleNamespace(first=False, size=2, rank=1)
    monkeypatch.setattr(sys.modules["hkdpipe.trainer.loop.world"], "world_from_environment", lambda: world)
    Path("x").mkdir()
    with owning(Path("x"), "x"):
        ran = hkdpipe("train", "--run-dir", "x", "--json")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert not Path("x/config.toml").exists()
    ran = hkdpipe("train", "--run-dir", "x", "--preset", "none")
    assert ran.err.startswith("hkdpipe: error (rank 1): --preset: ")


def test_stages_at_explicit_places(stages: Any, hkdpipe: Hkdpipe) -> None:
    options = ("--format", "webdataset", "--set", "teacher.licence=CC0")
    hkdpipe("generate-trajectories", "--teacher", "20", "--out", "a", *options)
    assert last_call(stages)["licence"] == "CC0"
    assert last_call(stages)["out"] == Path("a")
    assert last_call(stages)["teacher"] == "20"
    assert last_call(stages)["settings"].format == "webdataset"
    hkdpipe("train", "--archive", "a", "--out", "t", "--method", "hkd")
    assert last_call(stages)["archive"] == Path("a")
    assert last_call(stages)["training"].method == "hkd"
    ran = hkdpipe("evaluate", "--archive", "a", "--checkpoint", "t/checkpoints", "--out", "e", "--json")
    assert last_call(stages)["export"] == Path("e/export")
    assert ran.last == {"did_nothing": False, "files": ["e/metrics.json"], "name": "evaluate"}
    ran = hkdpipe("evaluate", "--archive", "a", "--checkpoint", "t/checkpoints", "--out", "e")
    assert ran.out.startswith("nothing to do: all of this was done before\n")
    ran = hkdpipe("train", "--archive", "a", "--run-dir", "r")
    assert ran.out.endswith("Next:\n  hkdpipe evaluate --run-dir r\n")
    assert (last_call(stages)["archive"], last_call(stages)["out"]) == (Path("a"), Path("r/training"))


def test_sample(stages: Any, hkdpipe: Hkdpipe) -> None:
    assert hkdpipe("sample", "--model", "m", "--out", "s", "--count", "5").code == 0
    assert (last_call(stages)["count"], last_call(stages)["seed"]) == (5, 0)
    assert last_call(stages)["class_number"] is None
    assert hkdpipe("sample", "--model", "m", "--out", "s", "--class", "3").code == 0
    assert last_call(stages)["class_number"] == 3
    assert hkdpipe("sample", "--model", "m", "--out", "s", "--count", "0").code == 2


def test_sample_of_a_teacher(stages: Any, hkdpipe: Hkdpipe) -> None:
    assert hkdpipe("sample", "--teacher", "digits", "--out", "s").code == 0
    assert last_call(stages)["sampling"] == TeacherSampling()
    options = "--steps 256 --churn 40 --s-min 0.05 --s-max inf --s-noise 1.003 --solver euler --edm-seeds"
    assert hkdpipe("sample", "--teacher", "t", "--out", "s", *options.split()).code == 0
    assert last_call(stages)["teacher"] == "t"
    assert last_call(stages)["sampling"] == TeacherSampling(
        256, "euler", 40.0, s_min=0.05, s_noise=1.003, edm_seeds=True
    )


def test_train_teacher(stages: Any, hkdpipe: Hkdpipe) -> None:
    hkdpipe("train-teacher", "--data", "digits", "--out", "t", "--channel-mult", "1,2", "--ema", "0.5")
    assert last_call(stages)["settings"] == TeacherTrainingSettings(channel_mult=(1, 2), ema=0.5)
    hkdpipe("train-teacher", "--data", "digits", "--out", "t", "--conditional")
    assert last_call(stages)["settings"] == TeacherTrainingSettings(conditional=True)


def fail(stages: Any, error: BaseException) -> None:
    def before(name: str, arguments: dict[str, Any]) -> None:
        raise error

    stages.before = before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a: missing"), 3, "a: missing"),
        (InUseError("a is\nin use"), 4, "a is in use"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "runs/digits/trajectories: disk full (No space left on device); "
            "free some space and give the same command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "there"), 2, "there: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "there"), 2, "there: Read-only file system"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "it"),
            3,
            "it: No such file or directory",
        ),
        (OSError(errno.EIO, "Input/output error", "it"), 1, "it: Input/output error"),
    ],
)
def test_what_goes_wrong_in_a_stage(
    error: BaseException, code: int, message: str, stages: Any, hkdpipe: Hkdpipe
) -> None:
    fail(stages, error)
    ran = hkdpipe(*RUN, "--quiet")
    assert (ran.error, ran.code) == (message, code)


def test_bugs_are_not_hidden(stages: Any, hkdpipe: Hkdpipe) -> None:
    fail(stages, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        hkdpipe(*RUN)


def test_interrupted(stages: Any, hkdpipe: Hkdpipe) -> None:
    def before(name: str, arguments: dict[str, Any]) -> None:
        if name == "train":
            os.kill(os.getpid(), signal.SIGTERM)
            if arguments["stop"]():
                raise Interrupted("at step 5")

    stages.before = before
    ran = hkdpipe(*RUN, "--run-dir", "my run")
    assert ran.code == 75
    assert ran.err.splitlines()[-2:] == [
        "stopping at the next safe point (Ctrl-C again: at once)",
        "hkdpipe: interrupted (at step 5); to go on: hkdpipe run --preset digits --run-dir 'my run'",
    ]
    record = json.loads(Path("my run/run.json").read_text())
    assert record["stages"]["training"]["state"] == "interrupted"
    fail(stages, KeyboardInterrupt())
    ran = hkdpipe("train", "--run-dir", "my run")
    assert ran.code == 75
    assert ran.err.strip() == "hkdpipe: interrupted; to go on: hkdpipe train --run-dir 'my run'"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_run_directory(stages: Any, hkdpipe: Hkdpipe) -> None:
    Path("x").mkdir(mode=0o555)
    ran = hkdpipe("run", "--run-dir", "x")
    assert (ran.error, ran.code) == ("x/claims: Permission denied", 2)


def test_a_place_below_a_file(stages: Any, hkdpipe: Hkdpipe) -> None:
    Path("x").touch()
    assert hkdpipe("run", "--run-dir", "x").error == "--run-dir: x is not a folder"
    ran = hkdpipe("run", "--run-dir", "x/y")
    assert ran.code == 2
    assert ran.error.startswith("x")


def test_status(stages: Any, hkdpipe: Hkdpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from hkdpipe.stages.shared.stage_state import StageState

    def state(name: str, state: Any) -> Callable[..., StageState]:
        return lambda *_: StageState(name, state, 1000, 2000, "units", f"detail of {name}")

    states = SimpleNamespace(
        generation_state=state("generation", "complete"),
        training_state=state("training", "partial"),
        evaluation_state=state("evaluation", "absent"),
    )
    monkeypatch.setitem(sys.modules, "hkdpipe.stages.shared.stage_state", states)
    hkdpipe("generate-trajectories", "--preset", "digits", "--run-dir", "x")
    ran = hkdpipe("status", "--run-dir", "x")
    assert ran.code == 0
    assert "x: not complete" in ran.out
    assert "1,000 of 2,000 units" in ran.out
    assert "complete, 0 s" in ran.out
    assert ran.out.endswith("Next:\n  hkdpipe run --run-dir x\n")
    last = hkdpipe("status", "--run-dir", "x", "--json").last
    assert last["complete"] is False
    assert last["stages"]["training"]["done"] == 1000
    assert last["stages"]["generation"]["record"]["state"] == "complete"


def test_config(hkdpipe: Hkdpipe) -> None:
    Path("mine.toml").write_text(hkdpipe("config", "--explain", "--set", "hkd.times=3").out)
    assert hkdpipe("config", "--config", "mine.toml").out == hkdpipe("config", "--set", "hkd.times=3").out
    assert hkdpipe("config", "--check", "--config", "mine.toml").out == "the configuration is accepted\n"
    assert hkdpipe("config", "--config", "mine.toml", "--json").last["hkd"]["times"] == 3
    explained = hkdpipe("config", "--explain", "--json").last
    assert explained["training"]["budget"]["accepted"] == "an integer, at least 1"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = shutil.which("hkdpipe", path=str(Path(sys.executable).parent))
    assert command is not None
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([command, "config", "--explain"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.stderr == ""


@pytest.mark.parametrize(("rank", "ends"), [("1", 2), (None, -signal.SIGTERM)])
def test_a_process_of_several_that_has_failed_cannot_look_stopped(rank: str | None, ends: int) -> None:
    """srun ends the others with TERM as soon as one has failed, as they are on their way out themselves."""
    code = (
        "import atexit, os, signal, sys; atexit.register(os.kill, os.getpid(), signal.SIGTERM); "
        "from hkdpipe.pipeline.cli import main; sys.exit(main(['config', '--preset', 'none']))"
    )
    told = {"RANK": rank, "WORLD_SIZE": "2"} if rank else {}
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, **told}).returncode == ends
