from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from torch import Tensor

import hkdpipe
from hkdpipe.stages.reports.model_card import model_card
from hkdpipe.stages.settings.metrics import metrics

MODEL: dict[str, Any] = {"method": "hkd", "architecture": {"img_channels": 3, "img_resolution": 32}}


def card(
    licence: str = "CC BY-NC-SA 4.0", sentences: Any = (), model: dict[str, Any] = MODEL, **about: Any
) -> str:
    teacher = {"source": "a teacher.pkl", "sha256": "ab" * 32, "licence": licence}
    facts = {"teacher": teacher, "checkpoint": {"seen": 54_000_000}, "weights": "ema", "metrics": []}
    return model_card(model, facts | about, "fd_digits", sentences)


def test_teacher_and_licence_are_named() -> None:
    text = card()
    assert "\n\n# One-step generator of 3x32x32 images\n" in text
    assert f"Teacher: `a teacher.pkl`, SHA-256 `{'ab' * 32}`" in text
    assert "Licence of the teacher: CC BY-NC-SA 4.0." in text
    assert "seen: 54,000,000" in text
    assert "Licence of the teacher: not stated." in card(licence="")


def test_a_licence_stays_in_its_line() -> None:
    assert "teacher: mine # Heading." in card(licence="mine\n\n# Heading")


def test_where_the_weights_come_from() -> None:
    assert "The weights here began as the teacher's and are derived from them" in card()
    assert "The weights here were trained on its samples" in card(model=MODEL | {"method": "kdm"})


def test_the_program_that_samples_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a conditional model, too: with a class that it was trained on."""

    class Sampled:
        image_shape = (3, 32, 32)

        def sample(self, noise: Tensor, labels: Tensor | None = None) -> list[Any]:
            return [tuple(noise.shape), None if labels is None else labels.argmax(dim=1).tolist()]

    monkeypatch.setattr(hkdpipe, "load_model", lambda folder: Sampled(), raising=False)
    conditional = MODEL | {"architecture": {**MODEL["architecture"], "label_dim": 5}}
    for text, classes in ((card(), None), (card(model=conditional, classes=[4, 3]), [3] * 16)):
        found: dict[str, Any] = {}
        exec(text.split("```python\n")[1].split("```")[0], found)
        assert found["images"] == [(16, 3, 32, 32), classes]


def test_measurements() -> None:
    rows = [
        {"name": "student", "nfe": 1, "samples": 50_000, "fd_digits": 3.301},
        {"name": "two halves", "nfe": 0, "samples": 898, "fd_digits": 20.0},
    ]
    found = metrics()["match"].card
    assert found is not None
    text = card(metrics=rows, sentences=[found([{"mse": 0.04}, {"mse": 0.01}])])
    assert "| student | 1 | 50,000 | 3.30 |\n| two halves | - | 898 | 20.00 |\n" in text
    assert "root mean square 0.2000," in text
    assert card().endswith("## Measurements\n\nNone.\n")
    others = [{"name": "student", "nfe": 1, "samples": 5, "kid": 0.1}]
    assert "| student | 1 | 5 | - |\n" in card(metrics=others)


@pytest.mark.parametrize(
    ("licence", "expected", "named"),
    [
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0", None),
        ("Apache-2.0", "apache-2.0", None),
        ("My: own\nlicence #1", "other", "my-own-licence-1"),
        ("2.5", "other", "2.5"),
        ("", "unknown", None),
    ],
)
def test_the_hub_reads_its_front_matter(licence: str, expected: str, named: str | None) -> None:
    """By the hub's own parser."""
    found = ModelCard(card(licence=licence))
    assert found.text.lstrip().startswith("# One-step generator")
    data = found.data.to_dict()
    assert data.pop("tags") == ["diffusion", "distillation", "one-step-generation", "hkd"]
    assert data.pop("license_name", None) == named
    assert data == {
        "library_name": "hkdpipe",
        "pipeline_tag": "unconditional-image-generation",
        "license": expected,
    }
