"""Convert the tuner's trials to typed rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import product

from autotune.counted import Counted
from autotune.suites import SUITES
from autotune.suites import names as suite_names
from autotune.suites import suite as layers_of
from autotune.trial import Trial
from reports.layer_rows import conv_row, with_time
from reports.report_head import About
from reports.rows import (
    LayerRow,
    MapRow,
    SpaceRow,
    TrialRow,
    rounded,
)
from reports.tables import Tables
from tconv.cost.model import predict
from tconv.cost.space import candidates, rules_report
from tconv.extras import extra
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.target import Target
from tconv.winners import Kind

with extra("reports"):
    from attrs import evolve

OTHER = "other"  # the suite's name for layers that no suite has
MAPPED = 2  # problems with a full tile map; each map runs the model over the whole space


@dataclass(frozen=True)
class Named:
    """A problem and the names that a report uses for it."""

    suite: str
    layer: str
    problem: Problem


def name_problems(problems: Iterable[Problem]) -> list[Named]:
    """Sort ``problems`` by suite, dtype, batch, layer and pass; problems of no suite come last.

    Networks share layers, so a suite is named only if it holds a problem that earlier suites do
    not. Suites whose layers are all present come first, and among these the ones that ``tune``
    tunes by default.
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
    # stable sort: ties keep the order of preference
    for suite in sorted(preferred, key=lambda name: shares[name] < 1):
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
    """Group the trials of the newest kernels and versions by problem, in search order."""
    grouped: dict[Problem, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(trial.problem, []).append(trial)
    kept: dict[Problem, list[Trial]] = {}
    for problem, group in grouped.items():
        newest = (group[-1].versions, group[-1].source)
        same = [trial for trial in group if (trial.versions, trial.source) == newest]
        distinct = {(trial.family, trial.tile): trial for trial in same}.values()
        # The store moves a trial to the end when it is checked, so sort by the recorded turn.
        kept[problem] = sorted(distinct, key=_turn)
    return kept


def _turn(trial: Trial) -> tuple[float, float]:
    """Sort key: the turn in the search; for trials outside a search, the model's order."""
    turn = math.inf if trial.turn is None else trial.turn
    return turn, trial.ranked_milliseconds or 0.0


def winner(trials: Iterable[Trial]) -> Trial | None:
    """Return the fastest trial that passed; as in the tuner, an unchecked result cannot win."""
    passed = [t for t in trials if t.status == "ok" and t.error_fp64 is not None and t.milliseconds]
    return min(passed, key=lambda trial: trial.milliseconds or 0.0, default=None)


def collect(
    trials: Iterable[Trial], target: Target, kind: Kind, commands: tuple[str, ...] = ()
) -> Tables:
    """Return the rows of a report on ``target``.

    Problems without a passing trial have no layer row but keep their trials.

    Raises:
        LookupError: if there is no trial of this target and kind.
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
    assert best.milliseconds is not None
    row = conv_row(entry.suite, entry.layer, entry.problem, best.choice, best.kind)
    timed = with_time(row, target, best.milliseconds, best.p20, best.p80)
    return evolve(timed, error_fp64=rounded(best.error_fp64))


def _trial_row(trial: Trial, target: Target) -> TrialRow:
    taken = trial.resources
    row = TrialRow(
        trial.problem.key,
        trial.family,
        str(trial.tile),
        trial.kind,
        trial.status,
        rounded(trial.ranked_milliseconds),
        rounded(trial.milliseconds) if trial.status == "ok" else None,
        rounded(trial.error_fp64),
        checked=trial.checked,
    )
    if trial.counters:
        counted = Counted.of(trial.counters)
        row = evolve(
            row,
            emulated_instructions=rounded(counted.instructions),
            emulated_kinds=counted.kinds,
            emulated_global_bytes=rounded(counted.global_bytes),
            emulated_sectors=rounded(counted.sectors),
            emulated_bank_conflicts=rounded(counted.bank_conflicts),
            emulated_tma_bytes=rounded(counted.tma_bytes),
            emulated_barriers=rounded(counted.barriers),
        )
    if taken is None:
        return row
    account = predict(trial.problem, trial.choice, target, taken)
    occupancy = trial.occupancy if trial.occupancy is not None else account.occupancy
    return evolve(
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
    """Return the tile maps of the layers with the most work, one for each of ``MAPPED`` passes."""
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
            evolve(best[cell], ranked_ms=rounded(best[cell].ranked_ms)) for cell in sorted(best)
        ]
    return rows
