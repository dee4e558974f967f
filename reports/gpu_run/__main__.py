"""``python -m reports.gpu_run --minutes 9 --out DIR``; see the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

WIDTH = 150  # columns of the tables where they go to a file


def main(
    out: Annotated[Path, typer.Option(help="folder of all that is found; a run goes on from it")],
    minutes: Annotated[float, typer.Option(min=0.1, help="to stop after")] = 9.0,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="on a CPU, small, in Triton's interpreter")
    ] = False,
    again: Annotated[
        list[str] | None, typer.Option(help="steps to do once more: tests, tune, bench, ...")
    ] = None,
) -> None:
    """Tests, tuning, the bench beside cuDNN on this machine's GPU, resumed where they stopped."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TCONV_HOME"] = str(out)  # trials, winners and rows lie there too
    if rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    from autotune.deadline import Deadline
    from autotune.provenance import source_hash
    from autotune.trial_store import Store
    from reports.gpu_run.state import State
    from reports.gpu_run.steps import CannotError, Context, here, perform, tasks
    from reports.gpu_run.take_home import summary, tables_of, take_home

    plain = Console(soft_wrap=True, highlight=False)
    console = plain if plain.is_terminal else Console(width=WIDTH, soft_wrap=True, highlight=False)
    deadline = Deadline(60 * minutes)
    try:
        device, target = here(rehearse)
        state = State.read(out / "run.json", source_hash())
    except (CannotError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    for step in again or []:
        state.parts.pop(step, None)

    def tell(line: str) -> None:
        console.print(line, markup=False)

    context = Context(out, state, deadline, device, target, rehearse, tell)
    for task in tasks(rehearse):
        perform(task, context)
    for line in take_home(context):
        tell(line)
    with Store() as store:
        tables = tables_of(context, list(store.trials(target.name, "measured")))
    summary(state, tables, console)
    if context.left:
        tell(f"{len(context.left)} parts are left for the next run: {', '.join(context.left)}")
    if any(part.outcome == "failed" for parts in state.parts.values() for part in parts.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
