"""Tune suites: enumerate, rank, compile, check, measure if there is a GPU, write winners."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune import gate as gating
from autotune import provenance
from autotune.cluster import Cluster, ClusterError
from autotune.deadline import Deadline
from autotune.evaluate import (
    Bench,
    Contest,
    DeviceLostError,
    Gate,
    Measure,
    OutOfTimeError,
    Setting,
    publish,
    worker_contest,
    worker_gate,
    worker_measure,
)
from autotune.measure import PROTOCOL
from autotune.search import DEFAULT_EFFORT, DEFAULT_STRATEGY, Effort, explore
from autotune.suites import Layer
from autotune.trial import Trial
from autotune.trial_store import Store
from tconv import kernel_cache
from tconv.aot.build import ENVIRONMENT
from tconv.cost.space import candidates
from tconv.extras import extra
from tconv.geometry import Pass
from tconv.problem import Problem
from tconv.source import source_hash
from tconv.target import Target
from tconv.tile import Choice
from tconv.winners import Kind, TableError, user_table
from tconv_workers import Workers, memory_of

with extra("tune"):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Job:
    """One problem of a run, and the layer it comes from."""

    layer: Layer
    problem: Problem


@dataclass(frozen=True)
class Finding:
    """Result of a job: all trials, and the winner, or None if every candidate failed."""

    job: Job
    winner: Trial | None
    trials: tuple[Trial, ...]


@dataclass
class Outcome:
    """Results of a run, which may be incomplete."""

    target: Target
    kind: Kind
    findings: list[Finding] = field(default_factory=list)
    compiled: int = 0
    recalled: int = 0
    interrupted: bool = False
    left: list[Job] = field(default_factory=list)  # jobs not reached within the time limit
    drift: float = 1.0  # later times of the reference work over its first time
    table: Path | None = None  # None if it could not be written
    store: Path | None = None
    trouble: list[str] = field(default_factory=list)


def jobs(layers: Iterable[Layer], passes: Sequence[Pass], dtype: str) -> list[Job]:
    """Return a job for each layer and pass; a layer shared by suites is tuned once."""
    seen: dict[str, Job] = {}
    for layer in layers:
        for direction in passes:
            problem = Problem.of(layer.geometry, direction, dtype)
            seen.setdefault(problem.key, Job(layer, problem))
    return list(seen.values())


def workers_for(effort: Effort) -> int:
    """Return the number of compiler processes, at most one per core."""
    return max(1, min(effort.workers, os.cpu_count() or 1))


def tune(
    work: Sequence[Job],
    target: Target,
    kind: Kind,
    effort: Effort = DEFAULT_EFFORT,
    console: Console | None = None,
    strategy: str | None = None,
    gate: Gate | None = None,
    measure: Measure | None = None,
    contest: Contest | None = None,
    deadline: Deadline | None = None,
    cluster: Cluster | None = None,
) -> Outcome:
    """Find a winner for each of ``work``; trials go to the store as they are made.

    ``gate``, ``measure`` and ``contest`` replace the machine's own. Ctrl-C or ``deadline`` ends the
    run early and keeps what was found; the next run continues from there. ``cluster`` compiles,
    checks and measures instead of this machine; all trials go to this machine's store.
    """
    outcome = Outcome(target, kind)
    kernel_cache.guard()  # warn once here instead of in each worker
    with ExitStack() as stack:
        store = stack.enter_context(Store())
        outcome.store = store.path
        gpu = kind == "measured"
        checking = ENVIRONMENT if gpu else gating.environment(target)
        if cluster is not None:
            compilers = stack.enter_context(cluster.workers(ENVIRONMENT))
            checkers = stack.enter_context(cluster.workers(checking, gpu))
        else:
            count = workers_for(effort)
            compilers = stack.enter_context(Workers(count, ENVIRONMENT, memory=memory_of(count)))
            most = None if gpu else memory_of(1)
            checkers = stack.enter_context(Workers(1, checking, memory=most))
        gate = gate or worker_gate(checkers, effort, target, kind)
        if gpu and measure is None:
            measure = worker_measure(checkers, target, effort)
            contest = worker_contest(checkers, target, effort)
        driver = protocol = ""
        if gpu:
            ask, protocol = provenance.driver_version, PROTOCOL
            driver = ask() if cluster is None else str(cluster.ask(ask))
        versions = provenance.versions(driver, protocol)
        source = source_hash()
        setting = Setting(target, kind, versions, source, effort, deadline or Deadline())
        bench = Bench(setting, store, compilers, gate, measure, contest)
        progress = stack.enter_context(_progress(console or Console(stderr=True)))
        try:
            _run(work, bench, strategy or DEFAULT_STRATEGY[kind], progress, outcome)
        except (KeyboardInterrupt, OutOfTimeError, DeviceLostError, ClusterError) as end:
            outcome.interrupted = isinstance(end, KeyboardInterrupt)
            if isinstance(end, (DeviceLostError, ClusterError)):
                outcome.trouble.append(str(end))
            compilers.abandon()  # otherwise the interpreter waits at exit for tasks that have begun
            checkers.abandon()
        outcome.left = list(work[len(outcome.findings) :])
        outcome.compiled, outcome.recalled = bench.compiled, bench.recalled
        outcome.drift = bench.drift
        outcome.trouble += _machine_failures(outcome)
        if store.path is None:
            outcome.trouble.append(f"trials could not be kept: {store.trouble}")
        outcome.store = store.path
    return outcome


def _machine_failures(outcome: Outcome) -> list[str]:
    """Describe in one line the machine's failures that kept candidates from being tried."""
    trials = [trial for finding in outcome.findings for trial in finding.trials]
    kept_from = [trial for trial in trials if trial.status.endswith("machine")]
    if not kept_from:
        return []
    words = f"{len(kept_from)} candidates could not be tried; the next run will try them again"
    return [f"{words}: {kept_from[-1].detail}"]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=False)


