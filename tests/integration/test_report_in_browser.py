"""report.html in a real browser, at a phone's and a desktop's width."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import Inputs, evaluate_tiny

from hkdpipe.manifests.ground.atomic_files import read_json
from hkdpipe.stages.reports.report import write_report
from hkdpipe.stages.shared.picture_grids import save_png

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs a browser: Debian's chromium, on the PATH"),
]


SMALLEST_TEXT = """Math.min(...[...document.querySelectorAll('main p, td, th, dd, dt, figcaption')]
    .map(part => parseFloat(getComputedStyle(part).fontSize)))"""
LOWEST_LABEL = """Math.min(...[...document.querySelectorAll('svg text')]
    .map(part => part.getBoundingClientRect().height))"""
# The smallest contrast of a text, as WCAG 2 computes it.
CONTRAST = """() => {
    const channels = text => text.match(/[0-9.]+/g).slice(0, 3).map(value => {
        const share = value / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    const luminance = text => {
        const [red, green, blue] = channels(text);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const behind = luminance(getComputedStyle(document.body).backgroundColor);
    const ratio = part => {
        const style = getComputedStyle(part);
        const before = luminance(part.closest('svg') ? style.fill : style.color);
        return (Math.max(before, behind) + 0.05) / (Math.min(before, behind) + 0.05);
    };
    const texts = 'h1, h2, h3, p, td, th, dt, dd, summary, caption, figcaption, svg text';
    return Math.min(...[...document.querySelectorAll(texts)].map(ratio));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny evaluation, with names that do not fit a phone and an analysis with a wide picture."""
    folder = tmp_path_factory.mktemp("report")
    evaluate_tiny(inputs, folder)
    (folder / "analysis").mkdir()
    save_png(folder / "analysis" / "wide.png", Image.new("RGB", (3000, 100), "grey"))
    header = ",".join(["a-name-of-a-column"] * 30)
    (folder / "analysis" / "numbers.csv").write_text(f"{header}\n{'1,' * 29}1\n")
    section = {
        "title": "Bands",
        "text": "unbroken" * 40,
        "pictures": [{"file": "wide.png", "alt": "A wide picture"}],
        "tables": [{"title": "Numbers", "file": "numbers.csv"}],
    }
    metrics = read_json(folder / "metrics.json")
    (folder / "analysis" / "analysis.json").write_text(
        json.dumps({"title": "Analysis", "weights": metrics["export"], "sections": [section]})
    )
    metrics["checkpoint"]["path"] = "/a/long/path" * 30
    metrics["rows"].append({**metrics["rows"][0], "name": "another-student" * 10})
    metrics["published"] = [{"name": "HKD", "nfe": 1, "fid": 3.3, "source": "a long source " * 10}]
    write_report(folder, metrics)
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_it_is_whole_and_keeps_to_itself(
    browser: Any, report: Path, width: int, height: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(report.as_uri(), wait_until="networkidle")
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert said == []
    assert [url for url in requested if not url.startswith("data:")] == [report.as_uri()]
    widths = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
    assert widths == [width, width]
    sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(sizes) == 4
    assert min(sizes) > 0
    # What is wider than the page scrolls in its own place.
    clipped = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, svg') &&"
        " part.getBoundingClientRect().right > innerWidth + 0.5).map(part => part.outerHTML.slice(0, 80))"
    )
    assert clipped == []
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].some(part => part.scrollWidth > part.clientWidth)"
    )
    # Text is large enough to be read, in curves too, and stands out from what is behind it.
    assert page.evaluate(SMALLEST_TEXT) >= 13
    assert page.evaluate(LOWEST_LABEL) >= 10
    assert page.evaluate(CONTRAST) >= 4.5
    page.close()
