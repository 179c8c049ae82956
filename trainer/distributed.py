"""The processes of one training: who they are, how they meet and how they agree."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hkdpipe.manifests.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among those of a training, as torchrun's environment tells it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0


def world_from_environment() -> World:
    """RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them; one process where they are not set."""
    try:
        world = World(*(int(os.environ.get(name, default)) for name, default in _VARIABLES.items()))
    except ValueError:
        world = World(rank=-1)
    if not (0 <= world.rank < world.size and world.local_rank >= 0):
        given = ", ".join(f"{name}={os.environ.get(name, '')}" for name in _VARIABLES)
        raise UsageError(
            f"environment of torchrun: {given}; accepted: integers, RANK from 0 below WORLD_SIZE"
        )
    return world


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def choose_device(name: str, world: World) -> torch.device:
    """'auto', 'cpu', 'cuda' or 'cuda:N' as a device of this process. Raises UsageError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: got '{name}'; accepted: auto, cpu, cuda, cuda:N") from None
    if device.type != "cuda":
        raise UsageError(f"--device: got '{name}'; accepted: auto, cpu, cuda, cuda:N")
    if device.index is None:
        device = torch.device("cuda", world.local_rank)
    if device.index >= torch.cuda.device_count():
        raise UsageError(
            f"--device: {device} is not there; this machine has {torch.cuda.device_count()} GPUs"
        )
    return device


@contextmanager
def connected(world: World, device: torch.device) -> Iterator[None]:
    """A process group around the body: gloo for CPUs, NCCL for GPUs; nothing for one process."""
    if world.size == 1:
        yield
        return
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UsageError(
            f"environment of torchrun: WORLD_SIZE={world.size} without MASTER_ADDR and MASTER_PORT; "
            "accepted: all that torchrun sets"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, rank=world.rank, world_size=world.size, timeout=datetime.timedelta(minutes=10)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def any_process(flag: bool, world: World, device: torch.device) -> bool:
    """True on every process if it is true on one of them."""
    if world.size == 1:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def mean_over_processes(values: torch.Tensor, world: World) -> torch.Tensor:
    """The mean of a tensor over the processes, on every process."""
    if world.size > 1:
        dist.all_reduce(values)
        values = values / world.size
    return values


def sum_over_processes(value: int, world: World, device: torch.device) -> int:
    """The sum of a number over the processes, on every process."""
    if world.size == 1:
        return value
    total = torch.tensor(value, device=device)
    dist.all_reduce(total)
    return int(total.item())


def barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()
