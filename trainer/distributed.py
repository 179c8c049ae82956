"""The processes of one training: on which device each works, how they connect and how they agree."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from hkdpipe.manifests.errors import HkdpipeError, UsageError, first_line
from hkdpipe.trainer.world import World, meeting_place


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
    """A process group around the body, nothing for one process: gloo for tensors on CPUs, NCCL on GPUs.

    Raises HkdpipeError where the processes do not meet, or one of them is gone.
    """
    if world.size == 1:
        yield
        return
    os.environ.update(meeting_place())
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(
            backend, rank=world.rank, world_size=world.size, timeout=datetime.timedelta(minutes=10)
        )
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise HkdpipeError(
            f"the {world.size} processes of this training did not meet at {address} ({first_line(error)})"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def any_process(flags: Sequence[bool], world: World) -> list[bool]:
    """Each flag: true on every process if it is true on one of them. GPUs are not waited for."""
    if world.size == 1:
        return list(flags)
    values = torch.tensor([float(flag) for flag in flags])
    _all_reduce(values, dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def average_over_processes(tensors: Sequence[Tensor], world: World) -> None:
    """Replace the tensors by their means over the processes.

    It is one sum over one buffer, laid out alike at every step: the order in which three or more numbers are
    added depends on their place in it, and a training that is resumed must add as the undisturbed one did.
    """
    if world.size == 1:
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _all_reduce(together, dist.ReduceOp.SUM)
    together /= world.size
    parts = together.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    )


def copy_from_first(tensors: Sequence[Tensor], world: World) -> None:
    """Give the tensors the first process's values."""
    if world.size > 1:
        with _one_line_if_a_process_is_gone():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def sum_over_processes(value: int, world: World) -> int:
    """The sum of a number over the processes, on every process. GPUs are not waited for."""
    if world.size == 1:
        return value
    total = torch.tensor(value)
    _all_reduce(total, dist.ReduceOp.SUM)
    return int(total.item())


def barrier(world: World) -> None:
    if world.size > 1:
        any_process([False], world)


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    with _one_line_if_a_process_is_gone():
        dist.all_reduce(tensor, operation)


@contextmanager
def _one_line_if_a_process_is_gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise HkdpipeError(
            f"another process of this training is gone, so this one ends too ({first_line(error)}); the "
            "same command goes on from the last checkpoint"
        ) from None
