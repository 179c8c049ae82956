"""The scripts, run by bash beside stand-ins for SLURM's programs; test_slurm.py runs them in a real SLURM."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hkdpipe.pipeline.cluster.cluster_file import (
    Cluster,
    ClusterSettings,
    EvaluationJob,
    GenerationJob,
    TrainingJob,
)
from hkdpipe.pipeline.cluster.job_script import job_script
from hkdpipe.pipeline.configuration.run_directory import RunDir

STAND_INS = {
    "srun": """
        echo "srun $*" >> calls
        while [ "${1#--}" != "$1" ]; do shift; done
        [ -z "$PLAY" ] || "$@"
        exit "$CODE"
    """,
    "as-told": """
        echo "$MASTER_ADDR:$MASTER_PORT" >> calls
    """,
    "torchrun": """
        echo "torchrun $* as node $PET_NODE_RANK at $PET_MASTER_ADDR:$PET_MASTER_PORT" >> calls
        [ -z "$SIGNAL" ] || kill -s "$SIGNAL" "$PPID"
        sleep "${SAVING:-0}"
        [ -z "$STOPPED" ] || touch "$HKDPIPE_STOPPED"
    """,
    "squeue": 'echo "$STATE"',
    "scontrol": """
        echo "scontrol $*" >> calls
        [ "$1" != show ] || echo n1
        [ "$1" != --oneliner ] || echo "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=vm Version=22"
    """,
}
JOB = {"SLURM_JOB_ID": "8", "SLURM_JOB_NODELIST": "n1"}
TASK = {**JOB, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}


def script(stage: str, cluster: Cluster | None = None, run: str = "runs/a") -> str:
    return job_script(stage, RunDir(Path(run)), cluster or Cluster(), Path("/work"))


def options(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}


def played(text: str, code: int, state: str = "RUNNING", **variables: str) -> tuple[int, list[str], str]:
    """Exit code, calls of stand-ins and stderr of a script whose stage exits with `code`."""
    folder = Path("bin")
    folder.mkdir(exist_ok=True)
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    Path("calls").write_text("")
    done = subprocess.run(
        ["bash", "-c", text],
        env={
            "PATH": f"{folder.absolute()}:{os.environ['PATH']}",
            "CODE": str(code),
            "STATE": state,
            **variables,
        },
        capture_output=True,
        text=True,
    )
    return done.returncode, Path("calls").read_text().splitlines(), done.stderr


def requeued(calls: list[str]) -> list[str]:
    return [call for call in calls if call.startswith("scontrol requeue")]


def test_what_is_asked_of_the_cluster() -> None:
    cluster = Cluster(
        cluster=ClusterSettings(
            partition="gpu",
            account="lab",
            qos="high",
            constraint="a100&ib",
            gres="gpu:a100",
            extra=("--exclusive",),
        ),
        generation=GenerationJob(gpus=2, cpus=8, memory="64G", time="1-0", tasks=64, limit=16),
        training=TrainingJob(gpus=8, nodes=4),
        evaluation=EvaluationJob(gpus=0),
    )
    common = {"--partition=gpu", "--account=lab", "--qos=high", "--constraint='a100&ib'", "--exclusive"}
    common |= {
        "--requeue",
        "--open-mode=append",
        "--kill-on-invalid-dep=yes",
        "--signal=USR2@120",
        "--chdir=/work",
    }
    generation = options(script("generation", cluster))
    assert common <= generation
    assert {"--array=0-63%16", "--gres=gpu:a100:2", "--ntasks-per-node=2", "--nodes=1"} <= generation
    assert {"--mem=64G", "--time=1-0", "--cpus-per-task=8"} <= generation
    training = options(script("training", cluster))
    assert common | {"--nodes=4", "--ntasks-per-node=8", "--gres=gpu:a100:8", "--cpus-per-task=4"} <= training
    evaluation = options(script("evaluation", cluster))
    assert {"--nodes=1", "--ntasks-per-node=1"} <= evaluation
    assert not any("gres" in option or "mem" in option or "time" in option for option in evaluation)


def test_every_stage_is_called_in_its_run_directory() -> None:
    run = Path("runs/a").absolute()
    for stage, command in (
        ("generation", f"generate-trajectories --run-dir {run} --device cuda --wait"),
        ("training", f"train --run-dir {run} --device cuda"),
        ("evaluation", f"evaluate --run-dir {run} --device cuda"),
    ):
        code, calls, _ = played(script(stage), 0, **JOB)
        assert code == 0
        assert calls[-1].endswith(f"/hkdpipe {command}")
        bad = 1 if stage == "training" else 0
        assert calls[-1].startswith(f"srun --cpus-per-task=4 --kill-on-bad-exit={bad} ")
        assert not requeued(calls)


def test_processes_of_a_training_are_told_where_they_meet() -> None:
    """By address, as the names of nodes need not resolve; workers of an archive have no need to meet."""
    for settings, told in ((TrainingJob(gpus=2), "10.0.0.1:20008"), (TrainingJob(gpus=1), ":")):
        cluster = Cluster(cluster=ClusterSettings(program="as-told"), training=settings)
        _, calls, _ = played(script("training", cluster), 0, **JOB, PLAY="yes")
        assert calls[-1] == told
    cluster = Cluster(cluster=ClusterSettings(program="as-told"), generation=GenerationJob(gpus=2))
    _, calls, _ = played(script("generation", cluster), 0, **JOB, PLAY="yes")
    assert calls[-1] == ":"


TORCHRUN = Cluster(
    cluster=ClusterSettings(program="hkdpipe", notice=300),
    training=TrainingJob(gpus=4, cpus=3, nodes=2, launcher="torchrun"),
)


def test_torchrun_starts_the_processes_of_its_node() -> None:
    text = script("training", TORCHRUN)
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=12", "--gres=gpu:4"} <= options(text)
    assert 'OMP_NUM_THREADS="${OMP_NUM_THREADS:-3}"' in text
    assert "SIGUSR2 PET_SHUTDOWN_TIMEOUT=300" in text
    Path("runs/a/slurm").mkdir(parents=True)
    _, calls, _ = played(text, 0, **JOB, PLAY="yes", SLURM_NODEID="1")
    run = Path("runs/a").absolute()
    assert calls[-1] == (
        f"torchrun --no-python --nnodes=2 --nproc-per-node=4 hkdpipe train --run-dir {run} --device cuda "
        "as node 1 at 10.0.0.1:20008"
    )
    contained = replace(TORCHRUN, cluster=ClusterSettings(container="apptainer exec a.sif"))
    assert " torchrun apptainer exec a.sif torchrun --no-python " in script("training", contained)
    alone = replace(TORCHRUN, training=TrainingJob(launcher="torchrun"))
    assert " torchrun " not in script("training", alone)


@pytest.mark.parametrize(
    ("code", "signal", "stopped", "ends"),
    [
        (1, "USR2", "", 75),  # while it was starting
        (1, "USR2", "yes", 75),
        (1, "TERM", "yes", 75),
        (1, "TERM", "", 1),  # as another one had failed
        (1, "", "", 1),
        (0, "", "", 0),
        (0, "USR2", "", 0),
    ],
)
def test_torchrun_does_not_hide_how_a_stage_ends(code: int, signal: str, stopped: str, ends: int) -> None:
    """It exits with 1 whatever its processes say. The signal goes to the shell that started it, too, which
    waits for it: who is told to stop takes a while to save."""
    text = script("training", TORCHRUN)
    folder = Path("runs/a/slurm")
    folder.mkdir(parents=True)
    (folder / "stopped-8").touch()  # of a job that was killed
    ended, calls, _ = played(text, code, **JOB, PLAY="yes", SIGNAL=signal, STOPPED=stopped, SAVING="0.2")
    assert ended == ends
    assert requeued(calls) == (["scontrol requeue 8"] if ends == 75 else [])
    assert not list(folder.iterdir())


def test_containers_and_environments() -> None:
    settings = ClusterSettings(
        container="apptainer exec 'my image.sif'", srun=("--mpi=none",), environment=("export CODE=5",)
    )
    code, calls, _ = played(script("evaluation", Cluster(cluster=settings)), 0, **JOB)
    assert calls[-1].startswith(
        "srun --cpus-per-task=4 --kill-on-bad-exit=0 --mpi=none apptainer exec my image.sif hkdpipe evaluate"
    )
    assert code == 5
    named = Cluster(cluster=replace(settings, program="/opt/hkdpipe"))
    assert "'my image.sif' /opt/hkdpipe evaluate" in script("evaluation", named)
    failing = Cluster(cluster=ClusterSettings(environment=("module() { return 9; }", "module load cuda")))
    code, calls, _ = played(script("evaluation", failing), 0, **JOB)
    assert (code, calls) == (9, [])


@pytest.mark.parametrize("code", [75, 140, 143])
def test_what_was_stopped_is_started_again(code: int) -> None:
    ended, calls, said = played(script("generation"), code, **TASK)
    assert requeued(calls) == ["scontrol requeue 7_3"]
    assert ended == code
    assert said.splitlines() == ["hkdpipe: job 7_3 on n1, restart 0", f"hkdpipe: job 7_3: exit code {code}"]
    _, calls, _ = played(script("training"), code, **JOB)
    assert requeued(calls) == ["scontrol requeue 8"]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 137])
def test_what_failed_is_not(code: int) -> None:
    ended, calls, _ = played(script("training"), code, **JOB)
    assert (ended, requeued(calls)) == (code, [])


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", ""])
def test_nor_what_was_cancelled_or_is_being_started_again(state: str) -> None:
    ended, calls, _ = played(script("training"), 75, state, **JOB)
    assert (ended, requeued(calls)) == (75, [])


def test_restarts_have_a_limit() -> None:
    cluster = Cluster(cluster=ClusterSettings(restarts=2))
    code, _, said = played(script("evaluation", cluster), 0, **JOB, SLURM_RESTART_COUNT="2")
    assert code == 0
    assert "job 8 on n1, restart 2" in said
    code, calls, said = played(script("evaluation", cluster), 0, **JOB, SLURM_RESTART_COUNT="3")
    assert (code, calls) == (1, [])
    assert "job 8 gives up after 2 restarts" in said
