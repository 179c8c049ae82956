"""The presets of published data sets hold the numbers of the papers (EDM: 2206.00364, HKD: 2510.12220)."""

import pytest

from hkdpipe.pipeline.configuration.config import Config, presets, resolve

PUBLISHED = ("cifar10", "cifar10-conditional", "ffhq64", "afhqv2", "imagenet64")


def preset(name: str) -> Config:
    return resolve(name, None, None, ())


def test_published_data_sets_and_the_digits_have_presets() -> None:
    assert set(presets()) == {"digits", "digits-color", *PUBLISHED}


@pytest.mark.parametrize(
    ("name", "file", "steps"),
    [
        ("cifar10", "edm-cifar10-32x32-uncond-vp.pkl", 18),
        ("cifar10-conditional", "edm-cifar10-32x32-cond-vp.pkl", 18),
        ("ffhq64", "edm-ffhq-64x64-uncond-vp.pkl", 40),
        ("afhqv2", "edm-afhqv2-64x64-uncond-vp.pkl", 40),
        ("imagenet64", "edm-imagenet-64x64-cond-adm.pkl", 256),
    ],
)
def test_teachers_and_samplers_of_edm(name: str, file: str, steps: int) -> None:
    config = preset(name)
    assert (config.teacher.source, config.teacher.licence) == (file, "CC BY-NC-SA 4.0")
    generation = config.generation
    assert (generation.steps, generation.solver) == (steps, "heun")
    assert (generation.sigma_min, generation.sigma_max, generation.rho) == (0.002, 80.0, 7.0)
    assert generation.count == 1_000_000


@pytest.mark.parametrize(
    ("name", "batch_size"), [("cifar10", 256), ("cifar10-conditional", 256), ("ffhq64", 64)]
)
def test_training_of_the_hkd_paper(name: str, batch_size: int) -> None:
    training, hkd = preset(name).training, preset(name).section("hkd")
    assert (training.method, training.batch_size) == ("hkd", batch_size)
    assert training.budget == 54 * preset(name).generation.count
    assert (training.learning_rate, training.schedule) == (1e-3, "constant")
    assert (hkd.times, hkd.time_sampling) == (5, "uniform")
    assert (training.perceptual, training.perceptual_weight, training.mse_decades) == ("vgg", 1.0, 3.0)
    assert training.weight_decay == 0.0


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_stored_serves_training_and_fits_a_disk(name: str) -> None:
    """With the last state before the end, at sigma_min; about a terabyte at most, in shards of 256 MB."""
    generation = preset(name).generation
    assert generation.stored_steps[-2] == generation.steps - 1
    size = 32 if name.startswith("cifar10") else 64
    trajectory = len(generation.stored_steps) * 3 * size * size * 2
    assert generation.count * trajectory < 1.01e12
    assert generation.shard_size * trajectory < 2**28


@pytest.mark.parametrize("name", PUBLISHED)
def test_fid_as_the_papers_have_it(name: str) -> None:
    evaluation = preset(name).evaluation
    assert (evaluation.features, evaluation.samples, evaluation.ranges) == ("inception", 50_000, 3)
    assert evaluation.reference.endswith("64x64.npz" if "64" in evaluation.reference else "32x32.npz")
    assert evaluation.teacher_steps[0] == preset(name).generation.steps
    assert evaluation.first_order_steps == (10,)
