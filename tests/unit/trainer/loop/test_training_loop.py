import contextlib
import copy
import dataclasses
import errno
import itertools
import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fit_together
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._inductor.exc import InductorError

from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.errors import HkdpipeError, InputError, Interrupted, InUseError, UsageError
from hkdpipe.trainer.loop import checkpoint, loss_scale, training_loop
from hkdpipe.trainer.loop.checkpoint import (
    Snapshot,
    TrainingState,
    best_checkpoint,
    checkpoints,
    read_state,
    restore,
    save_checkpoint,
)
from hkdpipe.trainer.loop.checkpoint import snapshot as copied
from hkdpipe.trainer.loop.distributed import choose_device
from hkdpipe.trainer.loop.hooks import AverageWeights, ClipGradient, average_decay
from hkdpipe.trainer.loop.loss_scale import LossScale
from hkdpipe.trainer.loop.training_loop import (
    Callbacks,
    Loss,
    fit,
    learning_rate_factor,
    new_state,
    prefetched,
    resume,
    step,
)
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson, mse_decay
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings, KoopmanSettings
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.teachers.edm.layers import Conv2d

State = TrainingState[nn.Module]
Relative = Callable[[Tensor, Tensor], float]
SETTINGS = dataclasses.replace(fit_together.SETTINGS, budget=36, batch_size=4, keep_checkpoints=2)
UNCLIPPED = (AverageWeights(),)
CPU = torch.device("cpu")


