"""Render reports from the tuner's trials, or again from their own tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer

from autotune.store import Store, default_path
from autotune.trial import Trial
from reports.collect import Tables, collect, read_tables
from reports.render import default_folder, render
from reports.rows import RowError
from tconv.table import Kind
from tconv.target import TARGETS, Target, target_of

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
COMMANDS = (
    "python -m autotune tune --target {target}",
    "python -m reports render --target {target}",
)


def commands_for(target: str) -> tuple[str, ...]:
    """What makes a report on ``target`` anew."""
    return tuple(command.format(target=target) for command in COMMANDS)


@app.callback()
def reports() -> None:
    """Reports of what was tuned: predicted or measured, never both in one."""


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def known_targets() -> dict[str, Target]:
    """The architectures that can be predicted for, and the GPUs at hand."""
    import torch

    here = (target_of(index) for index in range(torch.cuda.device_count()))
    return {**TARGETS, **{target.name: target for target in here}}


def _trials(path: Path) -> list[Trial]:
    """All trials of the store at ``path``; none where there is no store."""
    if not path.exists():  # opening would make an empty one
        return []
    with Store(path) as store:
        if store.path is None:
            _refuse(f"{path} cannot be used as a store of trials")
        return list(store.trials())


def _from_store(name: str, kind: str | None, path: Path) -> Tables:
    """A report's content for one target."""
    targets = known_targets()
    if name not in targets:
        _refuse(f"no target {name!r}; there are: {', '.join(targets)}")
    if kind not in (None, "predicted", "measured"):
        _refuse(f"no kind {kind!r}; there are: predicted, measured")
    wanted = cast(Kind, kind or ("predicted" if name in TARGETS else "measured"))
    commands = commands_for(name)
    try:
        return collect(_trials(path), targets[name], wanted, commands)
    except LookupError:
        _refuse(f"no {wanted} trials for {name} in {path}; make some: {commands[0]}")


def _stored(kind: str | None, path: Path) -> list[Tables]:
    """A report's content for each target and kind that the store holds."""
    trials, targets = _trials(path), known_targets()
    found = sorted({(trial.target, trial.kind) for trial in trials})
    for name in sorted({name for name, _ in found if name not in targets}):
        typer.echo(f"{name} is not at hand: its trials are left out", err=True)
    wanted = [(name, k) for name, k in found if name in targets and kind in (None, k)]
    if not wanted:
        _refuse(f"no trials to report in {path}; make some: python -m autotune tune")
    return [collect(trials, targets[name], k, commands_for(name)) for name, k in wanted]


@app.command("render")
def render_command(
    target: Annotated[
        str | None,
        typer.Option(help="architecture or GPU; by default all that is stored"),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="predicted or measured")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder; by default one in reports/published")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="the tuner's store of trials")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="render again from the tables in this folder")
    ] = None,
) -> None:
    """Write index.html, index.md, SVG figures and CSV tables: a folder a target and kind."""
    path = store or default_path()
    try:
        if tables is not None:
            contents = [read_tables(tables)]
        elif target is not None:
            contents = [_from_store(target, kind, path)]
        else:
            contents = _stored(kind, path)
        if out is not None and len(contents) > 1:
            names = ", ".join(content.about.target for content in contents)
            _refuse(f"--out takes one report and there are several: name its --target ({names})")
        for content in contents:
            pages = render(content, out or default_folder(content))[:2]
            about = content.about
            typer.echo(f"{about.kind} report on {about.target}: {', '.join(map(str, pages))}")
    except RowError as error:
        _refuse(str(error))
    except OSError as error:
        typer.echo(f"the report cannot be written: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app(prog_name="python -m reports")
