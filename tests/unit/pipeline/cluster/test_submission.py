"""submit, status and cancel beside stand-ins for SLURM's programs; test_slurm.py has the real ones."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hkdpipe.pipeline.configuration.run_directory import RunDir

Hkdpipe = Callable[..., Any]
SUBMIT = ("submit", "--run-dir", "x", "--cluster", "cluster.toml")
STAND_INS = {
    "sbatch": """
        if [ -f refused ]; then echo "sbatch: error: no account" >&2; exit 1; fi
        echo "$*" >> submitted; wc -l < submitted
    """,
    "squeue": """
        if [ -s queue ]; then cat queue; exit; fi
        echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1
    """,
    "scancel": 'echo "$*" >> cancelled',
}
X = "x/slurm"


class Slurm:
    """What was submitted, and what the queue says."""

    def queue(self, *lines: str) -> None:
        Path("queue").write_text("".join(f"{line}\n" for line in lines))

    @property
    def submitted(self) -> list[str]:
        """Since the last look, without the numbering."""
        path = Path("submitted")
        lines = path.read_text().splitlines() if path.exists() else []
        new = lines[self.seen :]
        self.seen = len(lines)
        return new

    seen = 0


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, _alone: None) -> Slurm:
    Path("bin").mkdir()
    for name, body in STAND_INS.items():
        (Path("bin") / name).write_text(f"#!/bin/sh\n{body}\n")
        (Path("bin") / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:{os.environ['PATH']}")
    Path("cluster.toml").write_text("")
    return Slurm()


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The stages that are, to be filled."""
    names: set[str] = set()

    def states(run: RunDir, config: Any) -> tuple[Any, ...]:
        return tuple(
            SimpleNamespace(name=name, state="complete" if name in names else "partial")
            for name in ("generation", "training", "evaluation")
        )

    monkeypatch.setattr(RunDir, "states", states)
    return names