def start(seed: int = 0, ema: Sequence[float] = (0.8,), scaled: bool = False) -> State:
    """A network with parameters and buffers, before its first step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.SiLU(), nn.Linear(5, 2))
    groups = [
        {"params": [*model[0].parameters(), *model[1].parameters()], "lr": 0.05, "weight_decay": 0.1},
        {"params": list(model[3].parameters()), "lr": 0.2, "weight_decay": 0.0},
    ]
    return new_state(model, torch.optim.AdamW(groups, fused=True), ema, scaled)


def read_batch(first: int, stop: int) -> Tensor:
    """Samples that are a function of their position."""
    return torch.stack([torch.sin(torch.tensor([1.0, 2.0, 3.0]) * (n + 1)) for n in range(first, stop)])


def loss(model: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
    value = ((model(batch) - batch[:, :2] ** 2) ** 2).mean()
    return {"loss": value * (1 + progress), "mse": value}


def pull(slope: Tensor) -> Loss:
    """A loss of this slope in the weights of a model with one parameter."""
    return lambda model, batch, progress: {"loss": (next(model.parameters()) * slope).sum()}


@dataclasses.dataclass
class Notes:
    """Callbacks that note what they are told, and ask to stop before step `after` of a run."""

    after: float = math.inf
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """By step."""
    logged: list[tuple[int, dict[str, float]]] = dataclasses.field(default_factory=list)
    saved: list[int] = dataclasses.field(default_factory=list)
    """The steps of the checkpoints made, but for that of step 0, which is not scored."""
    asked: int = 0

    def stop(self) -> bool:
        self.asked += 1
        return self.asked > self.after

    def score(self, state: State) -> float | None:
        self.saved.append(state.step)
        return self.scores.get(state.step)

    def callbacks(self) -> Callbacks:
        return Callbacks(self.stop, lambda seen, values: self.logged.append((seen, values)), self.score)


def run(
    folder: Path,
    state: State,
    notes: Notes | None = None,
    read: Callable[[int, int], Tensor] = read_batch,
    **changes: Any,
) -> Notes:
    notes = notes or Notes()
    settings = dataclasses.replace(SETTINGS, **changes)
    fit(state, read, loss, settings, folder, {"identity": "same", "note": 1}, notes.callbacks(), World())
    return notes


def snapshot(state: State) -> dict[str, Any]:
    """All that a training consists of, in plain values."""
    slots = state.optimizer.state_dict()
    return {
        "step": state.step,
        "seen": state.seen,
        "skipped": state.skipped.tolist(),
        "loss_scale": state.loss_scale and state.loss_scale.numbers(),
        "model": {name: value.tolist() for name, value in state.model.state_dict().items()},
        "ema": {name: value.tolist() for name, value in state.ema.state_dict().items()},
        "slots": {i: {k: v.tolist() for k, v in slot.items()} for i, slot in slots["state"].items()},
        "groups": slots["param_groups"],
    }


@pytest.fixture
def uninterrupted(tmp_path: Path) -> dict[str, Any]:
    state = start()
    run(tmp_path / "uninterrupted", state)
    return snapshot(state)


@pytest.mark.parametrize("steps", [1, 2, 4, 100])
def test_resuming_after_stops_changes_no_bit(
    tmp_path: Path, uninterrupted: dict[str, Any], steps: int
) -> None:
    """Stopped again and again after so many steps, each time continued by a new process's state."""
    state, interruptions = start(), -(-9 // steps) - 1
    for number in range(interruptions):
        with pytest.raises(Interrupted, match=f"after {4 * steps * (number + 1)} of 36 samples"):
            run(tmp_path, state, Notes(after=steps))
        state = start(seed=number + 1)  # other weights, and another state of the global generator
        resumed = resume(tmp_path, state, "same", lambda text: None)
        assert resumed is not None
        assert (state.step, state.seen) == (resumed["step"], resumed["seen"])
    run(tmp_path, state, Notes(after=steps))
    assert snapshot(state) == uninterrupted
    assert state.step == 9


def test_resuming_while_half_precision_overflows_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every step: the first ones are skipped and halve the loss scale, others double it."""
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 2)

    def large(first: int, stop: int) -> Tensor:
        return 4 * read_batch(first, stop)

    def sit(folder: str, seed: int, after: float) -> State:
        state = start(seed, scaled=True)
        resume(tmp_path / folder, state, "same", print)
        with contextlib.suppress(Interrupted):
            run(tmp_path / folder, state, Notes(after), large, autocast=torch.float16)
        return state

    expected = snapshot(sit("undisturbed", 0, math.inf))
    skipped, in_a_row = expected["skipped"]
    assert in_a_row < 3 <= skipped < 9
    assert 2 ** (16 - skipped) < expected["loss_scale"]["value"] < 2**16
    for seed in range(9):
        state = sit("disturbed", seed, 1)
        assert state.step == seed + 1
    assert snapshot(state) == expected


@pytest.mark.parametrize("stop_after", [0, 1, 5])
def test_stopping_saves_a_checkpoint(tmp_path: Path, stop_after: int) -> None:
    notes = Notes(after=stop_after)
    with pytest.raises(Interrupted):
        run(tmp_path, start(), notes)
    newest = checkpoints(tmp_path)[-1]
    assert newest.name == f"step-{stop_after:08d}"
    assert read_state(newest) | {"sha256": {}} == {
        "version": 2,
        "step": stop_after,
        "seen": 4 * stop_after,
        "skipped": [0, 0],
        "sha256": {},
        "identity": "same",
        "note": 1,
    }
    # A request to stop leaves no time to measure.
    assert notes.saved == {0: [], 1: [], 5: [3]}[stop_after]


def test_checkpoints_are_made_when_due_and_the_newest_kept(tmp_path: Path) -> None:
    notes = run(tmp_path, start())
    assert notes.saved == [3, 6, 9]
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{n:08d}" for n in (6, 9)]
    assert [seen for seen, _ in notes.logged] == [12, 24, 36]
    assert set(notes.logged[0][1]) == {"loss", "mse", "skipped", "learning_rate"}


def test_reports_every_twenty_steps_and_at_the_end(tmp_path: Path) -> None:
    notes = run(tmp_path, start(), budget=4 * 45, checkpoint_every=1000)
    assert [seen for seen, _ in notes.logged] == [80, 160, 180]
    assert notes.saved == [45]


def test_a_finished_training_does_nothing(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    state = start(1)
    resume(tmp_path / "uninterrupted", state, "same", lambda text: None)
    notes = run(tmp_path / "uninterrupted", state)
    assert (notes.saved, notes.logged) == ([], [])
    assert snapshot(state) == uninterrupted


def test_average_follows_its_recursion(tmp_path: Path) -> None:
    """ema_k = d_k ema_{k-1} + (1 - d_k) w_k, d_k = min(0.8, (1 + k) / (10 + k)), in numpy; buffers copied."""
    state = start()
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())
    weights = [parameter.detach().numpy().astype(np.float64) for parameter in state.model.parameters()]
    for k in range(60):
        step(state, [(1.0, read_batch(4 * k, 4 * k + 4))], loss, SETTINGS, 0.0, World())
        decay = min(0.8, (1 + k) / (10 + k))
        new = [parameter.detach().numpy().astype(np.float64) for parameter in state.model.parameters()]
        weights = [decay * old + (1 - decay) * value for old, value in zip(weights, new, strict=True)]
    for average, expected in zip(state.ema.parameters(), weights, strict=True):
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert all(map(torch.equal, state.ema.buffers(), state.model.buffers()))


def test_average_of_a_constant_decay_in_closed_form() -> None:
    """Weights moved by 1 a step: ema = k - d (1 - d^k) / (1 - d) above the first, d = 0.1 from the start."""
    model = nn.Linear(1, 1, bias=False)
    state: State = new_state(model, torch.optim.SGD(model.parameters(), lr=1.0, fused=True), [0.1])
    first = model.weight.item()
    settings = dataclasses.replace(SETTINGS, schedule="constant", hooks=UNCLIPPED)
    for _ in range(7):
        step(state, [(1.0, None)], pull(torch.tensor([[-1.0]])), settings, 0.0, World())
    moved = 7 - 0.1 * (1 - 0.1**7) / 0.9
    assert model.weight.item() == pytest.approx(first + 7)
    assert next(state.ema.parameters()).item() == pytest.approx(first + moved, rel=1e-6)


def test_warm_up_of_the_average() -> None:
    assert [average_decay(0.999, k) for k in (0, 8, 90)] == [0.1, 0.5, 0.91]
    assert average_decay(0.999, 10**6) == 0.999
    assert average_decay(0.3, 8) == 0.3


def test_learning_rate_over_the_budget() -> None:
    progress = [0.0, 1 / 3, 0.5, 2 / 3, 1.0]
    cosine = [learning_rate_factor("cosine", value) for value in progress]
    assert cosine == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-12)
    assert [learning_rate_factor("constant", value) for value in progress] == [1] * 5


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rates_of_every_group_follow_the_schedule(tmp_path: Path, schedule: str) -> None:
    state = start()
    rates: list[list[float]] = []

    def noting(model: nn.Module, batch: Tensor, progress: float) -> Mapping[str, Tensor]:
        rates.append([group["lr"] for group in state.optimizer.param_groups])
        return loss(model, batch, progress)

    settings = dataclasses.replace(SETTINGS, schedule=schedule)
    fit(state, read_batch, noting, settings, tmp_path, {}, Notes().callbacks(), World())
    factors = [1.0] * 9 if schedule == "constant" else [math.cos(math.pi * k / 18) ** 2 for k in range(9)]
    np.testing.assert_allclose(rates, [[0.05 * factor, 0.2 * factor] for factor in factors], rtol=1e-12)


def test_learning_rate_rises_over_the_warm_up(tmp_path: Path) -> None:
    """By the samples seen, over what the schedule gives; 18 of them, in steps of four."""
    state, rates = start(), list[float]()

    def noting(model: nn.Module, batch: Tensor, progress: float) -> Mapping[str, Tensor]:
        rates.append(state.optimizer.param_groups[1]["lr"])
        return loss(model, batch, progress)

    settings = dataclasses.replace(SETTINGS, warmup=18)
    fit(state, read_batch, noting, settings, tmp_path, {}, Notes().callbacks(), World())
    risen = [4 / 18, 8 / 18, 12 / 18, 16 / 18, 1, 1, 1, 1, 1]
    cosine = [math.cos(math.pi * k / 18) ** 2 for k in range(9)]
    np.testing.assert_allclose(rates, 0.2 * np.multiply(risen, cosine), rtol=1e-12)


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_gradient_is_clipped_to_its_largest_norm(clip: float, norm: float) -> None:
    model = nn.Linear(2, 1, bias=False)
    state: State = new_state(model, torch.optim.SGD(model.parameters(), lr=1.0, fused=True), [0.1])
    before = model.weight.detach().clone()
    hooks = (ClipGradient(clip),) if clip else ()
    settings = dataclasses.replace(SETTINGS, hooks=hooks, schedule="constant")
    slope = torch.tensor([[3.0, 4.0]])
    step(state, [(1.0, None)], pull(slope), settings, 0.0, World())
    torch.testing.assert_close(before - model.weight, slope * norm / 5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_divide_every_global_batch(size: int) -> None:
    def parts(rank: int) -> list[tuple[int, int]]:
        return [
            batch
            for [(_, batch)] in prefetched(lambda first, stop: (first, stop), 8, SETTINGS, World(rank, size))
        ]

    of_ranks = [parts(rank) for rank in range(size)]
    for batch, pieces in enumerate(zip(*of_ranks, strict=True)):
        positions = [n for first, stop in pieces for n in range(first, stop)]
        assert positions == list(range(8 + 4 * batch, 12 + 4 * batch))
    assert [len(pieces) for pieces in of_ranks] == [7] * size


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 4 for 3 processes"):
        list(prefetched(read_batch, 0, SETTINGS, World(0, 3)))


def test_an_error_while_reading_ends_the_training(tmp_path: Path) -> None:
    def failing(first: int, stop: int) -> Tensor:
        if first >= 8:
            raise InputError("a shard is damaged")
        return read_batch(first, stop)

    state = start()
    with pytest.raises(InputError, match="a shard is damaged"):
        run(tmp_path, state, read=failing)
    assert state.step <= 2


def spoilt(*batches: int) -> Callable[[int, int], Tensor]:
    """Samples that are not finite in the batches of these numbers."""
    return lambda first, stop: read_batch(first, stop) * (math.nan if first // 4 in batches else 1)


def test_a_step_whose_loss_is_not_finite_changes_neither_weights_nor_optimiser() -> None:
    state = start()
    state.model[1].eval()  # else the samples themselves spoil the buffers
    read = spoilt(2)
    for k in range(3):
        before = snapshot(state)
        step(state, [(1.0, read(4 * k, 4 * k + 4))], loss, SETTINGS, 0.0, World())
    after = snapshot(state)
    assert (after["model"], after["slots"]) == (before["model"], before["slots"])
    assert (state.step, state.seen, state.skipped.tolist()) == (3, 12, [1, 1])
    step(state, [(1.0, read(12, 16))], loss, SETTINGS, 0.0, World())
    assert snapshot(state)["model"] != before["model"]
    assert state.skipped.tolist() == [1, 0]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite(value: float) -> None:
    state = start()
    before = snapshot(state)["model"]

    def spoiling(model: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
        first = next(model.parameters())
        first.register_hook(lambda gradient: gradient * value)
        return {"loss": first.sum()}

    step(state, [(1.0, read_batch(0, 4))], spoiling, SETTINGS, 0.0, World())
    assert snapshot(state)["model"] == before
    assert state.skipped.tolist() == [1, 1]


def start_plain() -> State:
    """Without buffers, which samples that are not finite would spoil."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return new_state(model, torch.optim.AdamW(model.parameters(), lr=0.05, fused=True), [0.8])


def test_skipped_steps_are_counted_over_interruptions(tmp_path: Path) -> None:
    notes = Notes(after=4)
    with pytest.raises(Interrupted):
        run(tmp_path, start_plain(), notes, spoilt(1, 3, 4), max_skipped=3)
    assert read_state(checkpoints(tmp_path)[-1])["skipped"] == [2, 1]
    state = start_plain()
    resume(tmp_path, state, "same", print)
    notes = run(tmp_path, state, None, spoilt(1, 3, 4), max_skipped=3)
    assert [values["skipped"] for _, values in notes.logged] == [3, 3]
    assert state.skipped.tolist() == [3, 0]


def test_too_many_skipped_steps_in_a_row_end_the_training_naming_a_checkpoint(tmp_path: Path) -> None:
    message = f"not finite in the last 5 steps, up to 36 samples; .* is {tmp_path / 'step-00000006'}$"
    with pytest.raises(HkdpipeError, match=message) as raised:
        run(tmp_path, start_plain(), read=spoilt(*range(4, 9)), max_skipped=5)
    assert type(raised.value) is HkdpipeError
    state = start_plain()
    resume(tmp_path, state, "same", print)
    assert all(value.isfinite().all() for value in state.model.state_dict().values())


def test_skipped_steps_that_are_too_many_are_not_forgotten_before_they_are_looked_at(tmp_path: Path) -> None:
    """Which is done at every checkpoint, here each third step, and every twenty."""
    with pytest.raises(HkdpipeError, match=r"not finite in the last \d steps, up to 12 samples"):
        run(tmp_path, start_plain(), read=spoilt(0, 1), max_skipped=2)
    run(tmp_path / "other", start_plain(), read=spoilt(0, 1), max_skipped=3)


def test_stopping_makes_no_checkpoint_of_steps_that_end_the_training(tmp_path: Path) -> None:
    """A training that goes on from it would end at once, whatever its steps are like."""
    with pytest.raises(HkdpipeError, match=r"not finite in the last 2 steps, up to 8 samples") as raised:
        run(tmp_path, start_plain(), Notes(after=2), spoilt(0, 1), max_skipped=2)
    assert type(raised.value) is HkdpipeError
    assert [read_state(path)["skipped"] for path in checkpoints(tmp_path)] == [[0, 0]]


def test_moments_lie_in_memory_as_their_weights_do(tmp_path: Path) -> None:
    """Whatever order their dimensions had there when they were saved: a fused step would mix them up."""

    def begin(layout: torch.memory_format) -> State:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        return new_state(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), [0.9])

    def proceed(state: State) -> Tensor:
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(state.step))
        step(state, [(1.0, x)], lambda net, x, _: {"loss": net(x).square().sum()}, SETTINGS, 0.0, World())
        return cast(Tensor, state.model.weight).detach().contiguous()

    layouts = [torch.contiguous_format, torch.channels_last]
    for before, after in itertools.product(layouts, layouts):
        state = begin(before)
        for _ in range(3):
            proceed(state)
        path = save_checkpoint(tmp_path / f"{before}-{after}", copied(state), {}, 1)
        resumed = begin(after)
        restore(path, resumed, read_state(path))
        torch.testing.assert_close(proceed(resumed), proceed(state), rtol=1e-5, atol=1e-6)


