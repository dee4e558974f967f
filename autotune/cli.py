"""The command line: tune, describe layers and spaces, replay searches, exchange results."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from autotune import show
from autotune.cluster import Cluster, ClusterError
from autotune.deadline import Deadline, seconds_of
from autotune.search import DEFAULT_CANDIDATES, DEFAULT_EFFORT
from autotune.strategies import DEFAULT, STRATEGIES
from autotune.suites import DEFAULT_BATCH, SUITES
from tconv.extras import extra
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import ARITHMETICS
from tconv.target import DEFAULT_TARGET, TARGETS, Target
from tconv.winners import TARGET_NAME, Kind, TableError

with extra("tune"):
    import typer
    from rich.console import Console

if TYPE_CHECKING:
    from autotune.calibrate import Calibration
    from autotune.trial import Trial
    from autotune.tune import Job

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

ALL_PASSES = ",".join(PASSES)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # the exit code that shells report for SIGINT
EXIT_FAILED = 1


def fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print an error message and exit with ``code``."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def known(kind: str, value: str, values: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``values``; otherwise exit with code 2."""
    allowed = list(values)
    if value not in allowed:
        fail(f"unknown {kind} {value!r}; there are: {', '.join(allowed)}")
    return value


def known_passes(text: str) -> list[Pass]:
    """Return the passes named in a comma-separated text, in the order of computation."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for part in wanted:
        known("pass", part, PASSES)
    if not wanted:
        fail(f"no pass named; there are: {', '.join(PASSES)}")
    return [direction for direction in PASSES if direction in wanted]


def positive(name: str, value: int) -> int:
    if value < 1:
        fail(f"{name} is {value}, it must be at least 1")
    return value


SuiteOption = Annotated[
    list[str] | None, typer.Option("--suite", help="Model whose layers to use; repeatable.")
]
PassesOption = Annotated[
    str, typer.Option("--passes", help="Comma-separated: fprop, dgrad, wgrad.")
]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", help="Predict for this GPU; default: measure on the local one."),
]
DtypeOption = Annotated[
    str,
    typer.Option("--dtype", help="Data type; tf32, tf32x3: precision of float32 products."),
]
BatchOption = Annotated[int, typer.Option("--batch", help="Images per batch.")]


def _suites(wanted: list[str] | None) -> list[str]:
    from autotune.suites import names

    chosen = list(dict.fromkeys(wanted or SUITES))
    for suite in chosen:
        known("suite", suite, names())
    return chosen


def _work(suite: list[str] | None, passes: str, dtype: str, batch: int) -> list[Job]:
    """Return one job for each layer and pass that the options select."""
    from autotune.suites import suite as layers
    from autotune.tune import jobs

    suites, directions = _suites(suite), known_passes(passes)
    known("dtype", dtype, ARITHMETICS)
    positive("--batch", batch)
    found = [layer for name in suites for layer in layers(name, batch)]
    return jobs(found, directions, dtype)  # type: ignore[arg-type]


def _target(name: str | None, cluster: Cluster | None = None) -> tuple[Target, Kind]:
    """Return the target and the kind of its times; those of a named target are predicted."""
    from autotune.tune import machine

    if name is None:
        here = machine() if cluster is None else None
        if cluster is not None and cluster.gpus:
            here = cluster.ask(machine)
            if not isinstance(here, tuple):
                fail(f"a worker advertises a GPU but has none: {here}", EXIT_FAILED)
        return here if here is not None else (TARGETS[DEFAULT_TARGET], "predicted")
    return TARGETS[known("target", name, TARGETS)], "predicted"


@app.command()
def tune(
    suite: SuiteOption = None,
    passes: PassesOption = ALL_PASSES,
    target: TargetOption = None,
    dtype: DtypeOption = "float16",
    batch: BatchOption = DEFAULT_BATCH,
    candidates: Annotated[
        int | None,
        typer.Option("--candidates", help="Tried per problem; default 16, or 8 predicted."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", help="Default: combined; for predictions ranked."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", help="Compiler processes.")
    ] = DEFAULT_EFFORT.workers,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="Stop after this time: 90s, 8m, 1h30m.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Run on the workers of this Dask scheduler.")
    ] = None,
) -> None:
    """Find the fastest tile for each layer and pass; print and store the winners."""
    from autotune.provenance import other_processes
    from autotune.tune import tune as run
    from autotune.tune import with_changes

    if strategy is not None:
        known("strategy", strategy, STRATEGIES)
    if candidates is not None:
        positive("--candidates", candidates)
    work = _work(suite, passes, dtype, batch)
    try:
        deadline = Deadline() if time_limit is None else Deadline(seconds_of(time_limit))
    except ValueError as error:
        fail(f"--time-limit: {error}")
    console = Console()
    with ExitStack() as stack:
        helpers = None
        if cluster is not None:
            try:
                helpers = stack.enter_context(Cluster(cluster))
            except ClusterError as error:
                fail(str(error))
            console.print(f"On a cluster of {helpers.slots} slots and {helpers.gpus} GPUs.")
        gpu, kind = _target(target, helpers)
        effort = with_changes(
            DEFAULT_EFFORT,
            candidates=candidates or DEFAULT_CANDIDATES[kind],
            workers=positive("--workers", workers),
        )
        console.print(show.announcement(gpu, kind, dtype))
        if kind == "measured" and helpers is None and (others := other_processes()):
            console.print(f"{others} other processes use this GPU and may distort the times")
        outcome = run(
            work, gpu, kind, effort, strategy=strategy, deadline=deadline, cluster=helpers
        )
    show.print_outcome(outcome, console)
    if outcome.interrupted:
        fail("stopped; results so far are kept and the next run continues", EXIT_INTERRUPTED)
    if outcome.trouble or any(finding.winner is None for finding in outcome.findings):
        fail("; ".join(outcome.trouble) or "some problems have no winner", EXIT_FAILED)


@app.command()
def emulate(
    suite: SuiteOption = None,
    passes: PassesOption = ALL_PASSES,
    target: Annotated[str, typer.Option("--target", help="The GPU to emulate.")] = DEFAULT_TARGET,
    dtype: DtypeOption = "float16",
    batch: BatchOption = DEFAULT_BATCH,
    workers: Annotated[int, typer.Option("--workers", help="Processes that run kernels.")] = 1,
    resources: Annotated[
        bool, typer.Option("--resources", help="Also report registers and memory.")
    ] = False,
    choices: Annotated[
        Path | None, typer.Option("--choices", help="Run the choices in this JSON output.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the chosen kernels' compiled code on an emulated GPU, checked against fp64."""
    from json import dumps

    from autotune.emulate import emulate as run
    from autotune.emulate import read_choices
    from tconv.select import choose
    from tconv.target import EMULATED

    known("emulated target", target, EMULATED)
    gpu = TARGETS[target]
    if choices is not None:
        try:
            chosen = read_choices(choices)
        except (OSError, ValueError) as error:
            fail(f"--choices: {error}")
    else:
        work = _work(suite, passes, dtype, batch)
        chosen = [(job.problem, choose(job.problem, gpu)) for job in work]
    found = []
    for emulation in run(chosen, gpu, positive("--workers", workers), resources):
        found.append(emulation)
        if not json:
            Console(soft_wrap=True, highlight=False).print(
                show.emulation_line(emulation), markup=False
            )
    if json:
        print(dumps({"target": target, "problems": [each.as_dict() for each in found]}))
    if failed := sum(not each.verdict.passed for each in found):
        fail(f"{failed} of {len(found)} problems failed on the emulated {target}", EXIT_FAILED)


