"""Commands on layers: tune them, run their kernels, describe them and their space."""

from __future__ import annotations

from contextlib import ExitStack
from json import dumps
from pathlib import Path
from typing import Annotated

from autotune import show
from autotune.cluster import Cluster, ClusterError
from autotune.commands.options import (
    ALL_PASSES,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    BatchOption,
    DtypeOption,
    PassesOption,
    SuiteOption,
    TargetOption,
    deadline_after,
    fail,
    known,
    known_passes,
    known_suites,
    positive,
    selected_jobs,
    target_and_kind,
)
from autotune.provenance import other_processes
from autotune.search import DEFAULT_CANDIDATES, DEFAULT_EFFORT
from autotune.strategies import STRATEGIES
from autotune.suites import DEFAULT_BATCH, names
from autotune.suites import suite as layers_of
from autotune.tune import with_changes
from tconv.extras import extra
from tconv.geometry import ConvGeometry
from tconv.problem import ARITHMETICS
from tconv.select import choose
from tconv.target import DEFAULT_TARGET, EMULATED, TARGETS

with extra("tune"):
    import typer
    from rich.console import Console


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
    from autotune.tune import tune as run

    if strategy is not None:
        known("strategy", strategy, STRATEGIES)
    if candidates is not None:
        positive("--candidates", candidates)
    work = selected_jobs(suite, passes, dtype, batch)
    deadline = deadline_after(time_limit)
    console = Console()
    with ExitStack() as stack:
        helpers = None
        if cluster is not None:
            try:
                helpers = stack.enter_context(Cluster(cluster))
            except ClusterError as error:
                fail(str(error))
            console.print(f"On a cluster of {helpers.slots} slots and {helpers.gpus} GPUs.")
        gpu, kind = target_and_kind(target, helpers)
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
    from autotune.emulate import emulate as run
    from autotune.emulate import read_choices

    known("emulated target", target, EMULATED)
    gpu = TARGETS[target]
    if choices is not None:
        try:
            chosen = read_choices(choices)
        except (OSError, ValueError) as error:
            fail(f"--choices: {error}")
    else:
        work = selected_jobs(suite, passes, dtype, batch)
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
    from autotune.ahead import compile_suites
    from tconv.aot.carry import KernelsError, load_kernels, save_kernels

    try:
        if source is not None:
            loaded = load_kernels(source, target=target and known("target", target, TARGETS))
            print(dumps(loaded.as_json()) if json else loaded)
            return
        names, directions = known_suites(suite), known_passes(passes)
        known("dtype", dtype, ARITHMETICS)
        gpu, _ = target_and_kind(target)
        shape = (dtype, positive("--batch", batch), gpu, positive("--workers", workers))
        done = compile_suites(names, directions, *shape)
        if out is not None:
            save_kernels(done, out)
    except (KernelsError, OSError) as error:
        fail(str(error))
    print(dumps(done.as_json()) if json else done)
    if done.failed:
        fail(f"{len(done.failed)} kernels failed to compile", EXIT_FAILED)


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
    gpu, _ = target_and_kind(target)
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


def space(
    suite: SuiteOption = None,
    passes: PassesOption = ALL_PASSES,
    target: TargetOption = None,
    dtype: DtypeOption = "float16",
    batch: BatchOption = DEFAULT_BATCH,
) -> None:
    """Count the tiles that remain after each rule."""
    work = selected_jobs(suite, passes, dtype, batch)
    gpu, _ = target_and_kind(target)
    show.print_space(work, gpu, Console())


def suites() -> None:
    """List the suites and their distinct layers."""
    show.print_suites([layers_of(name) for name in names()], Console())
