"""Measure, render reports from stored results, and compare their tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import torch

from autotune.commands.options import ALL_PASSES, deadline_after, fail, known, known_passes
from autotune.suites import DEFAULT_BATCH
from autotune.suites import names as suite_names
from autotune.trial import Trial
from autotune.trial_store import Store, default_path
from reports.bench.run import (
    NETWORKS,
    SUITES,
    Run,
    default_work,
    folder_of,
    rehearsal,
    rehearsal_work,
)
from reports.collect import collect
from reports.compare import compare, pairs_grid, render_comparison, share_of, summary
from reports.page import Grid
from reports.render import default_folder, render
from reports.row_files import RowError
from reports.tables import HEAD, Tables, merged, read_tables
from tconv.extras import extra
from tconv.launch import runs_triton
from tconv.models import BUILDERS
from tconv.problem import ARITHMETICS
from tconv.select import choose
from tconv.target import EMULATED, TARGETS, Target, target_of
from tconv.winners import Kind

with extra("reports"):
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
COMMANDS = (
    "python -m autotune tune --target {target}",
    "python -m reports render --target {target}",
)


def commands_for(target: str) -> tuple[str, ...]:
    """Return the commands that reproduce the report on ``target``."""
    return tuple(command.format(target=target) for command in COMMANDS)


def known_targets() -> dict[str, Target]:
    """Return the targets with predictions, and the GPUs of this machine."""
    here = (target_of(index) for index in range(torch.cuda.device_count()))
    return {**TARGETS, **{target.name: target for target in here}}


def _trials(path: Path) -> list[Trial]:
    """Return all trials of the store at ``path``; none if there is no store."""
    if not path.exists():  # opening would create an empty store
        return []
    with Store(path) as store:
        trials = list(store.trials())
        if store.path is None and not trials:
            fail(f"{path} cannot be used as a store of trials")
        return trials


def _contents(trials: Sequence[Trial], target: Target, kind: Kind) -> Tables:
    """Return a report's content for one target: tuning results and measurements beside cuDNN."""
    tuned = benched = None
    if any((trial.target, trial.kind) == (target.name, kind) for trial in trials):
        tuned = collect(trials, target, kind, commands_for(target.name))
    folder = folder_of(target.name)
    if kind == "measured" and (folder / HEAD).exists():
        benched = read_tables(folder)
    return merged(tuned, benched)


def _from_store(name: str, kind: str | None, path: Path) -> Tables:
    """Return a report's content for the named target."""
    targets = known_targets()
    if name not in targets:
        fail(f"no target {name!r}; there are: {', '.join(targets)}")
    if kind not in (None, "predicted", "measured"):
        fail(f"no kind {kind!r}; there are: predicted, measured")
    wanted = cast(Kind, kind or ("predicted" if name in TARGETS else "measured"))
    try:
        return _contents(_trials(path), targets[name], wanted)
    except LookupError:
        fail(f"no {wanted} trials for {name} in {path}; make some: {commands_for(name)[0]}")


def _stored(kind: str | None, path: Path) -> list[Tables]:
    """Return a report's content for each stored target and kind."""
    trials, targets = _trials(path), known_targets()
    benched = ((name, "measured") for name in targets if (folder_of(name) / HEAD).exists())
    found = sorted({*((trial.target, trial.kind) for trial in trials), *benched})
    for name in sorted({name for name, _ in found if name not in targets}):
        typer.echo(f"{name} is not on this machine: its trials are left out", err=True)
    wanted = [(name, k) for name, k in found if name in targets and kind in (None, k)]
    if not wanted:
        fail(f"no trials to report in {path}; run: python -m autotune tune")
    return [_contents(trials, targets[name], cast(Kind, k)) for name, k in wanted]