@app.command(name="compile")
def compile_(
    suite: SuiteOption = None,
    passes: PassesOption = ALL_PASSES,
    target: TargetOption = None,
    dtype: DtypeOption = "float16",
    batch: BatchOption = DEFAULT_BATCH,
    workers: Annotated[
        int, typer.Option("--workers", help="Compiler processes.")
    ] = DEFAULT_EFFORT.workers,
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder: write the compiled kernels to it.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of --out: install its kernels, compile none."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compile the kernels of suites ahead, or carry compiled ones to another machine."""
    from json import dumps

    from autotune.ahead import compile_suites
    from tconv.aot.carry import KernelsError, load_kernels, save_kernels

    try:
        if source is not None:
            loaded = load_kernels(source, target=target and known("target", target, TARGETS))
            print(dumps(loaded.as_json()) if json else loaded)
            return
        names, directions = _suites(suite), known_passes(passes)
        known("dtype", dtype, ARITHMETICS)
        gpu, _ = _target(target)
        shape = (dtype, positive("--batch", batch), gpu, positive("--workers", workers))
        done = compile_suites(names, directions, *shape)
        if out is not None:
            save_kernels(done, out)
    except (KernelsError, OSError) as error:
        fail(str(error))
    print(dumps(done.as_json()) if json else done)
    if done.failed:
        fail(f"{len(done.failed)} kernels failed to compile", EXIT_FAILED)


@app.command()
def layer(
    input: Annotated[str, typer.Option("--input", help="Input volume, CxHxW.")],
    filters: Annotated[int, typer.Option("--filters", help="K, number of filters.")],
    extent: Annotated[int, typer.Option("--extent", help="F, filter height and width.")],
    stride: Annotated[int, typer.Option("--stride", help="S.")] = 1,
    padding: Annotated[int, typer.Option("--padding", help="P, zero padding.")] = 0,
    batch: BatchOption = DEFAULT_BATCH,
    dtype: DtypeOption = "float16",
    target: TargetOption = None,
    dilation: Annotated[int, typer.Option("--dilation", help="Tap spacing.")] = 1,
    groups: Annotated[int, typer.Option("--groups", help="Channel groups.")] = 1,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw it to scale: .svg or .png.")
    ] = None,
) -> None:
    """Describe a layer: its volumes, what bounds its time, and its kernels and tiles."""
    known("dtype", dtype, ARITHMETICS)
    gpu, _ = _target(target)
    try:
        geometry = ConvGeometry.from_lecture(
            input, filters, extent, stride, padding, positive("--batch", batch), dilation, groups
        )
    except ValueError as error:
        fail(str(error))
    console = Console(highlight=False, soft_wrap=True)
    if picture is not None:  # draw first, so that an undrawable picture fails before any output
        try:
            show.draw_layer(geometry, dtype, gpu, picture)
        except (OSError, ValueError) as error:
            fail(str(error))
    show.print_layer(geometry, dtype, gpu, console)
    if picture is not None:
        console.print(f"drawn: {picture}", markup=False)


