"""Figures of an evaluation's page as inline SVG, which takes its colours from the page's style."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stpredict.arrays import Float
from stpredict.colour_maps import lookup_table
from stpredict.evaluation.maps import map_frame

COLOUR_MAP = "viridis"
COLOURS = 24
PERCENTILES = (2, 98)
#: A dot's width in pitches: neighbouring dots almost touch.
DOT_PER_PITCH = 0.96
SPREAD_PERCENTILES = (5, 25, 50, 75, 95)


def spot_map(centres: Float, values: Float, label: str) -> str:
    """A map of spots at `centres` (n x 2). Its colours span the values' percentiles 2 to 98.

    Each colour is one path, and each spot in it a line of no length, whose round ends make a dot: few bytes per spot.
    """
    (left, top), (width, height), pitch = map_frame(centres)
    scale = 1000 / width
    low, high = np.percentile(values, PERCENTILES)
    step = np.clip((values - low) / max(high - low, 1e-12) * (COLOURS - 1), 0, COLOURS - 1).round().astype(int)
    places = ((centres - (left, top)) * scale).round().astype(int)
    colours = ramp(COLOURS)
    paths = [
        f'<path stroke="{colours[k]}" d="{"".join(f"M{x} {y}h0" for x, y in places[step == k])}"/>'
        for k in np.unique(step)
    ]
    return (
        f'<svg viewBox="0 0 1000 {height * scale:.0f}" role="img" aria-label="{label}" fill="none" '
        f'stroke-linecap="round" stroke-width="{DOT_PER_PITCH * pitch * scale:.1f}">{"".join(paths)}</svg>'
    )


def ramp(n: int) -> list[str]:
    """`n` colours of the colour map, first to last, as #rrggbb."""
    table = lookup_table(COLOUR_MAP)[np.linspace(0, 255, n).round().astype(int)]
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in table.tolist()]


def spread(values: Float, low: float, high: float, ours: bool) -> str:
    """Percentiles 5 to 95 as a thin line, 25 to 75 as a bar, the median as a tick, on an axis from `low` to `high`."""
    at = [f"{100 * (q - low) / (high - low):.2f}%" for q in np.percentile(values, SPREAD_PERCENTILES)]
    kind = "ours" if ours else "other"
    return (
        f'<svg aria-hidden="true" class="{kind}">{_grid(low, high)}'
        f'<line class="whisker" x1="{at[0]}" x2="{at[4]}" y1="10" y2="10"/>'
        f'<line class="half" x1="{at[1]}" x2="{at[3]}" y1="10" y2="10"/>'
        f'<line class="middle" x1="{at[2]}" x2="{at[2]}" y1="3" y2="17"/></svg>'
    )


def axis(low: float, high: float) -> str:
    """The numbers below the lines of `spread`."""
    texts = (f'<text x="{_at(x, low, high)}" y="12" text-anchor="middle">{x:.1f}</text>' for x in _ticks(low, high))
    return f'<svg class="axis" aria-hidden="true">{"".join(texts)}</svg>'


def calibration_curve(predicted: Sequence[float], measured: Sequence[float]) -> str:
    """Measured over predicted expression, both relative to the gene's mean, on logarithmic axes; dashed: equal."""
    x, y = np.log2(np.maximum(predicted, 1e-3)), np.log2(np.maximum(measured, 1e-3))
    reach = max(0.25, float(np.ceil(4 * max(abs(x).max(), abs(y).max())) / 4))
    size, left, bottom = 300.0, 48.0, 40.0

    def across(v: float) -> float:
        return left + (v + reach) / (2 * reach) * size

    def up(v: float) -> float:
        return size + 8 - (v + reach) / (2 * reach) * size

    parts = []
    for v in (-reach, -reach / 2, 0.0, reach / 2, reach):
        parts.append(
            f'<path class="grid" d="M{across(v):.1f} 8V{size + 8:.1f}M{left:.0f} {up(v):.1f}h{size:.0f}"/>'
            f'<text x="{across(v):.1f}" y="{size + 23:.0f}" text-anchor="middle">{2**v:.2f}</text>'
            f'<text x="{left - 6:.0f}" y="{up(v) + 4:.1f}" text-anchor="end">{2**v:.2f}</text>'
        )
    curve = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, y, strict=True))
    middle = size / 2 + 8
    dots = "".join(f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="4"/>' for a, b in zip(x, y, strict=True))
    return (
        f'<svg viewBox="0 0 {left + size + 16:.0f} {size + bottom + 8:.0f}" role="img" '
        f'aria-label="Measured against predicted expression">{"".join(parts)}'
        f'<path class="equal" d="M{across(-reach):.1f} {up(-reach):.1f}L{across(reach):.1f} {up(reach):.1f}"/>'
        f'<polyline class="curve" points="{curve}"/>{dots}'
        f'<text x="{left + size / 2:.0f}" y="{size + 42:.0f}" text-anchor="middle">predicted / gene’s mean</text>'
        f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">measured / gene’s mean</text>'
        "</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    every = 0.1 if high - low <= 0.8 else 0.2
    return [every * k for k in range(int(np.ceil(low / every - 1e-9)), int(np.floor(high / every + 1e-9)) + 1)]


def _grid(low: float, high: float) -> str:
    at = [_at(x, low, high) for x in _ticks(low, high)]
    return "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="20"/>' for x in at)


def _at(x: float, low: float, high: float) -> str:
    return f"{100 * (x - low) / (high - low):.2f}%"
