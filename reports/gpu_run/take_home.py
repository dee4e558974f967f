"""What leaves the GPU: winners to ship, traces to replay, fitted constants, the report, a table."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.table import Table

from autotune.calibrate import CalibrationError, calibrate
from autotune.ship import export_winners, record_spaces
from autotune.suites import suite
from autotune.trial import Trial
from autotune.trial_store import Store
from reports.collect import collect
from reports.goals import goals_grid
from reports.gpu_run.predictions import compared, file_of, page, read_predictions
from reports.gpu_run.state import State
from reports.gpu_run.steps import TRACED, Context
from reports.render import render
from reports.tables import HEAD, Tables, merged, read_tables
from tconv.cost.constants import user_constants, write_calibrated
from tconv.problem import Problem
from tconv.target import TARGETS, Target
from tconv.winners import TableError

LEAST_TRACE = 100  # candidates: fewer are a tune's, not a trace


def take_home(context: Context) -> list[str]:
    """Write all of it into the run's folder; a line for each thing, and for what is lacking."""
    name = context.target.name
    with Store() as store:
        trials = list(store.trials(name, "measured"))
    told = []
    try:
        count = export_winners(name, context.out / "shipped" / f"{name}.json")
        told.append(f"{count} winners: shipped/{name}.json")
    except TableError as error:
        told.append(f"no winners: {error}")
    written = record_spaces(_traced(trials), context.out / "spaces")
    told.append(f"{len(written)} traces: spaces/")
    told.append(_calibrated(trials, context.target))
    tables = tables_of(context, trials)
    if tables is None:
        return [*told, "nothing to report yet"]
    index = render(tables, context.out / "report")[0]
    told.append(_predicted(context, tables))
    return [*told, f"report: {index}"]


def _predicted(context: Context, tables: Tables) -> str:
    """The page that holds the predictions against what was measured after them."""
    name = "nvidia-h200" if context.rehearse else context.target.name
    path = file_of(context.out, name)
    if not path.exists():
        return f"no predictions were made for {name}"
    found = compared(read_predictions(path), tables.layers)
    (context.out / "report" / "predicted.md").write_text(
        page(found, context.target.product), encoding="utf-8"
    )
    return f"{len(found)} predictions beside measurements: report/predicted.md"


def _traced(trials: list[Trial]) -> list[Trial]:
    """Those of the problems that were tried in full."""
    wanted = {
        Problem(layer.geometry, direction)
        for network, name, direction in TRACED
        for layer in suite(network)
        if layer.name == name
    }
    found: dict[Problem, list[Trial]] = {}
    for trial in trials:
        if trial.problem in wanted:
            found.setdefault(trial.problem, []).append(trial)
    return [trial for held in found.values() if len(held) >= LEAST_TRACE for trial in held]


def _calibrated(trials: list[Trial], target: Target) -> str:
    """The cost model's constants, fitted to what was measured."""
    try:
        found = calibrate(trials, target)
    except CalibrationError as error:
        return f"constants stay as they are: {error}"
    path = user_constants(target.name)
    write_calibrated(path, target.name, found.calibrated, found.trials)
    return (
        f"constants fitted to {found.trials} trials: error {found.error_before:.3f} to "
        f"{found.error_after:.3f} (rms of ln), rank correlation {found.rank_before:.3f} to "
        f"{found.rank_after:.3f}, held out"
    )


def tables_of(context: Context, trials: list[Trial]) -> Tables | None:
    """The report's content: what was tuned, and what was measured beside cuDNN."""
    folder = context.out / "bench" / context.target.name
    benched = read_tables(folder) if (folder / HEAD).exists() else None
    # A rehearsal's candidates were compiled for a GPU that is not there.
    target = TARGETS["sm_90"] if context.rehearse else context.target
    own = [trial for trial in trials if trial.target == context.target.name]
    tuned = None
    if own:
        named = replace(target, name=context.target.name)
        tuned = collect(own, named, "measured", ("python -m reports.gpu_run --out DIR",))
    return merged(tuned, benched) if tuned or benched else None


def summary(state: State, tables: Tables | None, console: Console) -> None:
    """A short table: how each step stands, and the goals that have figures."""
    table = Table("step", "done", "failed", "unfinished", "cannot be done here", "seconds")
    for step, parts in state.parts.items():
        counts = [sum(part.outcome == outcome for part in parts.values())
                  for outcome in ("done", "failed", "unfinished", "cannot")]  # fmt: skip
        seconds = sum(part.seconds for part in parts.values())
        table.add_row(step, *map(str, counts), f"{seconds:.0f}")
    console.print(table)
    for label, part in state.troubles():
        if part.outcome != "cannot":
            console.print(f"{part.outcome}: {label}: {part.note[-300:]}", markup=False)
    if tables is None:
        return
    grid = goals_grid(tables)
    goals = Table(*grid.headings)
    for row in grid.rows:
        if "not measured" not in row:
            goals.add_row(*row)
    if goals.row_count:
        console.print(goals)
