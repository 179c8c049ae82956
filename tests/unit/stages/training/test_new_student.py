import contextlib
import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from hkdpipe.manifests.archive.reader import Archive
from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.errors import InputError, Interrupted, UsageError
from hkdpipe.stages.generation.generate import generate
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.stages.training.train import new_student, started_from, train, training_identity
from hkdpipe.trainer.loop import checkpoint
from hkdpipe.trainer.loop.training_loop import fit, new_state
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, KoopmanSettings
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions, KdmSettings
from hkdpipe.trainer.settings.method_registry import NoOptions
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.student import Student, adam
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import Teacher, save_teacher

CPU = torch.device("cpu")
ARCHITECTURE = Architecture(4, 1, model_channels=8, channel_mult=(1,), num_blocks=1)
LEARNING_RATE, DECAY = 0.01, 0.3


def descended(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter]) -> list[Tensor]:
    """The weights after steps down the fourth powers of their sums."""
    for _ in range(15):
        optimizer.zero_grad()
        torch.stack([weight.sum() ** 4 for weight in weights]).sum().backward()
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize(
    ("form", "reference"), [("decoupled", torch.optim.AdamW), ("coupled", torch.optim.Adam)]
)
def test_weight_decay_of_either_form_is_torchs(form: str, reference: Any) -> None:
    """Each weight on its own, one with decay and one without, by torch's unfused optimiser."""
    begin, decays = [torch.randn(4), torch.randn(4)], [DECAY, 0.0]
    training = TrainingSettings(weight_decay_form=form)
    weights = [nn.Parameter(value.clone()) for value in begin]
    groups: list[dict[str, Any]] = [
        {"params": [weight], "lr": LEARNING_RATE, "weight_decay": decay}
        for weight, decay in zip(weights, decays, strict=True)
    ]
    found = descended(adam(groups, training), weights)
    for value, decay, result in zip(begin, decays, found, strict=True):
        alone = [nn.Parameter(value.clone())]
        optimizer = reference(alone, lr=LEARNING_RATE, weight_decay=decay, fused=False, foreach=False)
        torch.testing.assert_close(result, descended(optimizer, alone)[0], rtol=1e-5, atol=1e-7)


def test_forms_of_weight_decay_differ() -> None:
    """Without a slope weights shrink by a share (decoupled), or by the learning rate (coupled)."""
    moved = {}
    for form in ("decoupled", "coupled"):
        weight = nn.Parameter(torch.tensor([4.0]))
        groups = [{"params": [weight], "lr": LEARNING_RATE, "weight_decay": DECAY}]
        optimizer = adam(groups, TrainingSettings(weight_decay_form=form))
        weight.grad = torch.zeros(1)
        optimizer.step()
        moved[form] = 4 - weight.item()
    assert moved["decoupled"] == pytest.approx(LEARNING_RATE * DECAY * 4, rel=1e-4)
    assert moved["coupled"] == pytest.approx(LEARNING_RATE, rel=1e-4)


