import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edm_fixtures import FAMILIES
from scipy.stats import chisquare
from torch import Tensor, nn

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.trainer.loop.checkpoint import save_checkpoint, snapshot
from hkdpipe.trainer.loop.training_loop import new_state
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings, KoopmanSettings
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.sampler import sigma_schedule

Relative = Callable[[Tensor, Tensor], float]
Randomise = Callable[[nn.Module], None]
SIGMAS = sigma_schedule(18).numpy()


def states_at(sigma: float) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 1, 8, 8) * sigma, torch.full((3,), sigma)


def inner_output(network: PreconditionedUNet, x: Tensor, sigma: float) -> Tensor:
    """F of the teacher, scaled by sigma_data."""
    variance = torch.full((1, 1, 1, 1), sigma) ** 2 + 0.5**2
    labels = (torch.full((1,), sigma).log() / 4).expand(len(x))
    return network.model(x / variance.sqrt(), labels) * 0.5


@pytest.mark.parametrize("sigma", [0.002, 0.7, 80.0])
def test_idle_student_is_the_teachers_network_bit_for_bit(network: PreconditionedUNet, sigma: float) -> None:
    """With A = 0 and the decoder told the noise level that the encoder is told."""
    x, sigmas = states_at(sigma)
    idle = HkdOptions(koopman=KoopmanSettings(decoder_time="initial"))
    student = HKD.from_teacher(network, idle, sigma_min=0.001, sigma_max=sigma)
    assert torch.equal(student(x, sigmas), inner_output(network, x, sigma))


@pytest.mark.parametrize("arch", FAMILIES.values(), ids=FAMILIES)
def test_idle_student_of_every_family(arch: Architecture, randomise: Randomise) -> None:
    """Conditional ones, too; it takes the teacher's dropout and knowledge of augmentations for none."""
    teacher = PreconditionedUNet(dataclasses.replace(arch, dropout=0.5)).requires_grad_(False).eval()
    randomise(teacher)
    student = HKD.from_teacher(teacher, HkdOptions(), sigma_min=0.001, sigma_max=0.7)
    assert (student.arch.dropout, student.arch.augment_dim) == (0, 0)
    x, labels, sigmas = torch.randn(3, 3, 16, 16), torch.eye(4)[:3], torch.full((3,), 0.7)
    expected = teacher.model(x / (sigmas[:1] ** 2 + 0.25).sqrt(), sigmas.log() / 4, labels) * 0.5
    assert torch.equal(student.train()(x, sigmas, labels), expected)
    assert not torch.equal(student(x, sigmas, labels.flip(0)), expected)


@pytest.mark.parametrize("preconditioning", ["vp", "ve", "iddpm"])
def test_older_preconditionings_are_refused(preconditioning: str) -> None:
    arch = dataclasses.replace(FAMILIES["ddpmpp"], preconditioning=preconditioning)
    message = f"teacher: its preconditioning is '{preconditioning}'; accepted for hkd: 'edm'"
    with pytest.raises(UsageError, match=message):
        HKD.from_teacher(PreconditionedUNet(arch), HkdOptions())


@pytest.mark.parametrize(("decoder_time", "sigma"), [("initial", 80.0), ("final", 0.002)])
def test_decoder_is_told_one_constant_noise_level(
    network: PreconditionedUNet, decoder_time: str, sigma: float, relative: Relative
) -> None:
    """Whatever level the encoder is told."""
    student = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(decoder_time=decoder_time)))
    unet = network.model
    x, sigmas = states_at(3.0)
    skips = unet.encode(x / (9 + 0.25) ** 0.5, unet.embed(sigmas.log() / 4))
    expected = unet.decode(skips, unet.embed(torch.full((3,), sigma).log() / 4)) / 2
    assert relative(student(x, sigmas), expected) < 1e-5