def test_what_the_compiler_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where its cache is, in which a killed process may leave a file that is always in the way."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))

    def broken(model: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
        raise InductorError(ImportError("main.so: file too short"), None)

    settings = dataclasses.replace(SETTINGS, compile=True)
    message = rf"^torch.compile failed \(.*main.so: file too short.*\); .* {tmp_path / 'cache'}: delete .*"
    with pytest.raises(HkdpipeError, match=message):
        fit(start(), read_batch, broken, settings, tmp_path / "one", {}, Callbacks(lambda: False), World())


def test_checkpoints_by_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is 20 seconds after the one before."""
    ticks = itertools.count(0.0, 20.0)
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    notes = run(tmp_path, start(), checkpoint_every=1000, checkpoint_minutes=1.0)
    assert notes.saved == [2, 5, 8, 9]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    run(tmp_path, start(), Notes(scores={0: 0.1, 3: 0.2, 6: 0.5, 9: 0.3}), keep_checkpoints=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000009"]
    assert best_checkpoint(checkpoints(tmp_path)) == tmp_path / "step-00000003"
    assert read_state(tmp_path / "step-00000003")["score"] == 0.2


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_checkpoint_of_a_diverging_training_has_no_score(tmp_path: Path, score: float) -> None:
    run(tmp_path, start(), Notes(scores={3: 0.2, 6: score, 9: score}))
    scored = [read_state(path).get("score") for path in checkpoints(tmp_path)]
    assert scored == [0.2, None, None]


def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the one before. It is written while the training goes on."""

    def full(folder: Path, taken: Snapshot, *rest: Any) -> Path:
        if taken.step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_checkpoint(folder, taken, *rest)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, start())
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000000"]


