import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.stages.reports.published import published
from hkdpipe.stages.reports.report import write_report
from hkdpipe.stages.shared.picture_grids import beside, grid, save_png

VOID = {"meta", "link", "img"}
HOSTILE = "<script>alert('x')</script>&\""


class Page(HTMLParser):
    """What a page holds; raises where elements are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def matched(
    state: int, sigma: float, mse: float, psnr: float, deviation: float, **skill: float
) -> dict[str, Any]:
    return {"state": state, "sigma": sigma, "mse": mse, "psnr": psnr, "deviation": deviation, **skill}


def timed(name: str, nfe: int, ms: float, images: float) -> dict[str, Any]:
    return {"name": name, "nfe": nfe, "ms_per_image_batch_1": ms, "images_per_second_batch_1": images}


@pytest.fixture
def metrics() -> dict[str, Any]:
    """As evaluate has them."""
    return {
        "checkpoint": {"path": "run/step-1", "seen": 176_000, "sha256": {"ema.safetensors": "ab" * 32}},
        "settings": {"samples": 64, "weights": "ema", "compared": []},
        "model": {
            "method": "hkd",
            "architecture": {"img_resolution": 8, "img_channels": 1},
            "koopman": {"time": "angle"},
            "schedule": {"sigma_max": 80.0},
        },
        "teacher": {"source": HOSTILE, "sha256": "cd" * 32, "licence": "", "dataset": "digits", "nfe": 35},
        "archive": {"trajectories": 20, "sampler": {"steps": 18}, "classes": []},
        "metric": "fid",
        "rows": [
            {"name": "student", "nfe": 1, "samples": 64, "fid": 28.441, "fid_std": 3.653, "recall": 0.5},
            {"name": "student, A = 0", "nfe": 1, "samples": 64, "fid": 72.0, "fid_std": 4.0, "recall": 0.25},
            {"name": "teacher", "nfe": 35, "samples": 64, "fid": 8.65, "fid_std": 2.0, "recall": 0.75},
            {"name": "two halves of the reference", "nfe": 0, "samples": 32, "fid": 20.3},
        ],
        "per_class": [],
        "match": [
            matched(0, 80.0, 0.04, 22.9, 0.0, skill_8=0.1, skill_4=0.7),
            matched(1, 1.0, 0.03, 23.9, 0.01, skill_8=0.2, skill_4=0.6),
            matched(2, 0.002, 0.02, 24.9, 0.02),
        ],
        "consistency": {"variance": 0.0125},
        "speed": [timed("student", 1, 5.07, 197.0), timed("teacher", 35, 1790.0, 0.559)],
        "published": [],
        "compared": {"detector": {"name": "inception", "sha256": "ef" * 32}},
        "device": "cpu",
        "precision": "float32",
        "finished": "2026-11-21T13:33:52+00:00",
        "seconds": 86.1,
        "software": {"torch": "2.15.0"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a grid of black pictures and one of grey pictures beside each other."""
    grids = [grid(np.full((4, 1, 8, 8), shade), 2) for shade in (-1.0, 0.0)]
    save_png(tmp_path / "samples.png", beside(list(zip("ab", grids, strict=True))))
    save_png(tmp_path / "strip.png", grids[0])
    return tmp_path


def written(folder: Path, metrics: dict[str, Any]) -> Page:
    write_report(folder, metrics)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_numbers_are_on_the_page(folder: Path, metrics: dict[str, Any]) -> None:
    said = written(folder, metrics).said()
    for expected in (
        "One-step generator of 8×8 images",
        "176,000 trajectories",
        "28.44 ± 3.65",
        "35 network evaluations",
        "22.9 dB",
        "Koopman skill 0.70",
        "5.07 ms",
        "1,790 ms",
        "1.25e-02",
        "2026-11-21",
        "1:26 min",
        "cd" * 32,
    ):
        assert expected in said


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(folder: Path, metrics: dict[str, Any]) -> None:
    page = written(folder, metrics)
    sources = [
        value or ""
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert len(sources) > 3
    assert all(source.startswith("data:") for source in sources)
    assert not page.all("script")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert HOSTILE in page.said()


def test_it_can_be_read_out(folder: Path, metrics: dict[str, Any]) -> None:
    page = written(folder, metrics)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("title")) > 0
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["aria-label"] for chart in page.all("svg") if chart.get("role") == "img")
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    regions = [block for block in page.all("div") if block.get("class") == "scroll"]
    assert len(regions) >= len(page.all("table")) > 2
    assert all(block["aria-label"] and block["tabindex"] == "0" for block in regions)