def test_encoder_told_no_time_sees_the_scaled_state_alone(network: PreconditionedUNet) -> None:
    student = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(encoder_time="none")))
    scaled = torch.randn(3, 1, 8, 8)
    one, other = (
        student.encode(scaled * (sigma**2 + 0.25) ** 0.5, torch.full((3,), sigma)) for sigma in (0.1, 40.0)
    )
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_untrained_student_is_the_denoiser_at_sigma_max_less_the_skip(
    network: PreconditionedUNet, relative: Relative
) -> None:
    """D - c_skip x = c_out F, and c_out is sigma_data but for a factor of sigma / sqrt(sigma^2 + 0.25)."""
    student = HKD.from_teacher(network, HkdOptions())
    x, sigmas = states_at(80.0)
    residual = network(x, 80.0) - 0.25 / (80**2 + 0.25) * x
    factor = 80 / (80**2 + 0.25) ** 0.5
    assert relative(student(x, sigmas) * factor, residual) < 1e-5
    assert relative(student(x, sigmas), residual) < 1e-4


def test_sampling_is_the_prediction_from_scaled_noise(student: HKD) -> None:
    noise = torch.randn(3, 1, 8, 8)
    assert torch.equal(student.sample(noise), student.predict(noise * 80, torch.full((3,), 80.0)))


@pytest.mark.parametrize("time", ["karras", "log", "sigma-unit"])
def test_semigroup_law_between_noise_levels(student: HKD, time: str, relative: Relative) -> None:
    student.options = HkdOptions(koopman=dataclasses.replace(student.options.koopman, time=time))
    x, sigmas = states_at(80.0)
    z = student.encode(x, sigmas)
    levels = [torch.full((1,), level) for level in (80.0, 3.0, 0.002)]
    direct = student.evolve(z, levels[0], levels[2])
    stepwise = student.evolve(student.evolve(z, levels[0], levels[1]), levels[1], levels[2])
    back = student.evolve(direct, levels[2], levels[0])
    for there, through, returned, start in zip(direct, stepwise, back, z, strict=True):
        assert relative(through, there) < 1e-6
        assert relative(returned, start) < 1e-6
        assert relative(there, start) > 1e-3


def test_prediction_encodes_evolves_to_sigma_min_and_decodes(student: HKD) -> None:
    x, sigmas = states_at(5.0)
    evolved = student.evolve(student.encode(x, sigmas), sigmas, torch.tensor([0.002]))
    assert torch.equal(student.predict(x, sigmas), student.decode(evolved))


@pytest.mark.parametrize(
    ("hierarchy", "evolved"), [("full", [0, 1, 2, 3]), ("bottleneck", [3]), ("none", [])]
)
def test_hierarchy_chooses_the_tensors_that_evolve(
    network: PreconditionedUNet, randomise: Randomise, hierarchy: str, evolved: list[int]
) -> None:
    student = HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(hierarchy=hierarchy)))
    assert sorted(map(int, student.koopman)) == evolved
    randomise(student.koopman)
    x, sigmas = states_at(80.0)
    z = student.encode(x, sigmas)
    moved = student.evolve(z, sigmas, torch.tensor([0.002]))
    changed = [
        index for index, (one, other) in enumerate(zip(z, moved, strict=True)) if not torch.equal(one, other)
    ]
    assert changed == evolved


def test_every_tensor_has_an_operator_of_its_shape(student: HKD) -> None:
    shapes = {name: tuple(value.shape) for name, value in student.koopman.named_parameters()}
    expected = {"0": (8, 8, 8), "1": (8, 8, 8), "2": (8, 4, 4), "3": (16, 4, 4)}
    assert shapes == {
        f"{index}.{part}": shape for index, shape in expected.items() for part in ("alpha", "beta")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_are_classes_or_one_hot(arch: Architecture, randomise: Randomise, dtype: torch.dtype) -> None:
    """And reach encoder and decoder: a student told another class in either answers otherwise."""
    network = PreconditionedUNet(dataclasses.replace(arch, label_dim=4))
    randomise(network)
    student = HKD.from_teacher(network, HkdOptions()).to(dtype)
    noise, classes = torch.randn(3, 1, 8, 8, dtype=dtype), torch.tensor([2, 0, 3])
    one_hot = torch.eye(4)[classes]
    images = student.sample(noise, one_hot)
    assert torch.equal(student.sample(noise, classes), images)
    other, sigmas = torch.tensor([2, 1, 3]), torch.full((3,), 80.0, dtype=dtype)
    z = student.encode(noise * 80, sigmas, classes)
    for told in (
        student.decode(z, other),
        student.decode(student.encode(noise * 80, sigmas, other), classes),
    ):
        same = [torch.equal(*pair) for pair in zip(told, images, strict=True)]
        assert same == [True, False, True]


def test_training_one_student_leaves_the_teacher_alone(network: PreconditionedUNet) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    student = HKD.from_teacher(network, HkdOptions())
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("hierarchy", ["full", "bottleneck", "none"])
def test_parameter_groups_cover_every_parameter_once(network: PreconditionedUNet, hierarchy: str) -> None:
    student = HKD.from_teacher(
        network, HkdOptions(koopman=KoopmanSettings(hierarchy=hierarchy, learning_rate_factor=10.0))
    )
    groups = student.parameter_groups(TrainingSettings(learning_rate=0.01, weight_decay=0.3))
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in student.parameters())
    operators = {id(parameter) for parameter in student.koopman.parameters()}
    for group in groups:
        of_operators = {id(parameter) in operators for parameter in group["params"]}
        expected = {True: (0.1, 0.0), False: (0.01, 0.3)}
        assert (group["lr"], group["weight_decay"]) == expected[of_operators.pop()]
        assert not of_operators