def test_weights_that_are_not_the_teachers_are_a_function_of_the_seed() -> None:
    """Whatever the global generator did, which goes on as if nothing had been drawn."""
    teacher = Teacher(PreconditionedUNet(ARCHITECTURE), "a teacher")
    schedule = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    archive = cast(Archive, SimpleNamespace(plan=SimpleNamespace(schedule=schedule)))
    options = KdmOptions(KdmSettings(width=8, channel_mult=(1,), num_blocks=1, operator="factorised"))

    def weights(seed: int) -> dict[str, Tensor]:
        training = TrainingSettings(method="kdm", seed=seed)
        state = new_student(teacher, archive, training, options, CPU)
        return state.model.state_dict()

    before = torch.get_rng_state()
    one = weights(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = weights(3), weights(4)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    for name in ("noise_encoder.unet.enc.4x4_conv.weight", "map.left", "map.phase"):
        assert not torch.equal(one[name], other[name])


def test_a_student_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    """Its last ones; they are part of the training's identity, their place is not."""
    teacher = Teacher(PreconditionedUNet(ARCHITECTURE), "a teacher")
    schedule = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    plan = SimpleNamespace(schedule=schedule, identity_values=dict)
    archive = cast(Archive, SimpleNamespace(plan=plan))

    def begin(training: TrainingSettings) -> checkpoint.TrainingState[Student]:
        return new_student(teacher, archive, training, HkdOptions(), CPU)

    def save(name: str, model: Student) -> str:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        state = checkpoint.snapshot(new_state(model, optimizer, [0.9]))
        return str(checkpoint.save_checkpoint(tmp_path / name, state, {"model": model.config()}, 1))

    first = begin(TrainingSettings()).model
    for value in first.parameters():
        nn.init.normal_(value)
    first.save(tmp_path / "export", {})
    places = [save("here", first), save("there", first), str(tmp_path / "export")]
    for place in places:
        state = begin(TrainingSettings(init_from=place))
        for model in (state.model, state.ema):
            assert all(
                torch.equal(value, model.state_dict()[key]) for key, value in first.state_dict().items()
            )
    nn.init.normal_(next(first.parameters()))
    places.append(save("other", first))
    none = tmp_path / "none"
    training = [TrainingSettings(init_from=place, perceptual="none") for place in ["", *places]]
    started = [started_from(settings, none) for settings in training]
    identities = [
        training_identity(archive, settings, HkdOptions(), weights)
        for settings, weights in zip(training, started, strict=True)
    ]
    assert identities[1] == identities[2]
    assert identities[3] == identities[1]
    assert len(set(identities)) == 3
    changed = HkdOptions(koopman=KoopmanSettings(time="log"))
    with pytest.raises(UsageError, match=r"init_from: .* has another method, network or settings"):
        new_student(teacher, archive, TrainingSettings(init_from=places[0]), changed, CPU)
    with pytest.raises(InputError, match="nowhere: no such model"):
        begin(TrainingSettings(init_from=str(tmp_path / "nowhere")))


def test_what_a_training_began_with_is_not_needed_again(tmp_path: Path) -> None:
    """Its checkpoints say what it was; another model is refused by name."""
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)

    def save(folder: Path, model: nn.Module, step: int = 0, **about: Any) -> Path:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        taken = replace(checkpoint.snapshot(new_state(model, optimizer, [0.9])), step=step)
        return checkpoint.save_checkpoint(folder, taken, {**about, "model": {}}, 2)

    source, elsewhere = (save(tmp_path / name, net) for name, net in (("a", model), ("b", other)))
    training, moved = (TrainingSettings(init_from=str(place)) for place in (source, tmp_path / "gone"))
    folder = tmp_path / "checkpoints"
    started = started_from(training, folder)
    assert started == sha256_file(source / "weights.safetensors")
    with pytest.raises(InputError, match="gone: no such model"):
        started_from(moved, folder)
    # As a version before this one left it.
    save(folder, model)
    assert started_from(training, folder) == started
    save(folder, model, 1, init_from=started)
    for settings in (training, moved, TrainingSettings()):
        assert started_from(settings, folder) == started
    refused = r"init_from: .* is not what the training in .* has begun with; accepted: that one, or ''"
    with pytest.raises(UsageError, match=refused):
        started_from(TrainingSettings(init_from=str(elsewhere)), folder)
    save(folder, model, 2, init_from=None)
    assert started_from(TrainingSettings(), folder) is None
    with pytest.raises(UsageError, match=refused):
        started_from(training, folder)


@pytest.fixture
def sit(tmp_path: Path) -> Callable[..., Path]:
    """sit(folder, steps): train there for so many steps more; returns the newest checkpoint."""
    teacher, archive = tmp_path / "teacher", tmp_path / "archive"
    save_teacher(teacher, PreconditionedUNet(ARCHITECTURE), {}, torch.float32)
    generation = GenerationSettings(count=8, shard_size=8, batch_size=8, steps=3)
    generate(str(teacher), archive, generation, device=CPU, reporter=Silent(), stop=lambda: False)

    def run(name: str, steps: float = math.inf, **settings: Any) -> Path:
        asked = itertools.count()
        with contextlib.suppress(Interrupted):
            train(
                str(teacher),
                archive,
                tmp_path / name,
                TrainingSettings(budget=12, batch_size=4, validation=0, perceptual="none", **settings),
                HkdOptions(),
                device=CPU,
                world=World(),
                reporter=Silent(),
                stop=lambda: next(asked) >= steps,
            )
        return checkpoint.checkpoints(tmp_path / name / "checkpoints")[-1]

    return run


def test_a_training_starts_from_another_model_and_then_goes_on_without_it(
    sit: Callable[..., Path], tmp_path: Path
) -> None:
    """From its last weights, not from their average, as its checkpoints tell."""
    source = sit("source")
    begin = {"init_from": str(source)}
    undisturbed = checkpoint.read_state(sit("undisturbed", **begin))
    last, average = (sha256_file(source / name) for name in checkpoint.FILES[:2])
    assert last != average
    begun = checkpoint.read_state(sit("disturbed", 0, **begin))
    assert [begun["sha256"][name] for name in checkpoint.FILES[:2]] == [last, last]
    assert begun["init_from"] == undisturbed["init_from"] == last
    assert sit("disturbed", 1, **begin).name == "step-00000001"
    shutil.rmtree(tmp_path / "source")
    assert checkpoint.read_state(sit("disturbed", **begin)) == undisturbed


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
def test_gpus_round_to_tf32_where_a_training_says_so(
    precision: str, allowed: bool, sit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch by itself lets them in convolutions, and nowhere else."""
    seen: list[bool] = []

    def note(*given: Any) -> None:
        seen.extend(kind.allow_tf32 for kind in (torch.backends.cudnn, torch.backends.cuda.matmul))
        fit(*given)

    monkeypatch.setattr("hkdpipe.stages.training.train.fit", note)
    sit("training", 1, precision=precision)
    assert seen == [allowed, allowed]


def test_the_weights_of_lpips_count_and_not_their_place(tmp_path: Path) -> None:
    archive = cast(Archive, SimpleNamespace(plan=SimpleNamespace(identity_values=dict)))
    files = {"a": b"one", "b": b"one", "c": b"other"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    one, same, other = (
        training_identity(archive, TrainingSettings(perceptual_file=str(tmp_path / name)), NoOptions())
        for name in files
    )
    assert one == same != other
