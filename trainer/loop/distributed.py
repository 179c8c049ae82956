"""The processes of one training: on which device each works, how they connect and how they agree."""

import datetime
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # known where it is available
from torch.distributed.distributed_c10d import PrefixStore, Store

from hkdpipe.manifests.ground.errors import HkdpipeError, Name, WrongValue, first_line
from hkdpipe.trainer.loop.world import World, meeting_place

PATIENCE = datetime.timedelta(minutes=10)
"""For the processes to meet."""
WORKING = datetime.timedelta(hours=4)
"""For the first one to measure while the others wait. One that dies is seen at once, by its connection."""
GRACE = datetime.timedelta(seconds=5)
"""For the processes that are left to see that one is gone."""


class _ProcessGone(HkdpipeError):
    """What connects the processes failed."""


def choose_device(device: str, world: World) -> torch.device:
    """'auto', 'cpu', 'cuda' or 'cuda:N' as a device of this process. Raises UsageError if it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
        known = chosen.type == "cuda"
    except RuntimeError:
        known = False
    if not known:
        raise WrongValue(Name("device"), f": got '{device}'; accepted: auto, cpu, cuda, cuda:N")
    if chosen.index is None:
        chosen = torch.device("cuda", world.local_rank)
    if chosen.index >= torch.cuda.device_count():
        there = f"this machine has {torch.cuda.device_count()} GPUs"
        raise WrongValue(Name("device"), f": {chosen} is not there; {there}")
    return chosen


@contextmanager
def connected(world: World, device: torch.device) -> Iterator[None]:
    """A process group around the body, nothing for one process: gloo for tensors on CPUs, NCCL on GPUs.
    Raises HkdpipeError, which names the processes that did not come, or that are gone."""
    if world.size == 1:
        yield
        return
    os.environ.update(meeting_place())
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store = _meet(world)
    with _one_line_if_a_process_is_gone():
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=WORKING)
    try:
        yield
    except _ProcessGone as error:
        # Who waits for this one in vain shall see it at once, and not be taken for gone.
        dist.destroy_process_group()
        gone = _absent(store, "ended", world, GRACE)
        raise HkdpipeError(
            f"{_named(gone)} of this training {'are' if len(gone) > 1 else 'is'} gone, so this one ends too "
            f"({error}); the same command goes on from the last checkpoint"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(world: World) -> Store:
    """A store that all processes have come to."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    failed = f"the {world.size} processes of this training did not meet at {address}:{port}"
    try:
        opened: Store = TCPStore(
            address,
            port,
            is_master=world.first and not hosted,
            timeout=PATIENCE,
            wait_for_workers=False,
            multi_tenant=True,
        )
        # torchrun keeps its store when it starts the processes again.
        store = PrefixStore(f"hkdpipe/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", opened)
        absent = _absent(store, "came", world, PATIENCE)
    except RuntimeError as error:
        raise HkdpipeError(f"{failed} ({first_line(error)})") from None
    if absent:
        raise HkdpipeError(f"{failed}: {_named(absent)} did not come within {PATIENCE.seconds} s")
    return store


def _absent(store: Store, event: str, world: World, patience: datetime.timedelta) -> list[int]:
    """Tell of an event of this process; returns the other ones that do not in time."""
    if world.first:
        patience += GRACE  # the store is gone with it
    deadline = time.monotonic() + patience.total_seconds()
    absent = [rank for rank in range(world.size) if rank != world.rank]
    try:
        store.set(f"{event}/{world.rank}", "")
        # Asked again and again: what fails while it waits in torch writes warnings.
        while absent := [rank for rank in absent if not store.check([f"{event}/{rank}"])]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    except RuntimeError:
        return [0]
    return absent


def _named(ranks: Sequence[int]) -> str:
    """Processes by their ranks."""
    if not ranks:
        return "the connection"
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


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
    means = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), means)


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
        raise _ProcessGone(first_line(error)) from None