@app.command()
def space(
    suite: SuiteOption = None,
    passes: PassesOption = ALL_PASSES,
    target: TargetOption = None,
    dtype: DtypeOption = "float16",
    batch: BatchOption = DEFAULT_BATCH,
) -> None:
    """Count the tiles that remain after each rule."""
    work = _work(suite, passes, dtype, batch)
    gpu, _ = _target(target)
    show.print_space(work, gpu, Console())


@app.command()
def replay(
    space: Annotated[Path, typer.Argument(help="CSV: parameters, then time.")],
    strategy: Annotated[str, typer.Option("--strategy", help="Strategy to run.")] = DEFAULT,
    evaluations: Annotated[int, typer.Option("--evaluations", help="Per run.")] = 200,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs to average.")] = 40,
    seed: Annotated[int, typer.Option("--seed", help="First run's seed.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a search strategy on a recorded space and report its share of the optimum."""
    from json import dumps

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


@app.command()
def judge(
    tables: Annotated[
        list[Path], typer.Argument(help="Recorded tables, CSV or CSV.gz, or folders of them.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    unseen: Annotated[
        bool, typer.Option("--held-out", help="Only problems that no constant was fitted to.")
    ] = False,
    nvidia: Annotated[
        bool, typer.Option("--nvidia", help="Also what NVIDIA's heuristics would run.")
    ] = False,
    hold: Annotated[
        Path | None, typer.Option("--hold", help="Fail where worse than published in this file.")
    ] = None,
) -> None:
    """Judge the cost model by recorded kernel times of an A100, an H100 or an RTX 3070."""
    from json import dumps

    from autotune import nvidia as theirs
    from autotune.calibrate import held_out
    from autotune.judge import fallen, read_published
    from autotune.judge import judge as run
    from autotune.recordings import RecordingError, read_recordings, tables_of

    try:
        published = {} if hold is None else read_published(hold)
        recordings = read_recordings(tables_of(tables))
    except (RecordingError, ValueError) as error:
        fail(str(error))
    cells = run(held_out(recordings) if unseen else recordings)
    if not cells:
        fail("no problem in these tables has enough timed tiles")
    console = Console(soft_wrap=True)
    if json:
        typer.echo(dumps({cell.name: cell.as_json() for cell in cells}))
    else:
        show.print_judgement(cells, console)
    if nvidia and not theirs.available():
        typer.echo(
            f"nvidia-matmul-heuristics is missing, no column of it: {theirs.INSTALL}", err=True
        )
    elif nvidia and not json:
        console.print(show.nvidia_table(cells, theirs.first_choice))
    if worse := fallen(cells, published):
        fail("\n".join(["worse than published:", *worse]), EXIT_FAILED)


StoredOption = Annotated[str | None, typer.Option("--target", help="GPU; default: the local one.")]


def _stored_target(name: str | None) -> str:
    from autotune.tune import machine

    if name is not None:
        if TARGET_NAME.fullmatch(name) is None:
            fail(f"--target {name!r} is not a GPU name such as nvidia-h200 or sm_90")
        return name
    here = machine()
    if here is None:
        fail("no local GPU: name one with --target")
    return here[0].name


def _stored(target: str, kind: Kind) -> list[Trial]:
    """Return the store's trials of ``target``; exit with code 2 if the store is unusable."""
    from autotune.trial_store import Store

    with Store() as store:
        trials = list(store.trials(target, kind))
        if store.path is None and not trials:
            fail(store.trouble)
        return trials


@app.command()
def export(
    target: StoredOption = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File; default: tconv/tuned/GPU.json or ./GPU.json."),
    ] = None,
) -> None:
    """Write a GPU's measured winners to a data file that the library can ship."""
    from autotune.ship import export_winners
    from tconv.files import in_checkout
    from tconv.winners import shipped_table

    name = _stored_target(target)
    path = to or (shipped_table(name) if in_checkout() else Path(f"{name}.json"))
    try:
        count = export_winners(name, path)
    except (TableError, OSError) as error:
        fail(str(error))
    typer.echo(f"{count} measured winners of {name}: {path}")


@app.command(name="import")
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


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(help="Output folder, one CSV per problem.")],
    target: StoredOption = None,
    predicted: Annotated[
        bool, typer.Option("--predicted", help="Predicted instead of measured trials.")
    ] = False,
) -> None:
    """Write trials as recorded spaces, on which a search can be replayed without a GPU."""
    from autotune.ship import record_spaces

    name = _stored_target(target)
    trials = _stored(name, "predicted" if predicted else "measured")
    try:
        written = record_spaces(trials, folder)
    except OSError as error:
        fail(str(error))
    if not written:
        fail(f"the store holds no problem of {name} with two configurations that ran")
    typer.echo(f"{len(written)} spaces: {folder}")


@app.command()
def calibrate(
    target: StoredOption = None,
    tables: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Fit to recorded tables of one GPU instead."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File; default: the user's own.")] = None,
    source: Annotated[str, typer.Option("--source", help="Citation for the tables.")] = "",
) -> None:
    """Refit the cost model's constants to times measured here or recorded by others."""
    from dataclasses import replace

    from autotune.calibrate import CalibrationError
    from tconv.cost.constants import user_constants, write_calibrated

    try:
        found, gpu = _calibration_from(tables, target) if tables else _calibration(target)
    except CalibrationError as error:
        fail(str(error))
    console = Console(soft_wrap=True)
    console.print(show.calibration_table(found))
    if not found.better:
        console.print("The fit predicts held-out problems no better; the constants are unchanged.")
    path = to or user_constants(gpu)
    try:
        write_calibrated(path, gpu, replace(found.calibrated, source=source))
    except (TableError, OSError) as error:
        fail(f"the constants were not written: {error}")
    console.print(f"Untuned layers are served by the {found.untuned}. Constants: {path}")