@app.command("render")
def render_command(
    target: Annotated[
        str | None,
        typer.Option(help="architecture or GPU; default: all stored ones"),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="predicted or measured")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder; default: a published report's, or ./reports"),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="the tuner's trial store")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="render again from the tables in this folder")
    ] = None,
) -> None:
    """Write HTML, Markdown, SVG figures and CSV tables into one folder per target and kind."""
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
            fail(f"--out takes one report but there are several: choose a --target ({names})")
        for content in contents:
            _write(content, out or default_folder(content))
    except RowError as error:
        fail(str(error))
    except OSError as error:
        typer.echo(f"the report cannot be written: {error}", err=True)
        raise typer.Exit(1) from error


def _write(content: Tables, folder: Path) -> None:
    pages = render(content, folder)[:2]
    about = content.about
    typer.echo(f"{about.kind} report on {about.target}: {', '.join(map(str, pages))}")


@app.command()
def bench(
    suite: Annotated[
        list[str] | None, typer.Option(help="a model or a kind of layers; repeatable")
    ] = None,
    passes: Annotated[str, typer.Option(help="comma-separated: fprop, dgrad, wgrad")] = ALL_PASSES,
    dtype: Annotated[
        list[str] | None, typer.Option(help="default: float16; tf32x3 is accurate float32")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="images per batch")] = DEFAULT_BATCH,
    network: Annotated[
        list[str] | None, typer.Option(help="whole networks; default: the five in the goals")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="stop after this time: 90s, 8m, 1h30m")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="small layers on a CPU, interpreted or emulated")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="report folder; default: in reports/published")
    ] = None,
) -> None:
    """Measure layers, pools, networks and memory beside torch on this GPU, and render the report.

    An interrupted run continues from its stored rows.
    """
    known_networks = (network or list(NETWORKS)) if not rehearse else []
    for kind, wanted, there in (
        ("suite", suite or [], suite_names()),
        ("network", known_networks, BUILDERS),
        ("dtype", dtype or [], ARITHMETICS),
    ):
        for each in wanted:
            known(kind, each, there)
    directions = known_passes(passes)
    deadline = deadline_after(time_limit)
    device, target = _bench_device(rehearse)
    work = rehearsal_work() if rehearse else default_work(
        suite or SUITES, directions, dtype or ["float16"], batch, known_networks
    )  # fmt: skip
    folder = out or (Path("runs") / "rehearsal" if rehearse else None)
    try:
        run = Run(target, device, deadline, typer.echo)
        run.do(work)
        tables = run.tables if rehearse else _contents(_trials(default_path()), target, "measured")
        _write(tables, folder or default_folder(tables))
    except RowError as error:
        fail(str(error))
    except OSError as error:
        typer.echo(f"rows or report cannot be written: {error}", err=True)
        raise typer.Exit(1) from error
    if run.left:
        typer.echo(f"{len(run.left)} items are left for the next run: {run.left[0]}, ...")