def draw(count: int, sigmas: Any = SIGMAS, start: int = 0, seed: int = 0, **hkd: Any) -> Any:
    """Without that of the last state, to whose observables the others shall lead."""
    arch = Architecture(4, 1, model_channels=4, channel_mult=(1,), num_blocks=1)
    student = HKD(arch, HkdOptions(HkdSettings(latent_weight=0.0, **hkd)), 0.002, 80.0, 7.0)
    return student.draw_states(seed, np.arange(start, start + count), sigmas)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_the_endpoint(share: float) -> None:
    """Within five standard deviations of a binomial share; exact where it is certain."""
    count = 4000
    drawn = draw(count, endpoint_share=share)
    assert drawn.shape == (count, 1)
    tolerance = 5 * (share * (1 - share) / count) ** 0.5
    assert abs((drawn == 0).mean() - share) <= tolerance


def cell_probabilities() -> Any:
    """Of states 1 .. 17: a uniform sigma falls nearest to each, the levels' midpoints being the borders."""
    between = SIGMAS[1:-1]
    borders = np.concatenate([[SIGMAS[0]], (between[:-1] + between[1:]) / 2, [SIGMAS[-2]]])
    return -np.diff(borders) / (SIGMAS[0] - SIGMAS[-2])


SAMPLINGS = pytest.mark.parametrize(
    ("sampling", "probabilities"), [("grid", np.full(17, 1 / 17)), ("uniform", cell_probabilities())]
)


@SAMPLINGS
def test_share_of_every_state_is_exact_for_evenly_spread_draws(
    sampling: str, probabilities: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 50_000
    even = (np.arange(count)[:, None] + [[0.5, 0.5]]) / count
    monkeypatch.setattr(rng, "uniform", lambda seed, purpose, positions, columns: even)
    drawn = draw(count, time_sampling=sampling, endpoint_share=0.0)
    assert drawn.min() >= 1
    assert np.abs(np.bincount(drawn.ravel())[1:] - count * probabilities).max() < 1.01


@SAMPLINGS
@pytest.mark.parametrize(("times", "draws"), [(1, 12_000), (3, 3_000)])
def test_frequencies_of_the_states_drawn(sampling: str, probabilities: Any, times: int, draws: int) -> None:
    drawn = draw(draws, time_sampling=sampling, times=times, endpoint_share=0.5)
    between = drawn[drawn > 0]
    counts, expected = np.bincount(between, minlength=18)[1:], probabilities * len(between)
    assert len(counts) == 17, "the end itself is never drawn"
    rare = expected < 5  # too rare one by one for the test
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert chisquare(counts, expected).pvalue > 0.01


def test_where_only_the_ends_are_stored_the_start_is_drawn() -> None:
    assert (draw(20, SIGMAS[[0, -1]], endpoint_share=0.0) == np.zeros((20, 1))).all()


def test_with_several_times_the_start_comes_first() -> None:
    drawn = draw(500, times=5, endpoint_share=0.0)
    assert drawn.shape == (500, 5)
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1:] > 0).all()
    assert len(np.unique(drawn[:, 1:], axis=0)) > 100, "the times are not drawn apart"


