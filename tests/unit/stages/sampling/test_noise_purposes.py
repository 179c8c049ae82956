"""The three uses of noise never meet: no student is scored on noise that it was trained on."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.ground.errors import HkdpipeError
from hkdpipe.manifests.ground.rng import choice, unit_noise
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.stages.evaluation.context import Context
from hkdpipe.stages.generation.generate import sample_shard
from hkdpipe.stages.sampling import sample as sampling
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.teachers.teacher import Teacher

Noise = NDArray[np.float64]
CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
SEED = 7


class Recorder:
    """A student that keeps the noise and the labels it is given."""

    image_shape = SHAPE

    def __init__(self, label_dim: int = 0) -> None:
        self.label_dim = label_dim
        self.given: list[Tensor] = []
        self.asked: list[Tensor | None] = []

    def check_steps(self, steps: int) -> None:
        """Any number is one that it makes."""

    def folded(self, steps: int) -> "Recorder":
        return self

    def sample(self, noise: Tensor, labels: Tensor | None, steps: int = 1, draw: object = None) -> Tensor:
        self.given.append(noise)
        self.asked.append(labels)
        return noise


def denoiser(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    """Pixels depend on each other and on the class, so that mixing them up shows."""
    classes = 0 if labels is None else labels.argmax(dim=1)[:, None, None, None]
    return (x + x.flip(-1)) / (2 + sigma**2) + classes


def archive_noise(plan: Plan) -> Noise:
    """The noise that the start of every trajectory shows."""
    single = dataclasses.replace(plan, dtype="float32")
    pieces = [
        piece for k in range(plan.shards) for piece in sample_shard(cast(Teacher, denoiser), single, k, CPU)
    ]
    return np.asarray(np.concatenate(pieces)[:, 0] / plan.sigmas[0], dtype=np.float64)


def evaluation(plan: Plan) -> Context:
    return Context(
        teacher=cast(Teacher, None),
        student=cast(HKD, Recorder()),
        archive=cast(Any, SimpleNamespace(plan=plan)),
        validation=0,
        settings=EvaluationSettings(seed=SEED),
        out=Path(),
        device=CPU,
        reporter=Silent(),
        stop=lambda: False,
        check_owned=lambda: None,
    )


def evaluation_noise(plan: Plan, count: int) -> Noise:
    context = evaluation(plan)
    whole = context.noise(0, count)
    assert torch.equal(torch.cat([context.noise(0, 5), context.noise(5, count)]), whole)
    return whole.double().numpy()


def sampled(
    count: int, out: Path, monkeypatch: pytest.MonkeyPatch, label_dim: int = 0, **options: Any
) -> Recorder:
    """What a model in `out` is given, in batches of five."""
    recorder = Recorder(label_dim)
    monkeypatch.setattr(sampling, "load_model", lambda *arguments: recorder)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 5)
    work: dict[str, Any] = {"device": CPU, "reporter": Silent(), "stop": lambda: False}
    sampling.sample(out, out, count, SEED, **options, **work)
    return recorder


def sampling_noise(count: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> Noise:
    recorder = sampled(count, out, monkeypatch)
    assert [len(noise) for noise in recorder.given] == [5, 5, 2]
    assert recorder.asked == [None] * 3
    return torch.cat(recorder.given).double().numpy()


def test_archive_evaluation_and_sampling_draw_different_noise_from_one_seed(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {
        "archive": archive_noise(plan),
        "evaluation": evaluation_noise(plan, 12),
        "sampling": sampling_noise(12, tmp_path, monkeypatch),
    }
    for purpose, noise in drawn.items():
        expected = unit_noise(SEED, purpose, range(12), SHAPE)
        np.testing.assert_allclose(noise, expected, rtol=1e-6, err_msg=purpose)
    for one, other in itertools.combinations(drawn.values(), 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5
        assert (one != other).all()


def test_a_trajectory_depends_on_its_number_alone(plan: Plan) -> None:
    """Not on the shard it is in, nor on the trajectories that share its batch."""

    def trajectories(**changes: Any) -> NDArray[Any]:
        changed = dataclasses.replace(plan, **changes)
        shards = (sample_shard(cast(Teacher, denoiser), changed, k, CPU) for k in range(changed.shards))
        return np.concatenate([piece for shard in shards for piece in shard])

    expected = trajectories()
    assert expected.shape == (12, *plan.states_shape)
    assert expected.dtype == np.float16
    for changes in ({"count": 11}, {"shard_size": 3}, {"count": 20}):
        found = trajectories(**changes)
        common = min(len(found), 12)
        assert np.array_equal(found[:common], expected[:common])
    assert not np.array_equal(trajectories(seed=8), expected)
    assert np.array_equal(trajectories(classes=plan.classes[:1]), expected) == (not plan.classes)


@pytest.mark.parametrize("plan", [(3, 0, 1)], indirect=True)
def test_a_trajectory_has_the_label_of_its_number(plan: Plan) -> None:
    """A teacher that answers with the class alone: its trajectories end there."""

    def of_class(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return torch.zeros_like(x) + labels.argmax(dim=1)[:, None, None, None]

    shards = (sample_shard(cast(Teacher, of_class), plan, k, CPU) for k in range(plan.shards))
    ends = np.concatenate([piece[:, -1, 0, 0, 0] for shard in shards for piece in shard])
    labels = plan.labels(range(12))
    assert labels is not None
    assert np.round(ends).tolist() == labels.tolist()


@pytest.mark.parametrize("plan", [(3, 0, 1)], indirect=True)
def test_evaluation_and_sampling_draw_labels_that_are_not_those_of_the_archive(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = evaluation(plan)
    whole = context.classes(0, 40)
    assert whole is not None
    assert whole.tolist() == choice(SEED, "evaluation-labels", range(40), plan.classes).tolist()
    assert context.classes(30, 40).tolist() == whole[30:].tolist()  # type: ignore[union-attr]
    (tmp_path / "state.json").write_text('{"classes": [3, 0, 1]}')
    given = torch.cat([cast(Tensor, labels) for labels in sampled(40, tmp_path, monkeypatch, 4).asked])
    drawn = given.argmax(dim=1).tolist()
    assert drawn == choice(SEED, "sampling-labels", range(40), plan.classes).tolist()
    archived = plan.labels(range(40)).tolist()  # type: ignore[union-attr]
    assert len({tuple(labels) for labels in (drawn, whole.tolist(), archived)}) == 3
    with np.load(tmp_path / "samples.npz") as arrays:
        assert (arrays["labels"].dtype, arrays["labels"].tolist()) == (np.int64, drawn)


@pytest.mark.parametrize(
    ("text", "label_dim", "asked", "message"),
    [
        ("{}", 0, 3, "class_number: got 3; accepted: none, as the model knows no classes"),
        ("{}", 4, 4, "class_number: got 4; accepted: 0 to 3"),
        ("{}", 4, -1, "class_number: got -1; accepted: 0 to 3"),
        ('{"about": {"classes": [3, 1]}}', 4, 0, "class_number: got 0; accepted: 1, 3"),
        ('{"about": {"classes": [3, 4]}}', 4, None, "classes: got [3, 4]; accepted: numbers from 0 to 3"),
        ('{"about": {"classes": 3}}', 4, None, "classes: got 3; accepted: numbers from 0 to 3"),
    ],
)
def test_classes_that_a_model_does_not_know(
    text: str, label_dim: int, asked: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HkdpipeError) as raised:
        sampled(1, tmp_path, monkeypatch, label_dim, class_number=asked)
    assert str(raised.value).endswith(message)