def test_published_numbers_stand_apart(folder: Path, metrics: dict[str, Any]) -> None:
    before = written(folder, metrics)
    assert "Published" not in before.said()
    after = written(folder, metrics | {"published": published("cifar10", (3, 32, 32), False)})
    assert "Published, for this data set: not measured here" in after.said()
    assert len(after.all("table")) == len(before.all("table")) + 1


def test_students_and_teachers_samples_are_two_pictures(folder: Path, metrics: dict[str, Any]) -> None:
    page = written(folder, metrics)
    alts = [image["alt"] for image in page.all("img")]
    assert alts[:2] == ["One-step samples of the student", "Samples of the teacher from the same noise"]
    import base64
    import io

    for image, darkest in zip(page.all("img"), (0, 128), strict=False):
        data = base64.b64decode((image["src"] or "").partition(",")[2])
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == grid(np.zeros((4, 1, 8, 8)), 2).size
            assert np.asarray(picture).min() == darkest


def test_what_was_not_measured_is_left_out(tmp_path: Path, metrics: dict[str, Any]) -> None:
    nothing = {"rows": [], "match": [], "speed": [], "consistency": {}}
    del metrics["compared"]
    page = written(tmp_path, metrics | nothing)
    assert not page.all("img")
    assert not page.all("svg")
    assert "Distance" not in page.said()
    assert "Provenance" in page.said()


def test_from_the_start_alone_there_is_no_curve(folder: Path, metrics: dict[str, Any]) -> None:
    page = written(folder, metrics | {"match": metrics["match"][:1], "consistency": {}})
    assert not [chart for chart in page.all("svg") if chart.get("role") == "img"]
    assert "22.9 dB" in page.said()


def analysed(folder: Path, **section: Any) -> None:
    (folder / "analysis").mkdir(exist_ok=True)
    sections = [{"title": "Bands", "text": "What bands do.", **section}]
    (folder / "analysis" / "analysis.json").write_text(
        json.dumps({"title": "Spectrum", "sections": sections})
    )


def test_what_an_analysis_found_is_shown(folder: Path, metrics: dict[str, Any]) -> None:
    analysed(
        folder, pictures=[{"file": "b.png", "alt": "of bands"}], tables=[{"title": "All", "file": "b.csv"}]
    )
    save_png(folder / "analysis" / "b.png", Image.new("RGB", (5, 5)))
    (folder / "analysis" / "b.csv").write_text("band,share\nsmallest,0.5\n")
    page = written(folder, metrics)
    said = page.said()
    for expected in ("Spectrum", "Bands", "What bands do.", "of bands", "smallest", "share"):
        assert expected in said
    assert "of bands" in [image["alt"] for image in page.all("img")]


def test_an_analysis_of_other_weights_is_left_out(folder: Path, metrics: dict[str, Any]) -> None:
    analysed(folder)
    page = written(folder, metrics | {"export": "ab" * 32})
    assert "Left out, as it is of other weights: analyze anew." in page.said()
    assert "What bands do." not in page.said()


def test_without_a_distance_the_rest_is_shown(folder: Path, metrics: dict[str, Any]) -> None:
    rows = [{"name": "student", "nfe": 1, "samples": 5, "kid": 0.1}]
    assert "22.9 dB" in written(folder, metrics | {"rows": rows}).said()


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "secret.csv", "secret", "missing.png", 3]
)
def test_an_analysis_naming_other_files_is_refused(folder: Path, metrics: dict[str, Any], name: Any) -> None:
    save_png(folder / "secret.png", Image.new("RGB", (5, 5)))
    analysed(folder, pictures=[{"file": name, "alt": "x"}])
    with pytest.raises(InputError, match=r"analysis\.json: not what an analysis writes"):
        write_report(folder, metrics)
    assert not (folder / "report.html").exists()