def test_each_stage_follows_the_one_before(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe(*SUBMIT, "--preset", "digits", "--json")
    assert ran.code == 0, ran.err
    assert slurm.submitted == [
        f"--parsable {X}/generation.sh",
        f"--parsable --dependency=afterok:1 {X}/training.sh",
        f"--parsable --dependency=afterok:2 {X}/evaluation.sh",
    ]
    assert ran.last["training"] == {"state": "submitted", "job": "2"}
    assert Path("x/config.toml").exists()
    assert Path(X, "logs").is_dir()


def test_what_would_fail_is_said_before_it_waits_in_the_queue(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    """And submitted: the nodes may have the file. In a container, nothing can be known of them."""
    missing = (*SUBMIT, "--preset", "digits", "--set", "teacher.source=missing.pkl")
    ran = hkdpipe(*missing)
    assert ran.code == 0, ran.err
    assert "submit: on this machine the jobs would fail; missing.pkl: no such" in ran.err
    assert len(slurm.submitted) == 3
    assert "would fail" in hkdpipe(*missing, "--dry-run").err
    Path("cluster.toml").write_text("[cluster]\ncontainer = 'apptainer exec hkdpipe.sif'\n")
    assert "would fail" not in hkdpipe(*missing, "--dry-run").err


def test_after_another_job(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    assert hkdpipe(*SUBMIT, "--preset", "digits", "--after", "99").code == 0
    assert slurm.submitted[:2] == [
        f"--parsable --dependency=afterok:99 {X}/generation.sh",
        f"--parsable --dependency=afterok:1 {X}/training.sh",
    ]


def test_what_is_queued_is_not_submitted_again(slurm: Slurm, complete: set[str], hkdpipe: Hkdpipe) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    assert len(slurm.submitted) == 3
    slurm.queue("1|RUNNING|None|n1", "1|PENDING|Resources|", "2|PENDING|Dependency|", "3|PENDING|Dependency|")
    ran = hkdpipe(*SUBMIT)
    assert ran.code == 0
    assert "nothing to do" in ran.out
    assert slurm.submitted == []
    # What was lost follows the one that is there.
    complete |= {"generation"}
    slurm.queue("1|COMPLETED|None|n1", "2|RUNNING|None|n1", "3|CANCELLED|Dependency|")
    hkdpipe(*SUBMIT)
    assert slurm.submitted == [f"--parsable --dependency=afterok:2 {X}/evaluation.sh"]


def test_done_stages_are_left_out(slurm: Slurm, complete: set[str], hkdpipe: Hkdpipe) -> None:
    complete |= {"generation", "training"}
    hkdpipe(*SUBMIT, "--preset", "digits")
    assert slurm.submitted == [f"--parsable {X}/evaluation.sh"]
    # What follows from a stage that has more to do now may be out of date.
    complete |= {"evaluation"}
    complete -= {"training"}
    hkdpipe(*SUBMIT)
    assert slurm.submitted == [
        f"--parsable {X}/training.sh",
        f"--parsable --dependency=afterok:2 {X}/evaluation.sh",
    ]
    complete |= {"training"}
    assert "nothing to do" in hkdpipe(*SUBMIT).out


def test_some_stages(slurm: Slurm, complete: set[str], hkdpipe: Hkdpipe) -> None:
    given = (*SUBMIT, "--preset", "digits", "--stages")
    assert hkdpipe(*given, "generation,traning").error.startswith(
        "--stages: no stage 'traning'; did you mean 'training'?"
    )
    assert hkdpipe(*given, "training").error.startswith("--stages: training needs the stage before it")
    assert not Path("x").exists()
    assert hkdpipe(*given, "training,evaluation", "--after", "5").code == 0
    assert slurm.submitted == [
        f"--parsable --dependency=afterok:5 {X}/training.sh",
        f"--parsable --dependency=afterok:1 {X}/evaluation.sh",
    ]
    complete |= {"generation"}
    assert hkdpipe(*given, "training").code == 0
    assert slurm.submitted == [f"--parsable {X}/training.sh"]


def test_a_dry_run_writes_nothing(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe(
        *SUBMIT, "--preset", "digits", "--dry-run", "--array", "6%2", "--nodes", "4", "--time", "9:00"
    )
    assert ran.code == 0
    assert "#SBATCH --array=0-5%2\n" in ran.out
    assert "#SBATCH --nodes=4\n" in ran.out
    assert ran.out.count("#SBATCH --time=9:00\n") == 3
    assert f"# sbatch --parsable --dependency=afterok:JOB-OF-GENERATION {X}/training.sh" in ran.out
    size = "14,336 trajectories x 19 states x 128 B = 34.9 MB, in 14 shards"
    assert ran.out.startswith(f"# archive: {size}\n\n# {X}/generation.sh\n")
    assert not Path("x").exists()
    assert slurm.submitted == []
    ran = hkdpipe(*SUBMIT, "--preset", "digits", "--dry-run", "--set", "teacher.source=elsewhere.pkl")
    assert ran.code == 0
    assert ran.out.startswith("# archive: of unknown size here (elsewhere.pkl: no such teacher")


def test_refusals_come_before_anything_is_written(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    ran = hkdpipe(*SUBMIT, "--preset", "digits", "--nodes", "3")
    assert ran.code == 2
    assert ran.error == (
        "training.batch_size: got 160; accepted: a multiple of the processes, of which 3 nodes have 3"
    )
    assert hkdpipe("submit", "--preset", "digits", "--cluster", "cluster.toml").error.startswith(
        "--run-dir: miss"
    )
    assert hkdpipe("submit", "--run-dir", "x", "--cluster", "none.toml").error == "none.toml: no such file"
    assert not Path("x").exists()


def test_a_dry_run_refuses_what_a_begun_run_may_not_change(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    Path("x/trajectories").mkdir()
    Path("x/trajectories/plan.json").touch()
    ran = hkdpipe(*SUBMIT, "--set", "generation.seed=3", "--dry-run")
    assert ran.code == 2
    assert ran.error.startswith("generation.seed: this run has 0, given 3; ")


def test_jobs_in_the_queue_keep_their_configuration(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    slurm.queue("2|PENDING|Dependency|")
    ran = hkdpipe(*SUBMIT, "--set", "training.budget=9000000")
    assert ran.code == 4
    assert ran.error.startswith("training.budget: jobs that have the value ")
    assert ran.error.endswith("are in the queue (2); wait for their end, or: hkdpipe cancel --run-dir x")
    slurm.queue("2|CANCELLED|None|")
    assert hkdpipe(*SUBMIT, "--set", "training.budget=9000000").code == 0


def test_nothing_follows_an_array_that_has_failed_in_part(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    slurm.queue("1|RUNNING|None|n1", "1|FAILED|NonZeroExitCode|n2", "2|CANCELLED|None|")
    ran = hkdpipe(*SUBMIT)
    assert ran.code == 4
    assert ran.error.startswith("generation: tasks of job 1 failed and others go on; submit again when")


def test_a_refused_submission_keeps_those_before(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    Path("refused").touch()
    ran = hkdpipe(*SUBMIT, "--preset", "digits")
    assert (ran.code, ran.error) == (1, "generation: not submitted: sbatch: error: no account")
    assert not Path(X, "jobs.json").exists()


def test_without_slurm(hkdpipe: Hkdpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    Path("cluster.toml").write_text("")
    ran = hkdpipe(*SUBMIT, "--preset", "digits")
    assert ran.code == 1
    assert ran.error == "generation: not submitted: sbatch: not found; SLURM's commands are needed here"
    assert hkdpipe("status", "--run-dir", "x").code == 0


def test_status_shows_jobs(slurm: Slurm, hkdpipe: Hkdpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    Path(X, "logs", "generation-1_0.log").write_text("first\nlast but one\n\n")
    slurm.queue("1|RUNNING|None|n1", "1|PENDING|Resources|", "2|PENDING|Dependency|")
    jobs = hkdpipe("status", "--run-dir", "x", "--json").last["jobs"]
    assert jobs[0] == {
        "stage": "generation",
        "job": "1",
        "states": {"RUNNING": 1, "PENDING": 1},
        "live": True,
        "detail": "Resources, n1",
        "log": "last but one",
    }
    assert (jobs[1]["states"], jobs[1]["log"]) == ({"PENDING": 1}, "")
    shown = hkdpipe("status", "--run-dir", "x").out
    assert "1 RUNNING, 1 PENDING" in shown
    assert "not in the queue" in shown
    assert "Next:" not in shown
    # Where there is no SLURM, the rest is shown all the same.
    monkeypatch.setenv("PATH", "/nowhere")
    ran = hkdpipe("status", "--run-dir", "x")
    assert ran.code == 0
    assert ran.err == "squeue: not found; SLURM's commands are needed here; the states of jobs are unknown\n"


def test_cancel_takes_what_is_in_the_queue(slurm: Slurm, hkdpipe: Hkdpipe) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    slurm.queue("1|COMPLETED|None|n1", "2|RUNNING|None|n1", "3|PENDING|Dependency|")
    ran = hkdpipe("cancel", "--run-dir", "x", "--json")
    assert ran.code == 0
    assert ran.last == {"did_nothing": False, "files": [], "cancelled": ["2", "3"]}
    assert Path("cancelled").read_text() == "2 3\n"
    slurm.queue()
    assert hkdpipe("cancel", "--run-dir", "x", "--json").last["did_nothing"]
    assert hkdpipe("cancel", "--run-dir", "none").error == (
        "none/config.toml: missing, so none is not a run directory"
    )


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"version": 2, "jobs": []}', '{"version": 1, "jobs": [{"a": 1}]}']
)
def test_a_damaged_record_of_jobs(slurm: Slurm, hkdpipe: Hkdpipe, content: str) -> None:
    hkdpipe(*SUBMIT, "--preset", "digits")
    Path(X, "jobs.json").write_text(content)
    for arguments in (SUBMIT, ("status", "--run-dir", "x"), ("cancel", "--run-dir", "x")):
        ran = hkdpipe(*arguments)
        assert ran.code == 3
        assert ran.error.startswith("x/slurm/jobs.json: no record of jobs (")
