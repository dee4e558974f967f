"""Conclusions from the figures in words: the verdict, a layer's bound, and why a tile won."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import geometric_mean

from reports.rows import LayerRow, TrialRow, number_text
from reports.tables import Tables
from tconv.cost.constants import support
from tconv.families import matmul_shape
from tconv.problem import Problem
from tconv.tile import Tile

LEVEL = 1.02  # figures within this factor count as equal
CLEAR = 1.05  # least factor between two tiles to be named as a reason


def passed(trials: Iterable[TrialRow]) -> dict[str, list[TrialRow]]:
    """Return each problem's passing trials, fastest first."""
    grouped: dict[str, list[TrialRow]] = {}
    for trial in trials:
        if trial.status == "ok" and trial.ms is not None:
            grouped.setdefault(trial.problem, []).append(trial)
    return {key: sorted(group, key=lambda t: t.ms or 0.0) for key, group in grouped.items()}


def ratios(rows: Iterable[LayerRow], contiguous: bool = False) -> list[float]:
    """Return the speed-ups over torch's operators of all rows that have one."""
    all_ratios = (row.times_nchw if contiguous else row.times_nhwc for row in rows)
    return [ratio for ratio in all_ratios if ratio]


def predictions_and_times(trials: Iterable[TrialRow]) -> dict[str, list[tuple[float, float]]]:
    """Return, by problem, each candidate's prediction before compilation and its time."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        if trial.status == "ok" and trial.ms and trial.ranked_ms:
            pairs.setdefault(trial.problem, []).append((trial.ranked_ms, trial.ms))
    return pairs


def side_of_roofline(row: LayerRow, tables: Tables) -> str:
    """Return the roof that limits the layer: arithmetic or memory."""
    if row.filters is None or row.dtype not in tables.about.peaks:
        return ""
    problem, machine = row.problem, tables.about.machine
    compute = machine.compute_seconds(problem.geometry.flops, problem.arithmetic)
    return "arithmetic" if compute >= machine.memory_seconds(problem.least_bytes) else "memory"


def reason_it_won(best: TrialRow, second: TrialRow | None) -> str:
    """Explain why the winner beat the runner-up, by the factor in which they differ most."""
    if second is None or second.ms is None or best.ms is None:
        return "the only candidate that passed"
    family = "" if second.family == best.family else f"{second.family} "
    rival = f"{family}{second.tile} ({number_text(second.ms)} ms)"
    if second.error_fp64 is None and second.ms < best.ms:
        return f"{rival} is faster, but its results were not checked"
    if second.ms <= best.ms * LEVEL:
        return f"level with {rival}"
    ours, theirs = _factors(best), _factors(second)
    gains = {name: theirs[name] / ours[name] for name in ours.keys() & theirs.keys()}
    name = max(sorted(gains), key=lambda name: gains[name], default="")
    if not name or gains[name] < CLEAR:
        return f"over {rival}: no single cause"
    return f"over {rival}: {name}"


def _factors(trial: TrialRow) -> dict[str, float]:
    """Return factors that slow a tile down, keyed by the advantage of a small factor."""
    problem, tile = Problem.from_key(trial.problem), Tile.parse(trial.tile)
    product = matmul_shape(problem, trial.family)
    covered = product.row_tiles(tile) * tile.block_m * product.column_tiles(tile) * tile.block_n
    depth = math.ceil(product.depth / tile.block_k) * tile.block_k
    useful = product.rows * product.columns * product.depth
    factors = {"more outputs per operand read": 1 / tile.block_m + 1 / tile.block_n}
    if useful:
        factors["fewer masked products"] = covered * depth / useful
    if trial.waves:
        factors["fuller waves of programs"] = math.ceil(trial.waves) / trial.waves
    if trial.occupancy:
        factors["more warps to hide latency"] = 1 / trial.occupancy
    if trial.instructions:
        work = tile.block_m * tile.block_n * tile.block_k
        factors["fewer instructions per product"] = trial.instructions * tile.warps / work
    if trial.spill_bytes is not None:
        factors["fewer spills"] = 1.0 + trial.spill_bytes
    return factors


def suites(tables: Tables) -> list[str]:
    return list(dict.fromkeys(row.suite for row in tables.layers))


def name_of(row: LayerRow, tables: Tables) -> str:
    """Return the layer's name, with its suite if there are several."""
    return row.layer if len(suites(tables)) < 2 else f"{row.suite} {row.layer}"


def verdict(tables: Tables) -> str:
    """Summarise in a sentence or two how close the layers come to the roofline."""
    about = tables.about
    ranked = [row for row in tables.layers if row.roofline_share]
    if not ranked:
        return f"No candidate has passed on {about.product} yet: there is no {about.kind} figure."
    best = max(ranked, key=lambda row: row.roofline_share or 0.0)
    worst = min(ranked, key=lambda row: row.roofline_share or 0.0)
    mean = geometric_mean([row.roofline_share or 1.0 for row in ranked])
    reach = "are predicted to reach" if about.kind == "predicted" else "reach, as measured,"
    absent = ""
    if about.kind == "predicted":
        absent = f" No GPU was used. {support(about.machine)}"
    return (
        f"On {about.product}, the tiles chosen for {len(ranked)} layer passes of "
        f"{' and '.join(suites(tables))} {reach} {mean:.0%} of the roofline (geometric mean), "
        f"from {worst.roofline_share:.1%} ({name_of(worst, tables)}, {worst.direction}) to "
        f"{best.roofline_share:.1%} ({name_of(best, tables)}, {best.direction}).{absent}"
    )
