"""Curves over the noise level as SVG that stands inside a page, whose style sheet gives it its colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34  # pixels around the plot


@dataclass(frozen=True)
class Curve:
    name: str
    values: Sequence[float | None]
    """At the chart's noise levels; None where there is none."""
    style: str = "first"
    """A class of the style sheet: 'first', 'second', 'third', 'fourth', 'without'."""


def chart(title: str, sigmas: Sequence[float], curves: Sequence[Curve]) -> str:
    """An <svg> of curves over the noise levels, all above 0, on a logarithmic axis from noise to image.

    The other axis holds 0. `title` is what is read out instead. At least one value must be there.
    """
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

    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in ticks:
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:.4g}", "end"))
    for power in range(math.ceil(low), math.floor(high) + 1):
        place = x(10.0**power)
        parts.append(f'<line class="tick" x1="{place}" x2="{place}" y1="{floor}" y2="{floor + 4}"/>')
        parts.append(_text(place, floor + 16, f"{10.0**power:g}", "middle"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 4, "noise level σ, from noise to image", "middle"))
    for curve, values in zip(curves, shown, strict=True):
        points = [(x(s), y(v), s, v) for s, v in zip(sigmas, values, strict=True) if v is not None]
        line = " ".join(f"{px},{py}" for px, py, _, _ in points)
        name = html.escape(curve.name)
        marks = "".join(
            f'<circle cx="{px}" cy="{py}" r="2"><title>{name}, σ {s:.3g}: {v:.4g}</title></circle>'
            for px, py, s, v in points
        )
        parts.append(f'<g class="curve {curve.style}"><polyline points="{line}"/>{marks}</g>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def swatch(style: str) -> str:
    """The sample of a curve's line, for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><g class="curve {style}">'
        '<polyline points="0,4 24,4"/></g></svg>'
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    span = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
