import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.stages.whitebox.plots import Panel, check_plots, figure_bytes, lines_figure, picture_figure


def test_without_matplotlib_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_plots()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^plots: need the package matplotlib; accepted: after pip install"):
        check_plots()


def test_a_picture_is_drawn_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    drawn = figure_bytes(picture_figure(Image.fromarray(pixels)), "png")
    with Image.open(io.BytesIO(drawn)) as read:
        assert np.array_equal(np.asarray(read.convert("RGB")), pixels)


def test_lines_are_those_given_and_files_the_same_each_time() -> None:
    panels = [
        Panel("one", "x", [1, 2, 3], {"a": [1, 2, 4], "b": [0, 1, 2]}, reference={"c": [3, 3, 3]}),
        Panel("two", "sigma", [80, 1, 0.1], {"b": [5, 6, 7]}, "log"),
    ]
    figure = lines_figure(panels)
    first, second = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in first.lines}
    assert drawn == {"a": [1, 2, 4], "b": [0, 1, 2], "c": [3, 3, 3]}
    assert [list(line.get_xdata()) for line in second.lines] == [[80, 1, 0.1]]
    assert second.xaxis_inverted()
    assert not first.xaxis_inverted()
    assert np.array_equal(first.lines[1].get_color(), second.lines[0].get_color()), "of one name, two colours"
    assert figure_bytes(figure, "svg") == figure_bytes(lines_figure(panels), "svg")