def test_shortest_trajectory_has_one_state_in_between() -> None:
    assert set(draw(200, sigma_schedule(2).numpy()).ravel().tolist()) == {0, 1}


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("sampling", ["grid", "uniform"])
def test_states_drawn_depend_on_the_position_alone(times: int, sampling: str) -> None:
    settings: dict[str, Any] = {"times": times, "time_sampling": sampling, "seed": 3}
    whole = draw(60, **settings)
    parts = [draw(count, start=start, **settings) for start, count in ((0, 7), (7, 30), (37, 23))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(draw(60, **{**settings, "seed": 4}), whole)
    assert not np.array_equal(draw(60, start=60, **settings), whole)


def assert_same(one: HKD, other: HKD) -> None:
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in one.state_dict().items())
    assert one.config() == other.config()
    noise = torch.randn(2, 1, 8, 8)
    assert torch.equal(one.sample(noise), other.sample(noise))


def test_export_is_read_back_bit_for_bit(tmp_path: Path, student: HKD) -> None:
    student.sigma_min, student.sigma_max, student.rho = 0.01, 50.0, 5.0
    student.save(tmp_path / "export", {"note": "a test"})
    read = load_model(tmp_path / "export")
    assert_same(read, student)
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert json.loads((tmp_path / "export/config.json").read_text())["about"] == {"note": "a test"}


@pytest.mark.parametrize("weights", ["ema", "ema-0.5", "raw"])
def test_checkpoint_is_read_back(tmp_path: Path, student: HKD, randomise: Randomise, weights: str) -> None:
    state = new_state(student, torch.optim.SGD(student.parameters(), lr=0.1), [0.9, 0.5])
    for average in state.averages.values():
        randomise(average)
    path = save_checkpoint(tmp_path, snapshot(state), {"model": student.config()}, keep=1)
    expected = {"ema": state.averages[0.9], "ema-0.5": state.averages[0.5], "raw": student}
    assert_same(load_model(path, weights=weights), expected[weights])
    with pytest.raises(UsageError, match=r"weights: got 'ema-0\.7'; .* has ema, ema-0\.5, raw$"):
        load_model(path, weights="ema-0.7")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: [],
        lambda config: None,
        lambda config: {},
        lambda config: config | {"format": "other"},
        lambda config: config | {"method": "other"},
        lambda config: config | {"architecture": None},
        lambda config: config | {"architecture": {"img_channels": 1}},
        lambda config: config | {"architecture": config["architecture"] | {"unknown": 1}},
        lambda config: config | {"architecture": config["architecture"] | {"model_channels": "16"}},
        lambda config: config | {"architecture": config["architecture"] | {"model_channels": 3}},
        lambda config: config | {"koopman": {"time": "sundial"}},
        lambda config: config | {"koopman": 3},
        lambda config: config | {"schedule": {"sigma_min": 1.0}},
        lambda config: {key: value for key, value in config.items() if key != "schedule"},
    ],
)
@pytest.mark.parametrize("place", ["config.json", "state.json"])
def test_wrong_configuration_names_its_file(
    tmp_path: Path, student: HKD, change: Callable[[Any], Any], place: str
) -> None:
    changed = change(student.config())
    if place == "config.json":
        folder = tmp_path / "export"
        student.save(folder, {})
        (folder / place).write_text(json.dumps(changed))
    else:
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        taken = snapshot(new_state(student, optimizer, [0.9]))
        folder = save_checkpoint(tmp_path, taken, {"model": changed}, keep=1)
    with pytest.raises(InputError) as raised:
        load_model(folder)
    assert str(raised.value).startswith(f"{folder / place}: not the configuration of a model")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no such model"):
        load_model(tmp_path)


def test_export_with_other_weights(tmp_path: Path, network: PreconditionedUNet, student: HKD) -> None:
    student.save(tmp_path / "one", {})
    HKD.from_teacher(network, HkdOptions(koopman=KoopmanSettings(hierarchy="none"))).save(
        tmp_path / "other", {}
    )
    weights = tmp_path / "one/model.safetensors"
    weights.write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(
        InputError, match=r"model\.safetensors: damaged \(its checksum is not the one in config"
    ):
        load_model(tmp_path / "one")
    config = json.loads((tmp_path / "one/config.json").read_text())
    del config["sha256"]  # as in exports of before there were checksums
    (tmp_path / "one/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"does not fit the network: tensor koopman\.0\.alpha"):
        load_model(tmp_path / "one")