def test_what_is_written_is_the_state_when_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    """The writer is held until the training has taken every step after it."""
    trained = threading.Event()

    def slow(folder: Path, taken: Snapshot, *rest: Any) -> Path:
        if taken.step == 6:
            assert trained.wait(60)
        return save_checkpoint(folder, taken, *rest)

    def noting(model: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
        if progress == 8 / 9:
            trained.set()
        return loss(model, batch, progress)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    state = start()
    fit(state, read_batch, noting, SETTINGS, tmp_path, {"identity": "same"}, Notes().callbacks(), World())
    shutil.rmtree(tmp_path / "step-00000009")
    state = start(1)
    resume(tmp_path, state, "same", print)
    assert state.step == 6
    run(tmp_path, state)
    assert snapshot(state) == uninterrupted


def test_micro_batches_are_the_same_batch(tmp_path: Path) -> None:
    """The same samples, and to rounding the same loss and weights, though the last piece is smaller."""
    found, read = {}, dict[int, list[tuple[int, int]]]()
    for size in (0, 3, 4, 1):
        state, read[size] = start_plain(), []

        def noting(first: int, stop: int, noted: list[tuple[int, int]] = read[size]) -> Tensor:
            noted.append((first, stop))
            return read_batch(first, stop)

        notes = run(tmp_path / str(size), state, read=noting, micro_batch=size)
        found[size] = [
            *state.model.parameters(),
            torch.tensor([values["loss"] for _, values in notes.logged]),
        ]
    assert read[3][:4] == [(0, 3), (3, 4), (4, 7), (7, 8)]
    assert read[4] == read[0]
    for size in (3, 4, 1):
        assert [n for part in read[size] for n in range(*part)] == list(range(36))
        for value, expected in zip(found[size], found[0], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_progress_after_the_budget_has_grown_is_the_share_of_the_new_one(tmp_path: Path) -> None:
    """And lambda 1 with it: it jumps back, and ends where it would have."""
    progress: list[float] = []

    def noting(model: nn.Module, batch: Tensor, share: float) -> Mapping[str, Tensor]:
        progress.append(share)
        return loss(model, batch, share)

    for budget in (12, 24):
        state = start_plain()
        resume(tmp_path, state, "same", print)
        settings = dataclasses.replace(SETTINGS, budget=budget)
        fit(state, read_batch, noting, settings, tmp_path, {"identity": "same"}, Notes().callbacks(), World())
    assert progress == [0, 4 / 12, 8 / 12, 12 / 24, 16 / 24, 20 / 24]
    assert [mse_decay(share, 3.0) for share in (8 / 12, 12 / 24)] == pytest.approx([0.01, 10**-1.5])


def test_several_averages_are_each_as_if_alone(tmp_path: Path) -> None:
    """Also over an interruption; each is in a file of its own, the first in that of the main one."""
    alone = {}
    for decay in (0.8, 0.3):
        state = start(ema=[decay])
        run(tmp_path / str(decay), state)
        alone[decay] = state.ema.state_dict()
    with pytest.raises(Interrupted):
        run(tmp_path / "both", start(ema=[0.8, 0.3]), Notes(after=5))
    state = start(1, ema=[0.8, 0.3])
    resume(tmp_path / "both", state, "same", print)
    run(tmp_path / "both", state)
    newest = checkpoints(tmp_path / "both")[-1]
    for decay, name in ((0.8, "ema.safetensors"), (0.3, "ema-0.3.safetensors")):
        for saved in (state.averages[decay].state_dict(), load_file(newest / name)):
            assert all(torch.equal(saved[key], value) for key, value in alone[decay].items())
    flip(newest / "ema-0.3.safetensors")
    with pytest.raises(InputError, match=r"ema-0\.3\.safetensors: damaged"):
        read_state(newest)


def test_loss_scale_follows_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over finite and other steps at random, with interruptions; and it never leaves float32's range."""
    monkeypatch.setattr(loss_scale, "GROW_AFTER", 3)
    ours, weight = LossScale(CPU), nn.Parameter(torch.zeros(1))
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for k, spoilt in enumerate(torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.15):
        theirs.scale(weight.sum() * (math.inf if spoilt else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(spoilt)
        if k % 50 == 0:
            numbers, ours = ours.numbers(), LossScale(CPU)
            ours.restore(json.loads(json.dumps(numbers)))
        assert ours.numbers()["value"] == theirs.get_scale()
    assert theirs.get_scale() != 2**16
    for _ in range(1000):
        ours.update(torch.tensor(False))
    assert ours.numbers()["value"] == 2**127


@pytest.mark.parametrize(("learns_from", "latent_weight"), [("all", 0.0), ("latent", 0.1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_of_the_networks_alone(
    student: HKD, relative: Relative, dtype: torch.dtype, learns_from: str, latent_weight: float
) -> None:
    """One step of HKD: its terms and gradients stay in float32, within some roundings of those computed so.

    Measured over six seeds, in eps: the terms below 0.4; the gradients 3 to 7, as they pass through all of
    the networks, but 0.4 to 0.7 where operators learn from the latents, after the encoder alone.
    """
    student.options = HkdOptions(
        HkdSettings(latent_weight=latent_weight), KoopmanSettings(learns_from=learns_from)
    )
    training = TrainingSettings(perceptual="none")
    sigmas = torch.tensor([[80.0, 40.0, 5.0, 1.0, 0.1, 0.002], [0.002] * 6]).T
    states = torch.randn(6, 2, 1, 8, 8) * sigmas[:, :, None, None, None]
    batch = Batch(states, (sigmas < 80).long(), sigmas, torch.randn(6, 1, 8, 8))
    if not latent_weight:
        batch = batch.with_states(slice(-1))
    seen: list[torch.dtype] = []
    terms: dict[torch.dtype | None, Mapping[str, Tensor]] = {}
    gradients: dict[torch.dtype | None, list[Tensor]] = {}
    for autocast in (None, dtype):
        model = copy.deepcopy(student).requires_grad_(True)
        convolution = next(module for module in model.modules() if isinstance(module, Conv2d))
        convolution.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        state = new_state(model, optimizer, [0.5], scaled=autocast == torch.float16)
        if state.loss_scale is not None:
            state.loss_scale.value.fill_(256.0)  # the first one is too large for these gradients
        settings = dataclasses.replace(SETTINGS, autocast=autocast, hooks=UNCLIPPED, schedule="constant")

        def loss(model: nn.Module, batch: Batch, progress: float) -> Mapping[str, Tensor]:
            return cast(HKD, model).loss(model, batch, Lesson(training, progress=progress))

        terms[autocast] = step(state, [(1.0, batch)], loss, settings, 0.0, World())
        assert state.skipped.tolist() == [0, 0]
        for values in (terms[autocast].values(), model.parameters()):
            assert {value.dtype for value in values} == {torch.float32}
        networks, operators = list[Tensor](), list[Tensor]()
        for name, parameter in model.named_parameters():
            part = operators if name.startswith("koopman.") else networks
            part.append((student.get_parameter(name) - parameter).flatten())
        gradients[autocast] = [torch.cat(networks), torch.cat(operators)]
    assert list(dict.fromkeys(seen)) == [torch.float32, dtype]
    eps = torch.finfo(dtype).eps
    for name, value in terms[dtype].items():
        assert value.item() == pytest.approx(terms[None][name].item(), rel=eps)
    bounds = [8 * eps, eps if latent_weight else 8 * eps]
    for found, expected, bound in zip(gradients[dtype], gradients[None], bounds, strict=True):
        assert 0 < relative(found, expected) < bound


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garble(path: Path) -> None:
    path.write_text("[1, 2]")


DAMAGES = [
    *(
        (name, damage)
        for name in ("weights.safetensors", "ema.safetensors", "optimizer.pt")
        for damage in (truncate, flip, Path.unlink)
    ),
    ("state.json", truncate),
    ("state.json", garble),
    ("state.json", Path.unlink),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_newest_checkpoint_is_passed_over(
    tmp_path: Path, uninterrupted: dict[str, Any], name: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "uninterrupted"
    damage(folder / "step-00000009" / name)
    state, warnings = start(1), list[str]()
    resume(folder, state, "same", warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"checkpoint passed over: {folder / 'step-00000009' / name}: ")
    assert state.step == 6
    run(folder, state)
    assert snapshot(state) == uninterrupted
    assert read_state(folder / "step-00000009")["seen"] == 36


def test_every_checkpoint_damaged(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    folder = tmp_path / "uninterrupted"
    for path in checkpoints(folder):
        flip(path / "ema.safetensors")
    warnings: list[str] = []
    with pytest.raises(InputError, match=f"{folder}: every checkpoint is damaged"):
        resume(folder, start(), "same", warnings.append)
    assert len(warnings) == 2


def test_no_checkpoint_is_a_start(tmp_path: Path) -> None:
    state = start()
    before = snapshot(state)
    assert resume(tmp_path / "nothing", state, "same", lambda text: None) is None
    assert snapshot(state) == before


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_number_of_checkpoints_kept(tmp_path: Path, keep: int) -> None:
    state = start()
    for number in (5, 90, 100, 1000):
        state.step = number
        assert save_checkpoint(tmp_path, copied(state), {}, keep).is_dir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        f"step-{number:08d}" for number in (5, 90, 100, 1000)[-keep:]
    ]


def test_a_damaged_later_checkpoint_does_not_displace_the_one_just_written(tmp_path: Path) -> None:
    """As after it was passed over: the training goes on from an earlier step."""
    state = start()
    for number in (10, 20):
        state.step = number
        save_checkpoint(tmp_path, copied(state), {}, 2)
    flip(tmp_path / "step-00000020/optimizer.pt")
    state.step = 12
    save_checkpoint(tmp_path, copied(state), {}, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000012"]


def test_a_folder_that_was_taken_over_gets_no_checkpoint(tmp_path: Path) -> None:
    def refuse() -> None:
        assert [path.name for path in tmp_path.glob(".*/state.json")] == ["state.json"], "not written yet"
        raise InUseError("taken over")

    with pytest.raises(InUseError):
        save_checkpoint(tmp_path, copied(start()), {}, 1, refuse)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["code", "other"])
def test_wrong_optimizer_state_with_right_checksums_is_refused(
    tmp_path: Path, hostile: tuple[object, Path], place: str
) -> None:
    """Code in the file is not run; the state of another optimiser is not taken."""
    code, proof = hostile
    path = save_checkpoint(tmp_path, copied(start()), {"identity": "same"}, 1)
    torch.save(
        {"state": code} if place == "code" else {"state": {}, "param_groups": []}, path / "optimizer.pt"
    )
    described = json.loads((path / "state.json").read_text())
    described["sha256"]["optimizer.pt"] = sha256_file(path / "optimizer.pt")
    (path / "state.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"optimizer\.pt: not the optimiser's state \(.+\)"):
        resume(tmp_path, start(), "same", lambda text: None)
    assert not proof.exists()
    if place == "code":
        torch.load(path / "optimizer.pt", weights_only=False)
        assert proof.exists(), "the file holds no code that a careless reader would run"


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, copied(start()), {"identity": "same"}, 1)
    other = nn.Linear(3, 4)
    with pytest.raises(InputError, match=r"weights\.safetensors: does not fit the network"):
        resume(
            tmp_path, new_state(other, torch.optim.SGD(other.parameters()), [0.8]), "same", lambda text: None
        )


def test_weight_decay_is_decoupled_and_spares_the_operators(student: HKD) -> None:
    """Without a gradient w_k = w_0 (1 - lr decay)^k: as an L2 term Adam would make it steps of lr."""
    student.requires_grad_(True)
    training = TrainingSettings(learning_rate=0.01, weight_decay=0.95)
    state = new_state(student, torch.optim.AdamW(student.parameter_groups(training), fused=True), [0.8])
    before = {name: value.detach().clone() for name, value in student.named_parameters()}

    def zero(model: nn.Module, batch: None, progress: float) -> dict[str, Tensor]:
        return {"loss": torch.stack([0 * value.sum() for value in model.parameters()]).sum()}

    settings = dataclasses.replace(SETTINGS, schedule="constant")
    for _ in range(20):
        step(state, [(1.0, None)], zero, settings, 0.0, World())
    for name, value in student.named_parameters():
        factor = 1.0 if name.startswith("koopman.") else (1 - 0.01 * 0.95) ** 20
        torch.testing.assert_close(value.detach(), before[name] * factor, rtol=1e-5, atol=0)


def test_fused_adam_matches_the_reference_and_its_formula() -> None:
    """Fused on a CPU, unfused, and Loshchilov and Hutter's algorithm 2 in numpy."""
    random = np.random.default_rng(0)
    gradients = random.normal(size=(25, 7)) * np.logspace(-6, 2, 7)
    begin = random.normal(size=7)
    found = {}
    for fused in (True, False):
        weight = nn.Parameter(torch.tensor(begin, dtype=torch.float32))
        optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1, fused=fused, foreach=False)
        for gradient in gradients:
            weight.grad = torch.tensor(gradient, dtype=torch.float32)
            optimizer.step()
        found[fused] = weight.detach().numpy()
    expected, first, second = begin.copy(), np.zeros(7), np.zeros(7)
    for k, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9**k) / (np.sqrt(second / (1 - 0.999**k)) + 1e-8)
        expected += -0.01 * 0.1 * expected - 0.01 * direction
    np.testing.assert_allclose(found[True], found[False], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found[True], expected, rtol=1e-5, atol=1e-6)


def test_choice_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", World()) == choose_device("cpu", World()) == CPU
    for name in ("tpu", "meta", "cuda:x"):
        with pytest.raises(UsageError, match=f"got '{name}'; accepted: auto, cpu, cuda, cuda:N"):
            choose_device(name, World())
    with pytest.raises(UsageError, match="cuda:2 is not there; this machine has 0 GPUs"):
        choose_device("cuda:2", World())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto", World(5, 8, 1)) == torch.device("cuda", 1)
    assert choose_device("cuda:3", World(5, 8, 1)) == torch.device("cuda", 3)


def test_a_checkpoint_of_another_training_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    run(tmp_path, start())
    with pytest.raises(UsageError, match="of a training with other settings"):
        resume(tmp_path, start(), "another", lambda text: None)
