import json
import runpy
from pathlib import Path

import pytest
import torch

from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.metrics.digits_classifier import HELD_OUT, load_classifier
from hkdpipe.trainer.metrics.feature_networks import load_features

NAMES = ["digits-classifier-loss", "digits-classifier-metric"]


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_held_out_digits_is_what_the_asset_says(name: str) -> None:
    images, classes = load_digits()
    scores = load_classifier(name)(torch.from_numpy(images[-HELD_OUT:]))
    accuracy = (scores.argmax(dim=1).numpy() == classes[-HELD_OUT:]).mean()
    config = json.loads((asset(name) / "config.json").read_text())
    assert HELD_OUT == 297
    assert accuracy >= 0.93
    # The accuracy was taken before the weights were rounded to half precision: one digit may differ.
    assert abs(config["held_out_accuracy"] - accuracy) < 1.5 / HELD_OUT


def test_the_two_classifiers_were_trained_apart() -> None:
    seeds = [json.loads((asset(name) / "config.json").read_text())["seed"] for name in NAMES]
    loss, metric = (load_classifier(name) for name in NAMES)
    assert seeds[0] != seeds[1]
    assert not torch.allclose(loss.hidden.weight, metric.hidden.weight, atol=0.05)


def test_colour_images_are_seen_by_their_luminance() -> None:
    metric = load_classifier("digits-classifier-metric")
    coloured = torch.rand(5, 3, 8, 8) * 2 - 1
    grey = torch.einsum("c,nchw->nhw", torch.tensor([0.299, 0.587, 0.114]), coloured)[:, None]
    torch.testing.assert_close(metric(coloured), metric(grey))


def test_features_of_the_metric() -> None:
    """Of bytes, as they come back from files."""
    network = load_features("digits", "", (1, 8, 8), torch.device("cpu"))
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    features, logits = network.outputs(images)
    metric = load_classifier("digits-classifier-metric")
    assert torch.equal(features, metric.embed(images / 127.5 - 1))
    torch.testing.assert_close(logits, metric(images / 127.5 - 1))
    assert (network.space.metric, network.space.judges) == ("fd_digits", True)
    assert network.sha256 == sha256_file(asset("digits-classifier-metric") / "model.safetensors")


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 16, 16)])
def test_features_of_other_images_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match=r"'digits' takes images of 1x8x8 or 3x8x8, these are \(\d, \d+, "):
        load_features("digits", "", shape, torch.device("cpu"))


def test_training_a_classifier_learns_and_can_be_repeated(tmp_path: Path) -> None:
    script = Path(__file__).parents[4] / "examples/train_digits_classifier.py"
    train = runpy.run_path(str(script))["train_classifier"]
    accuracies = [train(tmp_path / name, seed=3, steps=40) for name in ("one", "two")]
    assert accuracies[0] == accuracies[1] > 0.6
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config == {"seed": 3, "steps": 40, "held_out_accuracy": accuracies[0]}
