"""Plots that compare our times with torch's: layers, networks, operators, memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reports.beside_torch import EAGER, by_network
from reports.figures import BAR, BARS, COLOURS, bars_by_layer, canvas, height_of
from reports.grids import times_text
from reports.rows import LayerRow
from reports.tables import Tables
from reports.verdicts import ratios
from tconv.extras import extra
from tconv.svg import INK, STYLE

with extra("reports"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours by Okabe and Ito, distinguishable with any colour vision; ours are the stronger ones.
BACKENDS = {
    "tconv": "#d55e00",
    "tconv graphed": "#e69f00",
    "torch": "#0072b2",
    "torch contiguous": "#56b4e9",
    "torch graphed": "#009e73",
    "torch.compile": "#cc79a7",
}
OPERATORS = {
    "convolution": "#0072b2",
    "pool": "#e69f00",
    "matrix product": "#009e73",
    "normalisation": "#cc79a7",
    "activation": "#f0e442",
    "optimizer": "#56b4e9",
    "copies and casts": "#d55e00",
    "other": "#999999",
}
SPREAD = 1.35  # axis length over the longest bar, to leave room for its label
MARKS = (0.1, 0.2, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50)  # ticks of a speed-up axis


def speedups(tables: Tables, suite: str) -> Figure | None:
    """Plot our speed-up over cuDNN as bars for channels_last and ticks for contiguous tensors."""
    rows = [row for row in tables.layers if row.suite == suite and row.times_nhwc]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, height_of(rows))
        for direction, held, at in bars_by_layer(axes, rows):
            _bars(axes, held, at, direction)
        axes.axvline(1, color=INK, linewidth=1, zorder=0)
        every = [*ratios(rows), *ratios(rows, contiguous=True), 1.0]
        low, high = min(every) / SPREAD, max(every) * SPREAD
        axes.set(xscale="log", xlim=(low, high))
        marks = [mark for mark in MARKS if low < mark < high]
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.minorticks_off()
        axes.set_xlabel("times as fast as torch, measured: left of 1 torch is faster")
        axes.set_title(f"{suite}: bars against channels_last, ticks against contiguous", pad=24)
    return figure


def _bars(axes: Axes, rows: Sequence[LayerRow], at: Sequence[float], direction: str) -> None:
    """Draw a bar from 1 to the ratio; losses are hatched so that they do not depend on colour."""
    times, colour = ratios(rows), COLOURS[direction]
    bars = axes.barh(at, [ratio - 1 for ratio in times], BAR, left=1, color=colour)
    for bar, ratio, y in zip(bars, times, at, strict=True):
        if ratio < 1:
            bar.set(facecolor="none", edgecolor=colour, hatch="////")
        side: Any = {"ha": "left" if ratio >= 1 else "right", "va": "center", "fontsize": 10}
        offset = (3 if ratio >= 1 else -3, 0)
        axes.annotate(times_text(ratio), (ratio, y), offset, textcoords="offset points", **side)
    plain = [(row.times_nchw, y) for row, y in zip(rows, at, strict=True) if row.times_nchw]
    axes.scatter(
        [x for x, _ in plain], [y for _, y in plain], marker="|", color=INK, s=60, zorder=3
    )


def networks(tables: Tables, mode: str) -> Figure | None:
    """Plot each backend's images per second over torch's, eager and channels_last."""
    grouped = {
        key: backends
        for key, backends in by_network(tables.networks).items()
        if key[1] == mode and EAGER in backends
    }
    if not grouped:
        return None
    named = [name for name in BACKENDS if any(name in held for held in grouped.values())]
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 1.8 + (0.24 * len(named) + 0.2) * len(grouped))
        step = 0.84 / len(named)
        for number, name in enumerate(named):
            bars = [
                (place + step * (number - (len(named) - 1) / 2), held[EAGER].ms / held[name].ms)
                for place, held in enumerate(grouped.values())
                if name in held
            ]
            at, lengths = zip(*bars, strict=True)
            drawn = axes.barh(at, lengths, 0.9 * step, color=BACKENDS[name], label=name)
            axes.bar_label(drawn, [times_text(length) for length in lengths], padding=3, fontsize=9)
        axes.axvline(1, color=INK, linewidth=1, zorder=0)
        labels = [f"{model}\nbatch {batch}, {dtype}" for model, _, batch, dtype in grouped]
        axes.set_yticks(range(len(grouped)), labels)
        axes.set_ylim(len(grouped) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("times as fast as torch (eager, channels_last), measured")
        axes.set_title(f"End to end, {mode}: measured", pad=40)
        where: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3}
        axes.legend(**where, frameon=False, labelcolor=INK, fontsize=10)
    return figure


def operators(tables: Tables, mode: str) -> Figure | None:
    """Plot where a network's time goes: one stacked bar for ours, one for torch's."""
    bars: dict[tuple[str, int, str, str], dict[str, float]] = {}
    for row in tables.operators:
        if row.mode == mode:
            key = (row.model, row.batch, row.dtype, row.backend)
            bars.setdefault(key, {})[row.operator] = row.ms
    if not bars:
        return None
    # Scale each network by its larger bar, so that small networks are readable beside large ones.
    longest: dict[tuple[str, int, str], float] = {}
    for (model, batch, dtype, _), parts in bars.items():
        whose = (model, batch, dtype)
        longest[whose] = max(longest.get(whose, 0.0), sum(parts.values()))
    kinds = [*OPERATORS, *sorted({k for parts in bars.values() for k in parts} - OPERATORS.keys())]
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 2 + 0.42 * len(bars))
        ends = [0.0] * len(bars)
        scale = [100 / longest[model, batch, dtype] for model, batch, dtype, _ in bars]
        for kind in kinds:
            lengths = [
                parts.get(kind, 0.0) * s for parts, s in zip(bars.values(), scale, strict=True)
            ]
            if any(lengths):
                colour = OPERATORS.get(kind, "#000000")
                axes.barh(range(len(bars)), lengths, 0.7, left=ends, color=colour, label=kind)
            ends = [end + length for end, length in zip(ends, lengths, strict=True)]
        for place, parts in enumerate(bars.values()):
            total = f"{sum(parts.values()):.3g} ms"
            axes.annotate(total, (ends[place], place), (3, 0), textcoords="offset points",
                          va="center", fontsize=10)  # fmt: skip
        labels = [f"{model}, batch {batch}: {who}" for model, batch, _, who in bars]
        axes.set_yticks(range(len(bars)), labels)
        axes.set(xlim=(0, 115), ylim=(len(bars) - 0.4, -0.6))
        axes.set_xlabel("measured time on the device, % of the slower of the two")
        axes.set_title(f"Where the time goes, {mode}: measured", pad=58)
        where: Any = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3}
        axes.legend(**where, frameon=False, labelcolor=INK, fontsize=10)
    return figure


def memory(tables: Tables) -> Figure | None:
    """Plot our peak memory over torch's, one bar per layer."""
    rows = [row for row in tables.memory if row.torch_peak_mib][:BARS]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 1.4 + 0.32 * len(rows))
        shares = [100 * row.tconv_peak_mib / row.torch_peak_mib for row in rows]
        drawn = axes.barh(range(len(rows)), shares, 0.7, color=BACKENDS["tconv"])
        axes.bar_label(drawn, [f"{share:.0f}%" for share in shares], padding=3, fontsize=10)
        axes.axvline(100, color=INK, linewidth=1, zorder=0)
        axes.set_yticks(range(len(rows)), [f"{row.suite} {row.layer}" for row in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.15 * max(100.0, *shares)))
        axes.set_xlabel("measured peak memory, % of torch's")
        axes.set_title("Memory of a layer's forward and backward pass: measured")
    return figure
