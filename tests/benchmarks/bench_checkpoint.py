"""How long a checkpoint keeps the training waiting: the copy of its state, against writing it.

`python tests/benchmarks/bench_checkpoint.py [ROUNDS]`: HKD on the digits teacher and on an untrained network
of CIFAR-10's size, with Adam's state and one average of the weights; by default 3 checkpoints of each. The
loop waits for the copy; the rest, with checksums and the disk, is a thread's. Printed are the medians.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_generation import CIFAR10_NETWORK

from hkdpipe.trainer.loop.checkpoint import TrainingState, save_checkpoint, snapshot
from hkdpipe.trainer.loop.training_loop import new_state
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm import PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import load_teacher


def trained_once(network: PreconditionedUNet) -> TrainingState[HKD]:
    """A student whose optimiser has its state."""
    student = HKD.from_teacher(network, HkdOptions())
    optimizer = torch.optim.AdamW(student.parameter_groups(TrainingSettings()), fused=True)
    for parameter in student.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return new_state(student, optimizer, (0.999,))


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(name: str, network: PreconditionedUNet, rounds: int) -> None:
    state = trained_once(network)
    copying, writing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            state.step += 1
            copying.append(seconds(lambda: snapshot(state)))
            taken = snapshot(state)
            writing.append(seconds(lambda taken=taken: save_checkpoint(Path(folder), taken, {}, 1)))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    copy, write = statistics.median(copying), statistics.median(writing)
    print(
        f"{name}: {size / 1e6:,.0f} MB; the loop waits {1000 * copy:,.0f} ms, the thread writes for "
        f"{1000 * write:,.0f} ms: {copy / (copy + write):.1%} of a checkpoint that is waited for",
        flush=True,
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    compare("digits teacher", load_teacher("digits").network, rounds)
    network = PreconditionedUNet(CIFAR10_NETWORK)
    compare(f"{network.parameter_count() / 1e6:.1f} M parameters", network, rounds)


if __name__ == "__main__":
    main()
