"""Plots of the tuner's work: its progress, a map of tiles, and predictions against measurements."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any

import numpy as np

from reports.figures import COLOURS, canvas
from reports.rows import number_text
from reports.tables import Tables
from reports.verdicts import predictions_and_times
from tconv.extras import extra
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.svg import INK, STYLE
from tconv.tile import Tile

with extra("reports"):
    import matplotlib as mpl
    from matplotlib.figure import Figure

CURVES = 120  # most problems in one plot of curves


def progress(tables: Tables) -> Figure | None:
    """Plot the best figure so far over the final best, against candidates tried."""
    curves = best_so_far(tables)
    if not curves:
        return None
    kind, longest = tables.about.kind, max(len(curve) for curve in curves.values())
    padded = {key: curve + curve[-1:] * (longest - len(curve)) for key, curve in curves.items()}
    steps = range(1, longest + 1)
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 4.6)
        for key, curve in list(padded.items())[:CURVES]:
            axes.plot(steps, curve, color=COLOURS[key.split("/")[0]], alpha=0.35, linewidth=1)
        means = [geometric_mean([curve[i] for curve in padded.values()]) for i in range(longest)]
        axes.plot(steps, means, color=INK, linewidth=2.5, label="geometric mean of all")
        for direction in PASSES:
            axes.plot([], [], color=COLOURS[direction], label=f"one problem, {direction}")
        axes.set_xlabel("candidates in search order, failures included")
        axes.set_ylabel(f"{kind} ms over the final best")
        axes.set_title(f"Best so far: {kind} time against candidates tried")
        axes.set_xticks(range(1, longest + 1, max(1, longest // 16)))
        axes.legend(frameon=False, labelcolor=INK)
    return figure


def best_so_far(tables: Tables) -> dict[str, list[float]]:
    """Return, by problem, the best time so far over the best of all, after each trial.

    Before the first success, that success's time is used.
    """
    times: dict[str, list[float | None]] = {}
    for trial in tables.trials:
        times.setdefault(trial.problem, []).append(trial.ms if trial.status == "ok" else None)
    curves: dict[str, list[float]] = {}
    for key, series in times.items():
        passed = [ms for ms in series if ms]
        if not passed:
            continue
        best, curve = passed[0], []
        for ms in series:
            best = min(best, ms) if ms else best
            curve.append(best / min(passed))
        curves[key] = curve
    return curves


def mapped_problems(tables: Tables) -> list[str]:
    return list(dict.fromkeys(cell.problem for cell in tables.map))


def tile_map(tables: Tables, key: str) -> Figure | None:
    """Plot the best time in milliseconds of all tiles with each block_m and block_n."""
    cells = _map_cells(tables, key)
    if not cells:
        return None
    kind, problem = tables.about.kind, Problem.from_key(key)
    rows, columns = sorted({m for m, _ in cells}), sorted({n for _, n in cells})
    logs = np.full((len(rows), len(columns)), np.nan)
    for (block_m, block_n), ms in cells.items():
        logs[rows.index(block_m), columns.index(block_n)] = np.log(ms)
    won = next((r.tile for r in tables.layers if r.filters and r.problem.key == key), None)
    chosen = (Tile.parse(won).block_m, Tile.parse(won).block_n) if won else None
    middle = (np.nanmin(logs) + np.nanmax(logs)) / 2
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 1.8 + 0.5 * len(rows))
        edges = (np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5)
        axes.pcolormesh(*edges, logs, cmap="cividis_r")  # imshow would embed a raster image
        axes.invert_yaxis()
        for cell, ms in cells.items():
            ink = "#ffffff" if np.log(ms) > middle else "#000000"
            text = number_text(float(f"{ms:.3g}")) + (" (winner)" if cell == chosen else "")
            at = columns.index(cell[1]), rows.index(cell[0])
            weight = "bold" if cell == chosen else "normal"
            axes.text(*at, text, ha="center", va="center", color=ink, fontsize=10, weight=weight)
        axes.set_xticks(range(len(columns)), [str(value) for value in columns])
        axes.set_yticks(range(len(rows)), [str(value) for value in rows])
        axes.set(xlabel="block_n", ylabel="block_m")
        shape = problem.geometry
        where = f"{problem.direction}, {shape.input_volume}, {shape.describe()}"
        axes.set_title(f"Tile map, {kind} ms: {where}")
    return figure


def _map_cells(tables: Tables, key: str) -> dict[tuple[int, int], float]:
    """Return the cells: predictions of the whole space, or only what was measured."""
    if tables.about.kind == "predicted":
        chosen = (cell for cell in tables.map if cell.problem == key)
        return {(cell.block_m, cell.block_n): cell.ranked_ms for cell in chosen}
    cells: dict[tuple[int, int], float] = {}
    for trial in tables.trials:
        if trial.problem == key and trial.status == "ok" and trial.ms:
            tile = Tile.parse(trial.tile)
            at = tile.block_m, tile.block_n
            cells[at] = min(trial.ms, cells.get(at, trial.ms))
    return cells


def prediction(tables: Tables) -> Figure | None:
    """Plot each candidate's measured time against the model's prediction before compilation."""
    pairs = predictions_and_times(tables.trials)
    if tables.about.kind != "measured" or not pairs:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(10, 6)
        axes.set(xscale="log", yscale="log")
        for direction in PASSES:
            chosen = [pair for key, held in pairs.items() if key.startswith(f"{direction}/")
                      for pair in held]  # fmt: skip
            if chosen:
                model_ms, measured_ms = zip(*chosen, strict=True)
                look: Any = {"s": 12, "alpha": 0.5, "linewidths": 0}
                axes.scatter(
                    model_ms, measured_ms, color=COLOURS[direction], label=direction, **look
                )
        every = [ms for held in pairs.values() for pair in held for ms in pair]
        ends = [min(every), max(every)]
        axes.plot(ends, ends, color=INK, linewidth=1, label="equal")
        axes.set_xlabel("the model's ms, before compilation")
        axes.set_ylabel("measured ms")
        axes.set_title("The model's ms and the measured ms: one mark per candidate")
        axes.legend(frameon=False, labelcolor=INK)
    return figure
