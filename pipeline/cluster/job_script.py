"""The sbatch script of a stage, as text: it requeues itself, and also runs when it is submitted by hand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from hkdpipe.pipeline.cluster.cluster_file import (
    Cluster,
    ClusterSettings,
    GenerationJob,
    JobSettings,
    TrainingJob,
)
from hkdpipe.pipeline.configuration.run_directory import RunDir

COMMANDS = {"generation": "generate-trajectories", "training": "train", "evaluation": "evaluate"}
"""The stages, in their order, and the commands that do them."""

_BEGIN = """\
job="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}"
job="${{job:-$SLURM_JOB_ID}}"
restarts="${{SLURM_RESTART_COUNT:-0}}"
echo "hkdpipe: job $job on $SLURM_JOB_NODELIST, restart $restarts" >&2
if [ "$restarts" -gt {limit} ]; then
    echo "hkdpipe: job $job gives up after {limit} restarts; submit the run again" >&2
    exit 1
fi
# The shell outlives a request to stop, to see how the stage ends.
trap : TERM USR2
"""

_END = """\
echo "hkdpipe: job $job: exit code $code" >&2
case "$code" in
    75 | 140 | 143) again=yes ;; # stopped at a safe point, or by USR2 or TERM before it had begun
esac
# In another state it was cancelled, or is being started again already.
if [ "${again:-}" = yes ] && [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
    scontrol requeue "$job"
fi
exit "$code"
"""

# Out here, since in a container there may be no scontrol; the name of a node need not resolve.
_MEETING = """\
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_ADDR="$(scontrol --oneliner show node "$first" | sed 's/.* NodeAddr=\\([^ ]*\\) .*/\\1/')"
MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
export MASTER_ADDR MASTER_PORT
"""

# Whatever its processes exit with, torchrun exits with 1: that they stopped at a safe point the first of them
# tells by a file. While they start they cannot, so the shell that starts torchrun does where USR2 came; not
# for TERM, which srun sends to the others when one has failed. A torchrun that knows these settings passes
# USR2 on, and has patience.
_TORCHRUN_BEGIN = """\
export PET_MASTER_ADDR="$MASTER_ADDR" PET_MASTER_PORT="$MASTER_PORT"
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2 PET_SHUTDOWN_TIMEOUT={notice}
export HKDPIPE_STOPPED={folder}/stopped-"$SLURM_JOB_ID"
rm -f "$HKDPIPE_STOPPED"
# The task expands what stands in single quotes: it alone knows the number of its node.
# shellcheck disable=SC2016
"""
# The shell hears signals when torchrun has ended, which hears them too; it must not end before.
_TORCHRUN_TASK = """\
trap : TERM; trap ': > "$HKDPIPE_STOPPED"' USR2; PET_NODE_RANK="$SLURM_NODEID" "$@"; exit "$?"\
"""
_TORCHRUN_END = """\
if [ "$code" -ne 0 ] && [ -e "$HKDPIPE_STOPPED" ]; then
    code=75
fi
rm -f "$HKDPIPE_STOPPED"
"""


def job_script(stage: str, run: RunDir, cluster: Cluster, folder: Path) -> str:
    """The script of `stage` of the run; relative paths in its configuration are those of `folder`."""
    settings: JobSettings = getattr(cluster, stage)
    arguments = [COMMANDS[stage], "--run-dir", str(run.path.absolute())]
    arguments += ["--device", "cuda" if settings.gpus else "cpu"]
    if stage == "generation":
        arguments.append("--wait")
    begin, end = _around(settings, run, cluster.cluster)
    # Workers of an archive do without one another, the processes of a training do not.
    needed = stage == "training"
    step = [
        "srun",
        f"--cpus-per-task={settings.cpus_per_task}",
        f"--kill-on-bad-exit={needed:d}",
        *cluster.cluster.srun,
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(stage, run, cluster, folder)),
        "",
        "# Written by hkdpipe submit. By hand, each after the one before is done:",
        *(f"#   sbatch {shlex.quote(str(script_path(run, name).absolute()))}" for name in COMMANDS),
        "",
        _BEGIN.format(limit=cluster.cluster.restarts),
        "set -e",
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{settings.cpus}}}"',
        *cluster.cluster.environment,
        "code=0",
        f"{begin}{shlex.join([*step, *_started(settings, cluster.cluster), *arguments])} || code=$?",
        end,
        _END,
    ]
    return "\n".join(lines)


def script_path(run: RunDir, stage: str) -> Path:
    return run.slurm / f"{stage}.sh"


def log_pattern(stage: str, job: str) -> str:
    """A glob for the names of a job's logs in `run.slurm`/logs."""
    return f"{stage}-{job}_*.log" if stage == "generation" else f"{stage}-{job}.log"


def _options(stage: str, run: RunDir, cluster: Cluster, folder: Path) -> list[str]:
    """Of sbatch."""
    common = cluster.cluster
    settings: JobSettings = getattr(cluster, stage)
    numbers = "%A_%a" if stage == "generation" else "%j"
    logs = str(run.slurm.absolute() / "logs").replace("%", "%%")
    values = {
        "job-name": f"{stage}-{run.path.absolute().name}",
        "output": f"{logs}/{stage}-{numbers}.log",
        "open-mode": "append",
        "chdir": str(folder),
        "partition": common.partition,
        "account": common.account,
        "qos": common.qos,
        "constraint": common.constraint,
        "nodes": str(settings.nodes if isinstance(settings, TrainingJob) else 1),
        "ntasks-per-node": str(settings.tasks_per_node),
        "cpus-per-task": str(settings.cpus_per_task),
        "gres": f"{common.gres}:{settings.gpus}" if settings.gpus else "",
        "mem": settings.memory,
        "time": settings.time,
        "signal": f"USR2@{common.notice}",
        "kill-on-invalid-dep": "yes",
    }
    if isinstance(settings, GenerationJob):
        limit = f"%{settings.limit}" if settings.limit else ""
        values["array"] = f"0-{settings.tasks - 1}{limit}"
    given = [f"--{name}={shlex.quote(value)}" for name, value in values.items() if value]
    return [*given, "--requeue", *common.extra]


def _around(settings: JobSettings, run: RunDir, common: ClusterSettings) -> tuple[str, str]:
    """What stands before and after the line that starts the stage's processes."""
    if not (isinstance(settings, TrainingJob) and settings.together):
        return "", ""
    if not settings.torchrun:
        return _MEETING, ""
    folder = shlex.quote(str(run.slurm.absolute()))
    return _MEETING + _TORCHRUN_BEGIN.format(folder=folder, notice=common.notice), _TORCHRUN_END


def _started(settings: JobSettings, common: ClusterSettings) -> list[str]:
    """hkdpipe on the nodes, behind all that starts it."""
    if common.program:
        program = common.program
    elif common.container:
        program = "hkdpipe"
    else:
        program = str(Path(sys.executable).with_name("hkdpipe"))
    container = shlex.split(common.container)
    if not settings.torchrun:
        return [*container, program]
    torchrun = [str(Path(program).with_name("torchrun")), "--no-python"]
    nodes = settings.nodes if isinstance(settings, TrainingJob) else 1
    torchrun += [f"--nnodes={nodes}", f"--nproc-per-node={settings.processes}"]
    return [
        "bash",
        "-c",
        _TORCHRUN_TASK,
        "torchrun",
        *container,
        *torchrun,
        program,
    ]
