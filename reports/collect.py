"""From the tuner's trials to typed rows; everything a report shows goes through here.

``Tables`` is the whole of a report: a folder of CSV files and ``about.json`` holds the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

from autotune.suites import SUITES
from autotune.suites import names as suite_names
from autotune.suites import suite as layers_of
from autotune.trial import Trial
from reports.about import About, read_about, write_about
from reports.rows import (
    LayerRow,
    MapRow,
    RowError,
    SpaceRow,
    TrialRow,
    pair_text,
    read_rows,
    rounded,
    write_rows,
)
from tconv.cost.model import predict
from tconv.cost.space import candidates, rules_report
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.table import Kind
from tconv.target import Target

OTHER = "other"  # stands for a suite where none has the layer
MAPPED = 2  # problems whose whole tile map is kept: each takes a model run over the space


@dataclass(frozen=True)
class Named:
    """A problem under the names that a report calls it by."""

    suite: str
    layer: str
    problem: Problem


@dataclass(frozen=True)
class Tables:
    """All that a report is rendered from."""

    about: About
    layers: list[LayerRow]
    trials: list[TrialRow]
    space: list[SpaceRow]
    map: list[MapRow]


def name_problems(problems: Iterable[Problem]) -> list[Named]:
    """``problems`` by suite, dtype, batch, layer and pass; what no suite has comes last.

    Networks share layers. A suite is named where it holds a problem that those before it do not:
    first those all of whose layers are here, and of them those that a plain ``tune`` tunes.
    """
    wanted = set(problems)
    kinds = sorted({(p.dtype, p.precision, p.layout, p.geometry.batch) for p in wanted})
    found: dict[str, list[Named]] = {}
    shares: dict[str, float] = {}
    for suite in suite_names():
        held: list[Named] = []
        for dtype, precision, layout, batch in kinds:
            layers = layers_of(suite, batch)
            for layer, direction in product(layers, PASSES):
                problem = Problem(layer.geometry, direction, dtype, layout, precision)
                if problem in wanted:
                    held.append(Named(suite, layer.name, problem))
        of = {layer.geometry for *_, batch in kinds for layer in layers_of(suite, batch)}
        shares[suite] = len({entry.problem.geometry for entry in held}) / len(of) if of else 0.0
        found[suite] = held
    preferred = [*SUITES, *(name for name in found if name not in SUITES)]
    names: list[Named] = []
    named: set[Problem] = set()
    for suite in sorted(preferred, key=lambda name: shares[name] < 1):  # stable: ties by preference
        held = found[suite]
        if not named.issuperset(entry.problem for entry in held):
            names += held
            named.update(entry.problem for entry in held)
    for problem in sorted(wanted - named, key=_order):
        shape = problem.geometry
        names.append(Named(OTHER, f"{shape.input_volume} {shape.describe()}", problem))
    return names


def _order(problem: Problem) -> tuple[str, int]:
    return problem.key.partition("/")[2], PASSES.index(problem.direction)


def latest(trials: Iterable[Trial]) -> dict[Problem, list[Trial]]:
    """Trials of the newest kernels and versions by problem, in the order of the ranking."""
    grouped: dict[Problem, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(trial.problem, []).append(trial)
    kept: dict[Problem, list[Trial]] = {}
    for problem, group in grouped.items():
        newest = (group[-1].versions, group[-1].source)
        same = [trial for trial in group if (trial.versions, trial.source) == newest]
        distinct = {(trial.algorithm, trial.tile): trial for trial in same}.values()
        # The store moves a trial to the end when it is checked: the model's order is not lost.
        kept[problem] = sorted(distinct, key=lambda trial: trial.ranked_milliseconds or 0.0)
    return kept


def winner(trials: Iterable[Trial]) -> Trial | None:
    """The fastest that passed; as in the tuner, one whose result was never checked cannot win."""
    passed = [t for t in trials if t.status == "ok" and t.error_fp64 is not None and t.milliseconds]
    return min(passed, key=lambda trial: trial.milliseconds or 0.0, default=None)


def collect(
    trials: Iterable[Trial], target: Target, kind: Kind, commands: tuple[str, ...] = ()
) -> Tables:
    """The rows of a report on ``target``.

    Problems without a trial that passed have no layer row, but keep their trials.

    Raises:
        LookupError: where there is no trial of this target and kind.
    """
    found = latest(t for t in trials if t.target == target.name and t.kind == kind)
    if not found:
        raise LookupError(f"no {kind} trials for {target.name}")
    layers = [
        _layer_row(entry, best, target)
        for entry in name_problems(found)
        if (best := winner(found[entry.problem])) is not None
    ]
    versions = sorted({trial.versions for group in found.values() for trial in group} - {""})
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return Tables(
        About.of(target, kind, "; ".join(versions), date, commands),
        layers,
        [_trial_row(trial, target) for group in found.values() for trial in group],
        [row for problem in found for row in _space_rows(problem, target)],
        _map_rows(layers, target),
    )


def _layer_row(entry: Named, best: Trial, target: Target) -> LayerRow:
    problem, shape = entry.problem, entry.problem.geometry
    assert best.milliseconds is not None
    seconds = best.milliseconds / 1e3
    least = target.roofline_seconds(shape.flops, problem.least_bytes, problem.arithmetic)
    return LayerRow(
        suite=entry.suite,
        layer=entry.layer,
        direction=problem.direction,
        dtype=problem.arithmetic,
        batch=shape.batch,
        in_channels=shape.in_channels,
        in_h=shape.in_h,
        in_w=shape.in_w,
        filters=shape.out_channels,
        filter_h=shape.filter_h,
        filter_w=shape.filter_w,
        stride=pair_text(shape.stride_h, shape.stride_w),
        padding=pair_text(shape.pad_h, shape.pad_w),
        dilation=pair_text(shape.dilation_h, shape.dilation_w),
        groups=shape.groups,
        algorithm=best.algorithm,
        tile=str(best.tile),
        kind=best.kind,
        tconv_ms=rounded(best.milliseconds),
        tconv_ms_p20=rounded(best.p20),
        tconv_ms_p80=rounded(best.p80),
        tflops=rounded(shape.flops / seconds / 1e12),
        gbps=rounded(problem.least_bytes / seconds / 1e9),
        roofline_share=rounded(least / seconds),
        error_fp64=rounded(best.error_fp64),
    )


def _trial_row(trial: Trial, target: Target) -> TrialRow:
    taken = trial.resources
    row = TrialRow(
        trial.problem.key,
        trial.algorithm,
        str(trial.tile),
        trial.kind,
        trial.status,
        rounded(trial.ranked_milliseconds),
        rounded(trial.milliseconds) if trial.status == "ok" else None,
        rounded(trial.error_fp64),
    )
    if taken is None:
        return row
    account = predict(trial.problem, trial.choice, target, taken)
    occupancy = trial.occupancy if trial.occupancy is not None else account.occupancy
    return replace(
        row,
        registers=taken.registers,
        spill_bytes=taken.spill_bytes,
        shared_bytes=taken.shared_bytes,
        occupancy=rounded(occupancy),
        instructions=taken.instructions,
        programs=account.programs,
        waves=rounded(account.waves) if math.isfinite(account.waves) else None,
        bound=account.bound,
    )


def _space_rows(problem: Problem, target: Target) -> list[SpaceRow]:
    return [SpaceRow(problem.key, rule, left) for rule, left in rules_report(problem, target)]


def _map_rows(layers: Sequence[LayerRow], target: Target) -> list[MapRow]:
    """The tile maps of the layers with most work, one for each of ``MAPPED`` passes."""
    rows: list[MapRow] = []
    for direction in PASSES[:MAPPED]:
        same = [row.problem for row in layers if row.direction == direction]
        if not same:
            continue
        problem = max(same, key=lambda problem: problem.geometry.flops)
        best: dict[tuple[int, int], MapRow] = {}
        for choice in candidates(problem, target):
            ms = predict(problem, choice, target).milliseconds
            cell = (choice.tile.block_m, choice.tile.block_n)
            if math.isfinite(ms) and (cell not in best or ms < best[cell].ranked_ms):
                best[cell] = MapRow(problem.key, *cell, str(choice.tile), ms)
        rows += [
            replace(best[cell], ranked_ms=rounded(best[cell].ranked_ms)) for cell in sorted(best)
        ]
    return rows


def write_tables(folder: Path, tables: Tables) -> None:
    """The tables as ``layers.csv``, ``trials.csv``, ``space.csv``, ``map.csv``, ``about.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "layers.csv", LayerRow, tables.layers)
    write_rows(folder / "trials.csv", TrialRow, tables.trials)
    write_rows(folder / "space.csv", SpaceRow, tables.space)
    write_rows(folder / "map.csv", MapRow, tables.map)
    write_about(folder / "about.json", tables.about)


def read_tables(folder: Path) -> Tables:
    """A report's tables as ``write_tables`` left them; the tuner's story may be missing.

    Raises:
        RowError: naming file, row and column of what cannot be used, or of a number whose
            kind is not the report's.
    """
    about = read_about(folder / "about.json")
    layers_path, trials_path = folder / "layers.csv", folder / "trials.csv"
    space_path, map_path = folder / "space.csv", folder / "map.csv"
    layers = read_rows(layers_path, LayerRow)
    trials = read_rows(trials_path, TrialRow) if trials_path.exists() else []
    tagged = ((layers_path, [r.kind for r in layers]), (trials_path, [r.kind for r in trials]))
    for path, kinds in tagged:
        for number, kind in enumerate(kinds, 1):
            if kind != about.kind:
                raise RowError(
                    f"{path}: row {number}, column kind: {kind} stands in a report of "
                    f"{about.kind} figures; the two never mix"
                )
    space = read_rows(space_path, SpaceRow) if space_path.exists() else []
    cells = read_rows(map_path, MapRow) if map_path.exists() else []
    return Tables(about, layers, trials, space, cells)
