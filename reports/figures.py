"""The report's bar charts.

Marks use Okabe and Ito's colours, distinguishable with any colour vision, and each has its own
shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from reports.rows import LayerRow
from reports.tables import Tables
from tconv.extras import extra
from tconv.geometry import PASSES
from tconv.svg import INK, STYLE

with extra("reports"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

COLOURS = {"fprop": "#0072b2", "dgrad": "#d55e00", "wgrad": "#009e73"}
BARS = 60  # most layers in one bar chart
# bar height and distance between bars, in units of the distance between layers
BAR, STEP = 0.25, 0.27


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty plot of the given size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def bars_by_layer(
    axes: Axes, rows: Sequence[LayerRow]
) -> Iterator[tuple[str, list[LayerRow], list[float]]]:
    """Yield each pass with its rows and bar positions: one group per layer, named on the axis.

    At most ``BARS`` layers are shown; the legend is above the plot.
    """
    layers = list(dict.fromkeys((row.layer, row.dtype, row.batch) for row in rows))[:BARS]
    place = {layer: index for index, layer in enumerate(layers)}
    shown = [row for row in rows if (row.layer, row.dtype, row.batch) in place]
    used = [direction for direction in PASSES if any(r.direction == direction for r in shown)]
    for number, direction in enumerate(used):
        held = [row for row in shown if row.direction == direction]
        offset = STEP * (number - (len(used) - 1) / 2)
        yield direction, held, [place[r.layer, r.dtype, r.batch] + offset for r in held]
    several = len({row.dtype for row in shown}) > 1
    names = [f"{name} {dtype}" if several else name for name, dtype, _ in layers]
    axes.set_yticks(range(len(layers)), names)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    where: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(used)}
    marks = [Patch(color=COLOURS[direction], label=direction) for direction in used]
    axes.legend(handles=marks, **where, frameon=False, labelcolor=INK)


def height_of(rows: Sequence[LayerRow]) -> float:
    """Return the inches that the bars of ``rows`` take."""
    layers = {(row.layer, row.dtype, row.batch) for row in rows}
    return 1.6 + 0.62 * min(len(layers), BARS)


def shares(tables: Tables, suite: str) -> Figure | None:
    """Plot the share of the roofline as one group of bars per layer."""
    rows = [row for row in tables.layers if row.suite == suite and row.roofline_share]
    if not rows:
        return None
    kind = tables.about.kind
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, height_of(rows))
        for direction, held, at in bars_by_layer(axes, rows):
            lengths = [100 * (row.roofline_share or 0.0) for row in held]
            marks = axes.barh(at, lengths, BAR, color=COLOURS[direction])
            axes.bar_label(marks, [f"{length:.3g}%" for length in lengths], padding=3, fontsize=10)
        axes.set(xlim=(0, 100), xlabel=f"{kind} share of the roofline, %")
        axes.set_title(f"{suite}: share of the roofline by layer, {kind}", pad=24)
    return figure
