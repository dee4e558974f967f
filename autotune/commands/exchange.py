"""Commands on results: exchange winners, record spaces and replay a search on them."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

from autotune import show
from autotune.commands.options import (
    StoredOption,
    fail,
    known,
    positive,
    stored_target,
    stored_trials,
)
from autotune.strategies import DEFAULT, STRATEGIES
from tconv.extras import extra
from tconv.files import in_checkout
from tconv.winners import TableError, shipped_table

with extra("tune"):
    import typer
    from rich.console import Console


def export(
    target: StoredOption = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File; default: tconv/tuned/GPU.json or ./GPU.json."),
    ] = None,
) -> None:
    """Write a GPU's measured winners to a data file that the library can ship."""
    from autotune.ship import export_winners

    name = stored_target(target)
    path = to or (shipped_table(name) if in_checkout() else Path(f"{name}.json"))
    try:
        count = export_winners(name, path)
    except (TableError, OSError) as error:
        fail(str(error))
    typer.echo(f"{count} measured winners of {name}: {path}")


def import_(
    file: Annotated[Path, typer.Argument(help="Winners exported on another machine.")],
) -> None:
    """Import another machine's winners; winners measured here are kept."""
    from autotune.ship import import_winners

    try:
        done = import_winners(file)
    except (TableError, OSError) as error:
        fail(str(error))
    typer.echo(f"{done.target}: {done.taken} winners imported, {done.kept} kept unchanged")


def record(
    folder: Annotated[Path, typer.Argument(help="Output folder, one CSV per problem.")],
    target: StoredOption = None,
    predicted: Annotated[
        bool, typer.Option("--predicted", help="Predicted instead of measured trials.")
    ] = False,
) -> None:
    """Write trials as recorded spaces, on which a search can be replayed without a GPU."""
    from autotune.ship import record_spaces

    name = stored_target(target)
    trials = stored_trials(name, "predicted" if predicted else "measured")
    try:
        written = record_spaces(trials, folder)
    except OSError as error:
        fail(str(error))
    if not written:
        fail(f"the store holds no problem of {name} with two configurations that ran")
    typer.echo(f"{len(written)} spaces: {folder}")


def replay(
    space: Annotated[Path, typer.Argument(help="CSV: parameters, then time.")],
    strategy: Annotated[str, typer.Option("--strategy", help="Strategy to run.")] = DEFAULT,
    evaluations: Annotated[int, typer.Option("--evaluations", help="Per run.")] = 200,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs to average.")] = 40,
    seed: Annotated[int, typer.Option("--seed", help="First run's seed.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a search strategy on a recorded space and report its share of the optimum."""
    from autotune.recorded import SpaceError
    from autotune.replay import replay as run

    known("strategy", strategy, STRATEGIES)
    positive("--evaluations", evaluations)
    positive("--repeats", repeats)
    try:
        found = run(space, strategy, evaluations, repeats, seed)
    except (SpaceError, ValueError, ImportError) as error:
        fail(str(error))
    Console(soft_wrap=True).print(show.replay_table(found) if not json else dumps(found.as_json()))