def _calibration(target: str | None) -> tuple[Calibration, str]:
    """Return a calibration from the store's measured trials, and the GPU's name."""
    from autotune.calibrate import calibrate as run
    from autotune.tune import machine

    here = machine()
    if target is not None and target in TARGETS:
        gpu = TARGETS[target]
    elif here is not None and target in (None, here[0].name):
        gpu = here[0]
    else:
        fail(f"--target {target}: name the GPU of this machine, or one of {', '.join(TARGETS)}")
    return run(_stored(gpu.name, "measured"), gpu), gpu.name


def _calibration_from(tables: list[Path], target: str | None) -> tuple[Calibration, str]:
    """Return a calibration from recorded tables; ``target`` selects a GPU if they hold several."""
    from autotune.calibrate import calibrate_from
    from autotune.recordings import RECORDED, RecordingError, read_recordings, tables_of

    try:
        recordings = read_recordings(tables_of(tables))
    except RecordingError as error:
        fail(str(error))
    known = {gpu.name for name, gpu in RECORDED.items() if any(r.gpu == name for r in recordings)}
    if target is None and len(known) != 1:
        fail(f"--target: these tables are of {', '.join(sorted(known)) or 'no GPU'}; name one")
    wanted = target or known.pop()
    return calibrate_from([each for each in recordings if each.target.name == wanted]), wanted


@app.command()
def suites() -> None:
    """List the suites and their distinct layers."""
    from autotune.suites import names
    from autotune.suites import suite as layers

    show.print_suites([layers(name) for name in names()], Console())
