"""Results to take home from a GPU: winners, traces, fitted constants, the report, a summary."""

from __future__ import annotations

from dataclasses import replace

from autotune.calibrate import CalibrationError, calibrate
from autotune.ship import export_winners, record_spaces
from autotune.suites import suite
from autotune.trial import Trial
from autotune.trial_store import Store
from reports.collect import collect
from reports.goals import goals_grid
from reports.gpu_run.predictions import Predicted, compared, file_of, page
from reports.gpu_run.state import State
from reports.gpu_run.steps import TRACED, Context
from reports.render import render
from reports.row_files import read_rows
from reports.tables import HEAD, Tables, merged, read_tables
from tconv.cost.constants import user_constants, write_calibrated
from tconv.extras import extra
from tconv.problem import Problem
from tconv.target import TARGETS, Target
from tconv.winners import TableError

with extra("reports"):
    from rich.console import Console
    from rich.table import Table

LEAST_TRACE = 100  # candidates; a problem with fewer was tuned, not traced


def take_home(context: Context) -> list[str]:
    """Write all results into the run's folder; return a line for each, present or missing."""
    name = context.target.name
    with Store() as store:
        trials = list(store.trials(name, "measured"))
    notes = []
    try:
        count = export_winners(name, context.out / "shipped" / f"{name}.json")
        notes.append(f"{count} winners: shipped/{name}.json")
    except TableError as error:
        notes.append(f"no winners: {error}")
    written = record_spaces(_traced(trials), context.out / "spaces")
    notes.append(f"{len(written)} traces: spaces/")
    notes.append(_calibrated(trials, context.target))
    tables = tables_of(context, trials)
    if tables is None:
        return [*notes, "nothing to report yet"]
    index = render(tables, context.out / "report")[0]
    notes.append(_predicted(context, tables))
    return [*notes, f"report: {index}"]


def _predicted(context: Context, tables: Tables) -> str:
    """Write the page that compares the predictions with later measurements."""
    name = "nvidia-h200" if context.rehearse else context.target.name
    path = file_of(context.out, name)
    if not path.exists():
        return f"no predictions were made for {name}"
    found = compared(read_rows(path, Predicted), tables.layers)
    (context.out / "report" / "predicted.md").write_text(
        page(found, context.target.product), encoding="utf-8"
    )
    return f"{len(found)} predictions beside measurements: report/predicted.md"


def _traced(trials: list[Trial]) -> list[Trial]:
    """Return the trials of the problems that were tried in full."""
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
    """Fit the cost model's constants to the measurements."""
    try:
        found = calibrate(trials, target)
    except CalibrationError as error:
        return f"constants stay as they are: {error}"
    path = user_constants(target.name)
    write_calibrated(path, target.name, found.calibrated)
    return (
        f"constants fitted to {found.trials} trials: error {found.error_before:.3f} to "
        f"{found.error_after:.3f} (rms of ln), rank correlation {found.rank_before:.3f} to "
        f"{found.rank_after:.3f}, held out"
    )


def tables_of(context: Context, trials: list[Trial]) -> Tables | None:
    """Return the report's content: tuning results and measurements beside cuDNN."""
    folder = context.out / "bench" / context.target.name
    benched = read_tables(folder) if (folder / HEAD).exists() else None
    # A rehearsal compiles its candidates for an absent GPU.
    target = TARGETS["sm_90"] if context.rehearse else context.target
    own = [trial for trial in trials if trial.target == context.target.name]
    tuned = None
    if own:
        named = replace(target, name=context.target.name)
        tuned = collect(own, named, "measured", ("python -m reports.gpu_run --out DIR",))
    return merged(tuned, benched) if tuned or benched else None


def summary(state: State, tables: Tables | None, console: Console) -> None:
    """Return a short table of each step's state and of the goals with figures."""
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
