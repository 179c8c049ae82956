"""Figures of the white box, drawn with matplotlib (the extra "plots")."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.whitebox.spectrum import LevelSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 4000  # pairs of a level at most, in scatter plots
DOTS_PER_INCH = 120


def check_plots() -> None:
    """UsageError where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plots: need the package matplotlib; accepted: after pip install 'hkdpipe[plots]'")


@dataclass(frozen=True)
class Panel:
    """Lines over a common x, by their names."""

    title: str
    xlabel: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    xscale: str = "linear"
    """On "log", x goes from large to small, as noise levels do."""
    reference: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Lines to compare with."""


def spectrum_figure(spectra: Mapping[int, LevelSpectrum], dt: float) -> Figure:
    """Of each level the eigenvalues, the densities of alpha and beta, and the propagator's over `dt`. Of more
    pairs than can be told apart, scatter plots show evenly many of all alphas."""
    figure = _figure(3.6 * len(spectra), 9.6)
    axes = figure.subplots(3, len(spectra), squeeze=False)
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 200))
    for (scatter, density, plane), (level, spectrum) in zip(axes.T, spectra.items(), strict=True):
        alpha, beta = (part.flatten().numpy() for part in (spectrum.alpha, spectrum.beta))
        shown = alpha.argsort(kind="stable")[:: -(-len(alpha) // DRAWN)]
        dots: dict[str, Any] = {"s": 5, "alpha": 0.35, "linewidths": 0, "rasterized": True}
        scatter.scatter(alpha[shown], beta[shown], **dots)
        scatter.set(title=f"{level}×{level}: {len(alpha):,} pairs", xlabel="α", ylabel="β")
        for name, part in (("α", alpha), ("β", beta)):
            density.hist(part, bins=60, density=True, histtype="step", label=name, linewidth=1.4)
        density.set(xlabel="value", ylabel="density", yscale="log")
        density.legend(frameon=False)
        values = spectrum.propagator(dt).flatten().numpy()[shown]
        plane.plot(circle.real, circle.imag, color="0.6", linewidth=0.8)
        plane.scatter(values.real, values.imag, color="C0", **dots)
        plane.scatter(values.real, -values.imag, color="C0", **dots)
        plane.set(title="propagator, start to end", xlabel="real", ylabel="imaginary", aspect="equal")
    return figure


def maps_figure(spectra: Mapping[int, LevelSpectrum]) -> Figure:
    """The mean |alpha| and |beta| of each level over its grid of locations."""
    figure = _figure(3.4 * len(spectra), 5.6)
    axes = figure.subplots(2, len(spectra), squeeze=False)
    for column, (level, spectrum) in zip(axes.T, spectra.items(), strict=True):
        for place, name, part in zip(column, "αβ", (spectrum.alpha, spectrum.beta), strict=True):
            image = place.imshow(part.abs().mean(dim=0).numpy(), cmap="viridis", vmin=0)
            place.set(title=f"{level}×{level}: mean |{name}|", xticks=[], yticks=[])
            figure.colorbar(image, ax=place, shrink=0.8)
    return figure


def lines_figure(panels: Sequence[Panel]) -> Figure:
    """Panels side by side, the lines of one name in one colour; the lower a band, the darker."""
    import matplotlib

    figure = _figure(4.6 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(names)))
    for place, panel in zip(axes, panels, strict=True):
        for name, values in panel.lines.items():
            place.plot(panel.x, values, marker="o", markersize=3, color=shades[names.index(name)], label=name)
        for name, values in panel.reference.items():
            place.plot(panel.x, values, color="0.5", linestyle="--", label=name)
        place.set(title=panel.title, xlabel=panel.xlabel, xscale=panel.xscale, ylim=(0, None))
        if panel.xscale == "log":
            place.invert_xaxis()
        place.legend(frameon=False)
    return figure


def picture_figure(picture: Image.Image) -> Figure:
    """A picture as it is, pixel by pixel."""
    figure = _figure(picture.width / DOTS_PER_INCH, picture.height / DOTS_PER_INCH, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.asarray(picture))
    axes.set_axis_off()
    return figure


def figure_bytes(figure: Figure, form: str) -> bytes:
    """A figure as a file of the form "png" or "svg"; the same bytes each time."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hkdpipe"}):
        figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else {})
    return buffer.getvalue()


def _figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty one, inches wide and high; without pyplot, which would keep it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=layout)