def _run(
    work: Sequence[Job], bench: Bench, strategy: str, progress: Progress, outcome: Outcome
) -> None:
    setting = bench.setting
    bar = progress.add_task("tuning", total=len(work))
    for job in work:
        name = f"{job.layer.suite} {job.layer.name} {job.problem.direction}"
        progress.update(bar, description=name)
        finding = _solve(job, bench, strategy)
        outcome.findings.append(finding)
        progress.advance(bar)
        if finding.winner is None:
            progress.console.print(f"{name}: no candidate passed; the rule of thumb applies")
            continue
        best = f"{finding.winner.milliseconds:.4f} ms {setting.kind}, "
        best += f"{finding.winner.family} {finding.winner.tile}"
        progress.update(bar, description=f"{name}: {best}")
        if not progress.console.is_terminal:
            progress.console.print(f"{len(outcome.findings)}/{len(work)} {name}: {best}")
        _publish([finding.winner], outcome)


def _solve(job: Job, bench: Bench, strategy: str) -> Finding:
    """Search one problem's space; the winner has passed the gate."""
    setting = bench.setting
    tried: list[Trial] = []

    def evaluate(choices: Sequence[Choice]) -> list[Trial]:
        trials = bench.try_all(job.problem, choices)
        if setting.kind == "measured":
            for place, trial in enumerate(trials):
                best = min((t.searched or math.inf for t in tried), default=math.inf)
                trials[place] = bench.measured(trial, best)
                tried.append(trials[place])
        else:
            tried.extend(trials)
        return trials

    space = candidates(job.problem, setting.target)
    explore(strategy, job.problem, setting.target, space, evaluate, setting.effort.candidates)
    winner = bench.winner(tried)
    return Finding(job, winner, tuple(tried))


def _publish(winners: Iterable[Trial], outcome: Outcome) -> None:
    """Add ``winners`` to the user's table; an unusable table is reported and left untouched."""
    path = user_table(outcome.target.name)
    try:
        publish(outcome.target, winners)
    except (TableError, OSError) as error:
        outcome.table = None
        words = f"winners were not written, {path} is left alone: {error}"
        if words not in outcome.trouble:
            outcome.trouble.append(words)
    else:
        outcome.table = path


def local_gpu() -> tuple[Target, Kind] | None:
    """Return this machine's GPU, whose times are measured, or None."""
    import torch

    from tconv.target import target_of

    if not torch.cuda.is_available():
        return None
    return target_of(torch.cuda.current_device()), "measured"


def with_changes(effort: Effort, **changes: Any) -> Effort:
    """Return ``effort`` with those ``changes`` that are not None."""
    return replace(effort, **{name: value for name, value in changes.items() if value is not None})