def _bench_device(rehearse: bool) -> tuple[torch.device, Target]:
    """Return this machine's GPU; for a rehearsal a CPU, which must be able to run the kernels."""
    if rehearse:
        if not runs_triton(torch.device("cpu")):
            fail("a rehearsal needs TRITON_INTERPRET=1, or TCONV_EMULATE=sm_90 for an emulated GPU")
        return torch.device("cpu"), rehearsal()
    if not torch.cuda.is_available():
        fail(
            "there is no GPU here, and measuring needs one; to render stored results, run "
            "python -m reports render"
        )
    return torch.device("cuda", torch.cuda.current_device()), target_of(torch.cuda.current_device())


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="a layers.csv")],
    after: Annotated[Path, typer.Argument(help="another layers.csv")],
    fail_on_regression: Annotated[
        str | None,
        typer.Option(help="exit with 1 if a pass is slower by more than this and noise: 5%"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for pages of the comparison")] = None,
) -> None:
    """Report what became slower or faster from one layer table to another, beyond noise."""
    try:
        beyond = None if fail_on_regression is None else share_of(fail_on_regression)
    except ValueError as error:
        fail(f"--fail-on-regression: {error}")
    try:
        found = compare(before, after)
    except RowError as error:
        fail(str(error))
    console = Console(soft_wrap=True, highlight=False)
    console.print(summary(found), markup=False)
    changed = [*found.changed("slower"), *found.changed("faster")]
    if changed:
        console.print(_shown(pairs_grid(changed)))
    if out is not None:
        try:
            written = render_comparison(found, before, after, out)
        except OSError as error:
            typer.echo(f"the comparison cannot be written: {error}", err=True)
            raise typer.Exit(1) from error
        console.print(f"side by side: {written[0]}", markup=False)
    if beyond is not None and (worse := found.regressions(beyond)):
        typer.echo(f"{len(worse)} passes are slower by more than {fail_on_regression}", err=True)
        raise typer.Exit(1)


@app.command("trust")
def trust_command(
    tables: Annotated[list[Path], typer.Argument(help="recorded tables, or folders of them")],
    out: Annotated[Path | None, typer.Option(help="file; by default the reports' own")] = None,
) -> None:
    """Judge the cost model by recorded tables; keep the statistics that predicted reports show."""
    from autotune.recordings import RecordingError, read_recordings, tables_of
    from reports import trust

    path = out or trust.STATISTICS
    try:
        found = trust.statistics(read_recordings(tables_of(tables)))
        trust.write_statistics(found, path)
    except (RecordingError, OSError) as error:
        fail(str(error))
    typer.echo(f"{len(found['cells'])} groups of recorded tiles: {path}")


@app.command("compilers")
def compilers_command(
    suite: Annotated[
        list[str] | None, typer.Option(help="model whose layers to use; repeatable")
    ] = None,
    passes: Annotated[str, typer.Option(help="comma-separated: fprop, dgrad, wgrad")] = ALL_PASSES,
    dtype: Annotated[str, typer.Option(help="of activations and filters")] = "float16",
    batch: Annotated[int, typer.Option(min=1, help="images per batch")] = DEFAULT_BATCH,
    target: Annotated[str, typer.Option(help="the GPU to compile for and to emulate")] = "sm_90",
    python: Annotated[
        list[str] | None,
        typer.Option(help="a Python with another Triton, as 3.6.0=PATH; repeatable"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes that run kernels")] = 1,
    out: Annotated[Path, typer.Option(help="folder for the table")] = Path("runs/compilers"),
) -> None:
    """Report what changes between Triton versions for each winner, regressions first; no times."""
    from autotune.suites import suite as layers
    from autotune.tune import jobs
    from reports import compilers

    known("emulated target", target, EMULATED)
    known("dtype", dtype, ARITHMETICS)
    names = suite or list(SUITES)
    for name in names:
        known("suite", name, suite_names())
    work = jobs(
        [layer for name in names for layer in layers(name, batch)], known_passes(passes), dtype
    )
    chosen = [(job.problem, choose(job.problem, TARGETS[target])) for job in work]
    try:
        pythons = compilers.pythons_named(python or [])
        rows = []
        for version, path in pythons.items():
            typer.echo(f"Triton {version}: {len(chosen)} winners", err=True)
            found = compilers.emulated_with(path, chosen, target, workers)
            rows += [compilers.row_of(each, version) for each in found]
        changes = compilers.changes(rows)
        written = compilers.write(changes, target, out)
    except compilers.CompilersError as error:
        fail(str(error))
    except OSError as error:
        typer.echo(f"the table cannot be written: {error}", err=True)
        raise typer.Exit(1) from error
    for change in changes:
        if change.factor >= compilers.NOTED:
            typer.echo(f"{change.rows[0].problem}: {change.words}")
    typer.echo(", ".join(map(str, written)))


def _shown(grid: Grid) -> Table:
    """Convert a page's table for the terminal."""
    table = Table(*grid.headings)
    for row in grid.rows:
        table.add_row(*map(escape, row))
    return table
