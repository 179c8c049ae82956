"""The cluster file: what the jobs of `hkdpipe submit` ask of a SLURM cluster."""

from __future__ import annotations

import functools
import re
import shlex
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.ground.sections import setting
from hkdpipe.pipeline.configuration.config import check_sections, parse_sections, read_toml

# Where and how a job runs decides no result.
_setting = functools.partial(setting, kind="operational")


@dataclass(frozen=True)
class ClusterSettings:
    """[cluster]: what all jobs have in common."""

    partition: str = _setting("", "partition; '': the cluster's default, as in the next three")
    account: str = _setting("", "account that pays")
    qos: str = _setting("", "quality of service")
    constraint: str = _setting("", "features that nodes must have")
    gres: str = _setting("gpu", "generic resource that GPUs are asked for as: gpu, or gpu:a100")
    extra: tuple[str, ...] = _setting((), "further options of sbatch, as in ['--mail-type=FAIL']")
    srun: tuple[str, ...] = _setting(
        (),
        "further options of srun, as Pyxis' ['--container-image=hkdpipe.sqsh', '--container-mounts=/data']",
    )
    container: str = _setting(
        "",
        "what runs a command in a container, as 'apptainer exec --nv --bind /data hkdpipe.sif'; '': nothing",
    )
    program: str = _setting(
        "", "hkdpipe on the nodes; '': 'hkdpipe' in a container, else the one that submits, by its path"
    )
    environment: tuple[str, ...] = _setting(
        (), "lines of shell that come first, as in ['module load cuda']; a job ends where one fails"
    )
    notice: int = _setting(
        120,
        "seconds before the time limit at which a stage is asked to stop: more than a shard or a checkpoint "
        "takes",
        minimum=1,
        maximum=65_535,
    )
    restarts: int = _setting(50, "how often a job may be started again before it gives up", minimum=0)


@dataclass(frozen=True)
class JobSettings:
    """What every job asks for."""

    gpus: int = _setting(
        1, "GPUs of a node, each with a process of its own; 0: one process on CPUs", minimum=0
    )
    cpus: int = _setting(4, "CPUs of a process", minimum=1)
    memory: str = _setting("", "memory of a node, as 64G; '': the partition's default, as in the next")
    time: str = _setting(
        "", "time limit, as 24:00:00; what is left then goes on in the same job, started again"
    )

    @property
    def processes(self) -> int:
        """Processes of a node."""
        return max(1, self.gpus)

    @property
    def torchrun(self) -> bool:
        """Whether a torchrun on each node starts them, instead of srun."""
        return False

    @property
    def tasks_per_node(self) -> int:
        """Tasks that srun starts on a node."""
        return 1 if self.torchrun else self.processes

    @property
    def cpus_per_task(self) -> int:
        return self.cpus * self.processes // self.tasks_per_node


@dataclass(frozen=True)
class GenerationJob(JobSettings):
    """[generation]: a job array, each task on one node."""

    tasks: int = _setting(1, "tasks of the array", minimum=1)
    limit: int = _setting(0, "tasks that may run at once; 0: all", minimum=0)


@dataclass(frozen=True)
class TrainingJob(JobSettings):
    """[training]: one job over all of its nodes."""

    nodes: int = _setting(1, "nodes", minimum=1)
    launcher: str = _setting(
        "srun",
        "what starts the processes: 'srun', or a 'torchrun' on each node",
        choices=("srun", "torchrun"),
    )

    @property
    def together(self) -> bool:
        """Whether there are several processes, on all nodes."""
        return self.nodes * self.processes > 1

    @property
    def torchrun(self) -> bool:
        return self.launcher == "torchrun" and self.together


@dataclass(frozen=True)
class EvaluationJob(JobSettings):
    """[evaluation]: one job on one node."""


@dataclass(frozen=True)
class Cluster:
    """One field per section of the cluster file. UsageError for a line break in a text."""

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    generation: GenerationJob = field(default_factory=GenerationJob)
    training: TrainingJob = field(default_factory=TrainingJob)
    evaluation: EvaluationJob = field(default_factory=EvaluationJob)

    def __post_init__(self) -> None:
        for section in fields(self):
            settings = getattr(self, section.name)
            for key in fields(settings):
                value = getattr(settings, key.name)
                texts = value if isinstance(value, tuple) else (value,)
                # A line more would be a command of its own in a job's script.
                if any(isinstance(text, str) and text and text.splitlines() != [text] for text in texts):
                    raise UsageError(f"{section.name}.{key.name}: got a line break; accepted: one line")
        try:
            shlex.split(self.cluster.container)
        except ValueError as error:
            raise UsageError(f"cluster.container: not words of a shell: {error}") from None

    def changed(self, array: str | None, time: str | None, nodes: int | None) -> Cluster:
        """With the values of the options --array (N or N%LIMIT), --time (of all jobs) and --nodes."""
        changed = self
        if time is not None:
            changed = replace(
                changed,
                generation=replace(changed.generation, time=time),
                training=replace(changed.training, time=time),
                evaluation=replace(changed.evaluation, time=time),
            )
        if array is not None:
            match = re.fullmatch(r"([1-9]\d*)(?:%([1-9]\d*))?", array)
            if match is None:
                raise UsageError(f"--array: got '{array}'; accepted: tasks, or tasks%limit, as in 64%16")
            tasks, limit = int(match[1]), int(match[2] or 0)
            changed = replace(changed, generation=replace(changed.generation, tasks=tasks, limit=limit))
        if nodes is not None:
            changed = replace(changed, training=replace(changed.training, nodes=nodes))
        return changed


SECTIONS: dict[str, type] = typing.get_type_hints(Cluster)


def read_cluster(path: Path) -> Cluster:
    """The cluster file `path`. UsageError names the key that is not accepted, InputError a missing file."""
    values = read_toml(path)
    try:
        check_sections(values, SECTIONS)
        return Cluster(**parse_sections(values, SECTIONS))
    except UsageError as error:
        raise UsageError(f"{path}: ", *error.parts) from None
