"""A metric that this module alone knows of is measured, written, shown and explained."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
from tiny import EVALUATION, Inputs, evaluate_tiny

from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.configuration.config import resolve
from hkdpipe.pipeline.explain import explain
from hkdpipe.stages.evaluation.seen import Seen
from hkdpipe.stages.settings import metrics
from hkdpipe.stages.settings.metrics import Column, Metric, Row, register

SETTINGS = dataclasses.replace(EVALUATION, teacher_steps=(2,), reference="archive")
TAUGHT = 'evaluation.metrics=["brightness"]'


def brightness(seen: Seen) -> Row:
    assert seen.target.reference.images is not None
    return {
        "brightness": float(seen.first.images.mean()),
        "brightness_real": float(seen.target.reference.images.mean()),
    }


BRIGHTNESS = Metric(
    "brightness",
    "mean <grey>",
    needs=("images",),
    columns=(
        Column("brightness", "Brightness & more", "{:.1f}", "levels", "higher", ("table", "summary")),
        Column("brightness_real"),
    ),
    row=brightness,
    text="Brightness says nothing.",
)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_METRICS", metrics.metrics())
    register(BRIGHTNESS)


@pytest.mark.usefixtures("known")
def test_it_is_measured_written_shown_and_explained(inputs: Inputs, tmp_path: Path) -> None:
    config = resolve(None, None, None, [TAUGHT])
    assert '"brightness" (mean <grey>)' in " ".join(explain(config).replace("\n#", "").split())
    wanted = dataclasses.replace(SETTINGS, metrics=("brightness",))
    summary = evaluate_tiny(inputs, tmp_path, wanted)
    rows = read_json(tmp_path / "metrics.json")["rows"]
    assert [row["name"] for row in rows] == ["student", "teacher"]
    assert 0 < rows[0]["brightness"] < 255
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["brightness"].tolist() == pytest.approx([row["brightness"] for row in rows])
    page = (tmp_path / "report.html").read_text()
    for expected in (
        "Brightness &amp; more ↑",
        f"{rows[0]['brightness']:.1f} levels",
        "Brightness says nothing.",
    ):
        assert expected in page
    assert "Brightness & more" in summary.header


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("row", [{"darkness": 1.0}, {"brightness": "much"}])
def test_numbers_that_it_does_not_declare_are_refused(row: Row) -> None:
    with pytest.raises(TypeError, match=r"metric brightness: .* not a column that it declares"):
        BRIGHTNESS.checked(row)


def test_without_it_the_name_is_refused_and_two_of_one_name_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.metrics: got .*; accepted: a list of"):
        resolve(None, None, None, [TAUGHT])
    monkeypatch.setattr(metrics, "_METRICS", metrics.metrics())
    with pytest.raises(ValueError, match="two metrics named kid"):
        register(dataclasses.replace(BRIGHTNESS, name="kid"))
