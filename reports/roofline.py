"""The roofline plot: every layer and pass below the machine's roofs, with layer names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reports.figures import COLOURS, canvas
from reports.rows import LayerRow
from reports.tables import Tables
from tconv.extras import extra
from tconv.geometry import PASSES
from tconv.svg import INK, STYLE

with extra("reports"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"fprop": "o", "dgrad": "s", "wgrad": "^"}
SIZES = {"fprop": 150, "dgrad": 60, "wgrad": 60}
NAMED = 40  # layers that the plot can name legibly
LETTER = 0.0125  # share of the height for one letter of a name
KNEE = 0.05  # share of the height in which the lines bend


def intensity(row: LayerRow) -> float:
    """Return the FLOPs per byte that a pass must move."""
    return row.geometry.flops / row.least_bytes


def roofline(tables: Tables, suite: str) -> Figure | None:
    """Plot TFLOP/s against FLOPs per byte; a line joins cuDNN's rates to ours."""
    rows = [row for row in tables.layers if row.suite == suite and row.tflops and row.filters]
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
            if not (chosen := [row for row in rows if row.direction == direction]):
                continue
            x, y = [intensity(row) for row in chosen], [row.tflops or 0.0 for row in chosen]
            # Passes of a layer may coincide: rings of three sizes keep all visible.
            look: Any = {"s": SIZES[direction], "marker": MARKERS[direction], "linewidths": 2}
            edge = COLOURS[direction]
            axes.scatter(
                x, y, facecolors="none", edgecolors=edge, label=direction, zorder=3, **look
            )
            _draw_cudnn(axes, chosen, direction)
        axes.set_xlabel("FLOPs for each byte that must move (x, w and y once each)")
        axes.set_ylabel(f"{kind} TFLOP/s")
        axes.set_title(f"{suite} under the roofline of {about.product}: {kind} rates", pad=26)
        _name_layers(axes, rows)
        where: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 6}
        axes.legend(**where, frameon=False, labelcolor=INK, fontsize=10)
    return figure


def _draw_cudnn(axes: Axes, rows: Sequence[LayerRow], direction: str) -> None:
    """Draw cuDNN's rates on channels_last tensors: small, filled, and joined to ours."""
    compared = [row for row in rows if row.times_nhwc]
    if not compared:
        return
    x = [intensity(row) for row in compared]
    ours = [row.tflops or 0.0 for row in compared]
    theirs = [rate / (row.times_nhwc or 1.0) for rate, row in zip(ours, compared, strict=True)]
    colour, marker = COLOURS[direction], MARKERS[direction]
    axes.vlines(x, ours, theirs, color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    label = f"cuDNN, {direction}"
    axes.scatter(x, theirs, s=14, marker=marker, color=colour, alpha=0.8, label=label, zorder=2)


def _roofs(axes: Axes, tables: Tables, dtypes: set[str], limits: tuple[float, float]) -> None:
    """Draw the memory bandwidth as a slope up to one flat roof per arithmetic."""
    reach, about = np.geomspace(*limits, 200), tables.about
    for dtype in sorted(dtypes & about.peaks.keys()):
        peak = about.peaks[dtype]
        axes.plot(
            reach, np.minimum(peak, reach * about.bandwidth_gbps / 1e3), color=INK, linewidth=1.5
        )
        reached = about.ceilings.get(dtype)
        if reached:  # measured ceilings of a large product and a copy
            slope = reach * about.ceilings.get("copy", about.bandwidth_gbps) / 1e3
            axes.plot(reach, np.minimum(reached, slope), color=INK, linewidth=1, linestyle="--")
        text = f"{dtype} peak {peak:g} TFLOP/s" + (f", reached {reached:g}" if reached else "")
        style: Any = {"textcoords": "offset points"}
        axes.annotate(text, (limits[1], peak), (0, 4), **style, ha="right", fontsize=10)


def _name_layers(axes: Axes, rows: Sequence[LayerRow]) -> None:
    """Write each layer's name in a band below the marks, spread apart, with a line up to them."""
    points: dict[tuple[float, str], list[float]] = {}
    for row in rows:
        points.setdefault((intensity(row), row.layer), []).append(row.tflops or 0.0)
    ordered = sorted(sorted(points, key=lambda point: -max(points[point]))[:NAMED])
    low, high = (float(np.log10(limit)) for limit in axes.get_xlim())
    bottom, top = (float(np.log10(limit)) for limit in axes.get_ylim())
    letters = LETTER * (max(len(name) for _, name in ordered) + 2)
    height = (top - bottom) / (1 - letters - KNEE)
    floor = top - height
    axes.set_ylim(10**floor, 10 ** (top + 0.04 * height))
    foot, knee = floor + letters * height, floor + (letters + KNEE) * height
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "top", "fontsize": 10}
    places = spread([float(np.log10(x)) for x, _ in ordered], low, high)
    for place, (x, name) in zip(places, ordered, strict=True):
        highest = float(np.log10(max(points[x, name])))
        # From the name diagonally to the layer's position, then up through its marks.
        line = [10**place, x, x], [10**foot, 10**knee, 10**highest]
        axes.plot(*line, color=INK, linewidth=0.5, alpha=0.5, zorder=1)
        axes.text(10**place, 10 ** (foot - 0.01 * height), name, **style)


def spread(places: list[float], low: float, high: float, gap: float = 0.024) -> list[float]:
    """Spread sorted positions to distances of ``gap`` of the width, within it if there is room.

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
