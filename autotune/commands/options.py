"""Options that commands share, and checks of their values that end a command with a message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NoReturn

from autotune.cluster import Cluster
from autotune.deadline import Deadline, seconds_of
from autotune.suites import SUITES, names
from autotune.suites import suite as layers_of
from autotune.trial import Trial
from autotune.trial_store import Store
from autotune.tune import Job, jobs, local_gpu
from tconv.extras import extra
from tconv.geometry import PASSES, Pass
from tconv.problem import ARITHMETICS
from tconv.target import DEFAULT_TARGET, TARGETS, Target
from tconv.winners import TARGET_NAME, Kind

with extra("tune"):
    import typer

ALL_PASSES = ",".join(PASSES)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # the exit code that shells report for SIGINT
EXIT_FAILED = 1

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
StoredOption = Annotated[str | None, typer.Option("--target", help="GPU; default: the local one.")]


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


def deadline_after(time_limit: str | None) -> Deadline:
    """Return the deadline that ``--time-limit`` sets; without it, there is none."""
    try:
        return Deadline() if time_limit is None else Deadline(seconds_of(time_limit))
    except ValueError as error:
        fail(f"--time-limit: {error}")


def known_suites(wanted: list[str] | None) -> list[str]:
    """Return the named suites, each once; by default the two of the README."""
    chosen = list(dict.fromkeys(wanted or SUITES))
    for suite in chosen:
        known("suite", suite, names())
    return chosen


def selected_jobs(suite: list[str] | None, passes: str, dtype: str, batch: int) -> list[Job]:
    """Return one job for each layer and pass that the options select."""
    suites, directions = known_suites(suite), known_passes(passes)
    known("dtype", dtype, ARITHMETICS)
    positive("--batch", batch)
    found = [layer for name in suites for layer in layers_of(name, batch)]
    return jobs(found, directions, dtype)  # type: ignore[arg-type]


def target_and_kind(name: str | None, cluster: Cluster | None = None) -> tuple[Target, Kind]:
    """Return the target and the kind of its times; those of a named target are predicted."""
    if name is None:
        here = local_gpu() if cluster is None else None
        if cluster is not None and cluster.gpus:
            here = cluster.ask(local_gpu)
            if not isinstance(here, tuple):
                fail(f"a worker advertises a GPU but has none: {here}", EXIT_FAILED)
        return here if here is not None else (TARGETS[DEFAULT_TARGET], "predicted")
    return TARGETS[known("target", name, TARGETS)], "predicted"


def stored_target(name: str | None) -> str:
    """Return the name of the GPU whose results are asked for; by default the local one's."""
    if name is not None:
        if TARGET_NAME.fullmatch(name) is None:
            fail(f"--target {name!r} is not a GPU name such as nvidia-h200 or sm_90")
        return name
    here = local_gpu()
    if here is None:
        fail("no local GPU: name one with --target")
    return here[0].name


def stored_trials(target: str, kind: Kind) -> list[Trial]:
    """Return the store's trials of ``target``; exit with code 2 if the store is unusable."""
    with Store() as store:
        trials = list(store.trials(target, kind))
        if store.path is None and not trials:
            fail(store.trouble)
        return trials
