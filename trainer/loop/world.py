"""The processes of one training: who each is, as their launcher tells, and where they meet. Free of torch."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from hkdpipe.manifests.ground.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among those of a training."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Launcher:
    """What starts several processes, and the variables by which it tells them who they are."""

    name: str
    rank: str
    size: str
    local_rank: str


TORCHRUN = Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK")
SRUN = Launcher("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


def launcher() -> Launcher | None:
    """What started this process; None where it was started alone. A batch script of SLURM has the variables
    of tasks too, though it is none: only a step has SLURM_STEP_ID."""
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return TORCHRUN
    return SRUN if "SLURM_STEP_ID" in os.environ else None


def told_rank() -> str:
    """This process's number as its launcher tells it, "0" where it is alone."""
    found = launcher()
    return os.environ.get(found.rank, "0") if found else "0"


def world_from_environment() -> World:
    """Raises UsageError where the launcher's variables contradict one another."""
    found = launcher()
    if found is None:
        return World()
    names = (found.rank, found.size, found.local_rank)
    try:
        world = World(*(int(os.environ.get(name, alone)) for name, alone in zip(names, "010", strict=True)))
    except ValueError:
        world = World(rank=-1)
    if not 0 <= world.local_rank <= world.rank < world.size:
        given = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        raise UsageError(
            f"environment of {found.name}: {given}; accepted: integers, {found.local_rank} from 0 to "
            f"{found.rank}, {found.rank} below {found.size}"
        )
    if found is SRUN and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        return World(world.rank, world.size)  # the one GPU that the task was given is its first
    return world


def meeting_place() -> Mapping[str, str]:
    """MASTER_ADDR and MASTER_PORT: those given, or under srun the step's first host and a port of the job's.
    UsageError where neither is known."""
    names = ("MASTER_ADDR", "MASTER_PORT")
    if all(name in os.environ for name in names):
        return {name: os.environ[name] for name in names}
    found = launcher() or TORCHRUN
    if found is TORCHRUN:
        raise UsageError("environment of torchrun: several processes without MASTER_ADDR and MASTER_PORT")
    nodes, job = os.environ.get("SLURM_STEP_NODELIST", ""), os.environ.get("SLURM_JOB_ID", "")
    try:
        first = _scontrol("show", "hostnames", nodes).split()[0]
        # The name need not resolve, where SLURM knows the address.
        address = _scontrol("--oneliner", "show", "node", first).partition(" NodeAddr=")[2].split()[0]
        return {"MASTER_ADDR": address, "MASTER_PORT": str(20000 + int(job) % 20000)}
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        raise UsageError(
            f"environment of srun: SLURM_STEP_NODELIST={nodes}, SLURM_JOB_ID={job}; accepted: hosts that "
            "scontrol knows and a job's number, or MASTER_ADDR and MASTER_PORT"
        ) from None


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout
