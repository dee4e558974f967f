"""The roofline plot: every layer and pass below the machine's roofs, each layer named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.collect import Tables
from reports.figures import COLOURS, canvas
from reports.rows import LayerRow
from reports.story import name_of
from tconv.geometry import PASSES
from tconv.svg import INK, STYLE

MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
SIZES = {"fprop": 150, "dgrad": 60, "wgrad": 60}
NAMED = 40  # layers that the plot can name legibly
BAND = 0.40  # height of the band for names, over that of the plot
LETTERS = 0.23  # of the whole height, for the names themselves


def intensity(row: LayerRow) -> float:
    """FLOPs for each byte that a pass must move."""
    return row.geometry.flops / row.problem.least_bytes


def roofline(tables: Tables) -> Figure | None:
    """TFLOP/s against FLOPs a byte."""
    rows = [row for row in tables.layers if row.tflops and row.filters is not None]
    if not rows:
        return None
    about, kind = tables.about, tables.about.kind
    places = [intensity(row) for row in rows]
    low, high = min(places) / 2, max(places) * 3
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 7)
        axes.set(xscale="log", yscale="log", xlim=(low, high))
        _roofs(axes, tables, {row.dtype for row in rows}, (low, high))
        for direction in PASSES:
            chosen = [row for row in rows if row.direction == direction]
            x, y = [intensity(row) for row in chosen], [row.tflops or 0.0 for row in chosen]
            # Passes of one layer may coincide: rings of three sizes stay visible.
            look: Any = {"s": SIZES[direction], "marker": MARKERS[direction], "linewidths": 2}
            edge = COLOURS[direction]
            axes.scatter(
                x, y, facecolors="none", edgecolors=edge, label=direction, zorder=3, **look
            )
        axes.set_xlabel("FLOPs for each byte that must move (x, w and y once each)")
        axes.set_ylabel(f"{kind} TFLOP/s")
        axes.set_title(f"Roofline of {about.product}: {kind} rates")
        _name_layers(axes, tables, rows)
        axes.legend(loc="upper left", frameon=False, labelcolor=INK)
    return figure


def _roofs(axes: Axes, tables: Tables, dtypes: set[str], limits: tuple[float, float]) -> None:
    """A slope of memory's rate up to a flat roof for each arithmetic."""
    reach, about = np.geomspace(*limits, 200), tables.about
    for dtype in sorted(dtypes & about.peaks.keys()):
        peak = about.peaks[dtype]
        axes.plot(
            reach, np.minimum(peak, reach * about.bandwidth_gbps / 1e3), color=INK, linewidth=1.5
        )
        text = f"{dtype} peak {peak:g} TFLOP/s"
        style: Any = {"textcoords": "offset points"}
        axes.annotate(text, (limits[1], peak), (0, 4), **style, ha="right", fontsize=10)


def _name_layers(axes: Axes, tables: Tables, rows: Sequence[LayerRow]) -> None:
    """Each layer's name in a band below the marks, spread apart, with a line up to them."""
    points: dict[tuple[float, str], list[float]] = {}
    for row in rows:
        points.setdefault((intensity(row), name_of(row, tables)), []).append(row.tflops or 0.0)
    ordered = sorted(sorted(points, key=lambda point: -max(points[point]))[:NAMED])
    low, high = (float(np.log10(limit)) for limit in axes.get_xlim())
    bottom, top = (float(np.log10(limit)) for limit in axes.get_ylim())
    floor = bottom - BAND * (top - bottom)
    height = top - floor
    axes.set_ylim(10**floor, 10 ** (top + 0.04 * height))
    foot, knee = floor + LETTERS * height, floor + (LETTERS + 0.05) * height
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "top", "fontsize": 10}
    places = spread([float(np.log10(x)) for x, _ in ordered], low, high)
    for place, (x, name) in zip(places, ordered, strict=True):
        highest = float(np.log10(max(points[x, name])))
        # From the name, aslant to the layer's own place, then up through its marks.
        line = [10**place, x, x], [10**foot, 10**knee, 10**highest]
        axes.plot(*line, color=INK, linewidth=0.5, alpha=0.5, zorder=1)
        axes.text(10**place, 10 ** (foot - 0.01 * height), name, **style)


def spread(places: list[float], low: float, high: float, gap: float = 0.024) -> list[float]:
    """Sorted places moved apart to ``gap`` of the width, within it where there is room.

    >>> spread([0.0, 0.0, 1.0], 0.0, 1.0, gap=0.25)
    [0.0, 0.25, 0.75]
    """
    step, moved = (high - low) * gap, list(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + step)
    limit = high - step
    for i in range(len(moved) - 1, -1, -1):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - step
    return moved
