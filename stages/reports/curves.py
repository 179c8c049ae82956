"""Curves over the noise level as SVG that stands inside a page, whose style sheet gives it colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from hkdpipe.stages.reports.templates import template

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34  # pixels around the plot

STYLES = ("first", "second", "third", "fourth")
"""Classes of the style sheet."""


@dataclass(frozen=True)
class Curve:
    name: str
    values: Sequence[float | None]
    """At the chart's noise levels; None where there is none."""
    style: str = STYLES[0]


def chart(title: str, sigmas: Sequence[float], curves: Sequence[Curve]) -> Markup:
    """An <svg> of curves over the noise levels, all above 0, on a logarithmic axis from noise to image; the
    other axis holds 0. `title` is what is read out instead. At least one value must be there."""
    shown = [
        [value if value is not None and math.isfinite(value) else None for value in c.values] for c in curves
    ]
    found = [value for values in shown for value in values if value is not None]
    ticks = nice_ticks(min(0.0, *found), max(0.0, *found))
    bottom, top = min(ticks[0], *found), max(ticks[-1], *found)
    high, low = math.log10(max(sigmas)), math.log10(min(sigmas))

    def x(sigma: float) -> float:
        share = (high - math.log10(sigma)) / (high - low or 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (value - bottom) / (top - bottom)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    points = [
        [
            {"x": x(sigma), "y": y(value), "sigma": sigma, "value": value}
            for sigma, value in zip(sigmas, values, strict=True)
            if value is not None
        ]
        for values in shown
    ]
    powers = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    drawn = template("chart.html").render(
        title=title,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        floor=HEIGHT - BOTTOM,
        levels=[(tick, y(tick)) for tick in ticks],
        noise_levels=[(power, x(power)) for power in powers],
        curves=list(zip(curves, points, strict=True)),
    )
    return Markup(drawn)


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    span = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
