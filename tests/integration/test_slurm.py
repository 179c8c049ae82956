"""Runs as jobs of a real SLURM cluster with two nodes, both on this machine."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import HKDPIPE, TORCHRUN, Ran, hkdpipe, run, succeeded
from slurm_cluster import Cluster, missing_programs
from test_killed_at_random import content, different
from test_workers import LONG
from tiny import EVALUATION, GENERATION, KOOPMAN, TRAINING, Inputs, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# A task of the array takes all of a node, so that each is on one of its own.
CLUSTER = """\
[cluster]
restarts = 3
[generation]
gpus = 0
cpus = 2
tasks = 2
[training]
gpus = 0
cpus = 1
nodes = 2
[evaluation]
gpus = 0
cpus = 1
"""
LONG_TRAINING = replace(TRAINING, budget=1000, checkpoint_every=40)
WITHOUT_SPEED = replace(EVALUATION, metrics=("fd", "match"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if lacking := missing_programs():
        pytest.skip(
            f"no SLURM here: {', '.join(lacking)} missing; Debian's slurmctld slurmd slurm-client munge"
        )
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Submitted:
    """A run directory and its jobs."""

    def __init__(self, cluster: Cluster, folder: Path, name: str = "run", file: str = CLUSTER) -> None:
        self.cluster = cluster
        self.folder = folder
        self.path = folder / name
        (folder / "cluster.toml").write_text(file)

    def hkdpipe(self, *arguments: str) -> Ran:
        command, *options = arguments
        return self.cluster.call(HKDPIPE, command, "--run-dir", str(self.path), *options, folder=self.folder)

    def submit(self, *options: str) -> dict[str, Any]:
        ran = succeeded(self.hkdpipe("submit", "--cluster", "cluster.toml", "--json", *options))
        answer: dict[str, Any] = json.loads(ran.out.splitlines()[-1])
        return {stage: answer[stage]["job"] for stage in ("generation", "training", "evaluation")}

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(succeeded(self.hkdpipe("status", "--json")).out)
        return answer

    def log(self, name: str) -> str:
        path = self.path / "slurm" / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, name: str, text: str, times: int = 1) -> None:
        """Until a log has `text` in it that often."""
        self.cluster.wait_for(lambda: self.log(name).count(text) >= times, f"{text} in {name}")


def refused(run_of: Submitted, log: str) -> bool:
    """Whether a copy has seen that the owner of the run lives, which beats here in place of a stopped one."""
    for claim in run_of.path.glob("claims/*.json"):
        claim.touch()
    return "hkdpipe: error: " in run_of.log(log)


def checkpoints(path: Path) -> list[str]:
    return sorted(folder.name for folder in path.glob("training/checkpoints/step-*"))


def programs_of(job: str) -> set[str]:
    """Names of the programs that run on this machine for a job."""
    found = set()
    mark = f"SLURM_JOB_ID={job}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                # Python's own program is a script.
                found |= {Path(word).name for word in (folder / "cmdline").read_text().split("\0")[:2]}
    return found


def measured(path: Path) -> Any:
    """The evaluation, without the folders that it names."""
    return json.loads((path / "evaluation" / "metrics.json").read_text())["rows"]


def test_a_run_that_is_preempted_and_loses_a_node_equals_a_local_one(
    inputs: Inputs, cluster: Cluster, tmp_path: Path
) -> None:
    options = [
        *("--set", f"teacher.source={inputs.teacher}"),
        *settings(generation=LONG, training=LONG_TRAINING, koopman=KOOPMAN, evaluation=WITHOUT_SPEED),
    ]
    run_of = Submitted(cluster, tmp_path)
    jobs = run_of.submit(*options)
    array, training, evaluation = jobs["generation"], jobs["training"], jobs["evaluation"]

    # The first task is asked to stop, the node of the second one is lost.
    for task in (0, 1):
        run_of.wait_for(f"generation-{array}_{task}", "generating trajectories: ")
    cluster.ask("scancel", "--signal=USR2", f"{array}_0")
    cluster.ask("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    run_of.wait_for(f"generation-{array}_0", "exit code 75")
    cluster.ask("scontrol", "update", "nodename=n2", "state=resume")
    again = run_of.submit()
    assert again == jobs
    assert cluster.wait_for_end(array) == {"COMPLETED"}
    for task in (0, 1):
        assert ", restart 1\n" in run_of.log(f"generation-{array}_{task}")

    # Training is asked to stop, and then started again from outside; another copy is refused.
    log = f"training-{training}"
    cluster.wait_for(lambda: len(checkpoints(run_of.path)) > 0, "checkpoint")
    cluster.ask("scancel", "--signal=STOP", training)
    copy = cluster.ask("sbatch", "--parsable", str(run_of.path / "slurm" / "training.sh"))
    cluster.wait_for(lambda: refused(run_of, f"training-{copy}"), "refusal")
    assert cluster.wait_for_end(copy) == {"FAILED"}
    assert f"run directory {run_of.path} is in use by process" in run_of.log(f"training-{copy}")
    assert "task 0: Exited with exit code 4" in run_of.log(f"training-{copy}")
    cluster.ask("scancel", "--signal=CONT", training)
    cluster.ask("scancel", "--signal=USR2", training)
    run_of.wait_for(log, "exit code 75")
    stopped_at = checkpoints(run_of.path)[-1]
    run_of.wait_for(log, f"job {training} on n[1-2], restart 1")
    cluster.wait_for(lambda: checkpoints(run_of.path)[-1] > stopped_at, "checkpoint after the restart")
    cluster.ask("scontrol", "requeue", training)
    assert cluster.wait_for_end(evaluation) == {"COMPLETED"}
    assert f"job {training} on n[1-2], restart 2" in run_of.log(log)
    assert run_of.log(log).endswith("exit code 0\n")

    status = run_of.status()
    assert status["complete"]
    assert {job["job"]: job["states"] for job in status["jobs"]}[array] == {"COMPLETED": 2}

    local = tmp_path / "local"
    place = ["--run-dir", str(local)]
    succeeded(hkdpipe(tmp_path, "generate-trajectories", *place, *options))
    two = [TORCHRUN, "--standalone", "--no-python", "--nproc-per-node", "2"]
    succeeded(run([*two, HKDPIPE, "train", *place], tmp_path))
    succeeded(hkdpipe(tmp_path, "evaluate", *place))
    assert not different(content(run_of.path / "trajectories"), content(local / "trajectories"))
    assert checkpoints(run_of.path)[-1] == checkpoints(local)[-1]
    for name in ("weights.safetensors", "ema.safetensors"):
        ours, theirs = (
            path / "training" / "checkpoints" / checkpoints(local)[-1] / name for path in (run_of.path, local)
        )
        assert ours.read_bytes() == theirs.read_bytes()
    assert measured(run_of.path) == measured(local)

    assert set(run_of.submit().values()) == {None}
    assert cluster.call("squeue", "-h").out == ""


def test_torchrun_on_two_nodes_stops_and_goes_on(inputs: Inputs, cluster: Cluster, tmp_path: Path) -> None:
    """Though it hides its processes' exit codes; the weights are those of two local processes."""
    file = CLUSTER.replace("nodes = 2", 'nodes = 2\nlauncher = "torchrun"')
    run_of = Submitted(cluster, tmp_path, file=file)
    options = [
        *("--set", f"teacher.source={inputs.teacher}"),
        *settings(generation=GENERATION, training=LONG_TRAINING, koopman=KOOPMAN),
    ]
    succeeded(run_of.hkdpipe("generate-trajectories", *options))
    shutil.copytree(run_of.path, tmp_path / "local")
    submitted = succeeded(
        run_of.hkdpipe("submit", "--cluster", "cluster.toml", "--stages", "training", "--json")
    )
    job = json.loads(submitted.out.splitlines()[-1])["training"]["job"]
    log = f"training-{job}"
    # While its processes are starting, and cannot stop at a safe point yet.
    cluster.wait_for(lambda: "hkdpipe" in programs_of(job), "processes of the training")
    cluster.ask("scancel", "--signal=USR2", job)
    run_of.wait_for(log, f"job {job}: exit code 75")
    cluster.wait_for(lambda: len(checkpoints(run_of.path)) > 0, "checkpoint")
    cluster.ask("scancel", "--signal=USR2", job)
    run_of.wait_for(log, f"job {job}: exit code 75", times=2)
    assert checkpoints(run_of.path)[-1] < "step-00000250"
    cluster.ask("shellcheck", str(run_of.path / "slurm" / "training.sh"))
    assert cluster.wait_for_end(job) == {"COMPLETED"}
    assert f"job {job} on n[1-2], restart 2" in run_of.log(log)
    two = [TORCHRUN, "--standalone", "--no-python", "--nproc-per-node", "2"]
    succeeded(run([*two, HKDPIPE, "train", "--run-dir", str(tmp_path / "local")], tmp_path))
    for name in ("weights.safetensors", "ema.safetensors"):
        ours, theirs = (
            path / "training" / "checkpoints" / checkpoints(path)[-1] / name
            for path in (run_of.path, tmp_path / "local")
        )
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_failed_stage_ends_the_later_ones(inputs: Inputs, cluster: Cluster, tmp_path: Path) -> None:
    run_of = Submitted(cluster, tmp_path)
    jobs = run_of.submit("--set", "teacher.source=teacher", *settings(generation=LONG, training=TRAINING))
    assert cluster.wait_for_end(jobs["evaluation"]) == {"CANCELLED"}
    found = {job["stage"]: job for job in run_of.status()["jobs"]}
    assert {stage: job["states"] for stage, job in found.items()} == {
        "generation": {"FAILED": 2},
        "training": {"CANCELLED": 1},
        "evaluation": {"CANCELLED": 1},
    }
    assert found["generation"]["log"].endswith("exit code 3")
    # The same command goes on when the fault is mended; cancelled, nothing comes back.
    shutil.copytree(inputs.teacher, tmp_path / "teacher")
    second = run_of.submit()
    assert not set(second.values()) & set(jobs.values())
    run_of.wait_for(f"generation-{second['generation']}_0", "generating trajectories: ")
    refused = run_of.hkdpipe("submit", "--cluster", "cluster.toml", "--set", "generation.count=90")
    assert refused.code == 4
    succeeded(run_of.hkdpipe("cancel"))
    for job in second.values():
        assert cluster.wait_for_end(job) == {"CANCELLED"}
    for task in (0, 1):
        run_of.wait_for(f"generation-{second['generation']}_{task}", "exit code 75")
    assert cluster.call("squeue", "-h").out == ""


def test_scripts_are_sound_wherever_the_run_lies(inputs: Inputs, cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "with space 5%"
    folder.mkdir()
    run_of = Submitted(cluster, folder, "that's # it")
    holder = cluster.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600")
    jobs = run_of.submit(
        "--set",
        f"teacher.source={inputs.teacher}",
        "--after",
        holder,
        *settings(generation=LONG, training=TRAINING),
    )
    for stage, job in jobs.items():
        script = run_of.path / "slurm" / f"{stage}.sh"
        cluster.ask("shellcheck", str(script))
        cluster.ask("sbatch", "--test-only", str(script))
        shown = cluster.ask("scontrol", "--oneliner", "show", "job", job)
        assert f"WorkDir={folder} " in shown
        assert "Dependency=afterok:" in shown
    cluster.ask("scancel", holder)
    for job in jobs.values():
        assert cluster.wait_for_end(job) == {"CANCELLED"}
