"""Tune a layer when it is first met: ``autotune.on_first_call(seconds=5)``."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autotune.deadline import Deadline

# What loads Triton is imported when it is needed: a worker process mends its environment first.
if TYPE_CHECKING:
    from autotune.trial import Trial
    from tconv.problem import Problem
    from tconv.target import Target
    from tconv.tile import Choice

CANDIDATES = 16  # of the model's hopes, as far as the time allows


def on_first_call(
    seconds: float = 5.0,
    *,
    gate: Callable[..., Any] | None = None,
    measure: Callable[..., Any] | None = None,
) -> Callable[[], None]:
    """Have each untuned layer tuned at its first call, within ``seconds`` for each of its passes.

    The best of what the cost model hopes for is measured on the spot, in this process, on inputs of
    the layer's own geometry; each candidate passes the correctness gate first. Trials and winners
    are kept as ``autotune tune`` keeps them: the next process finds them, and measures nothing.
    Layers that were tuned before, by whatever way, are left as they are. Without a GPU there is
    nothing to measure and nothing changes. Under CUDA graphs, call the model once before capture.

    Args:
        seconds: for each pass of a layer; the candidate under way is finished.
        gate: ``gate(problem, choice)``, in place of the check on the GPU.
        measure: ``measure(problem, choice, best)`` in milliseconds, in place of the GPU's clock.

    Returns:
        A function that takes this back.

    Raises:
        ValueError: for ``seconds`` that are not positive.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds!r}; it is the time for each pass, more than 0")
    from tconv import select

    lock = threading.Lock()

    def tuned(problem: Problem, target: Target) -> Choice | None:
        with lock:
            try:
                return _tuned(problem, target, seconds, gate, measure)
            except Exception as error:  # a layer must run, whatever becomes of its tuning
                warnings.warn(f"{problem.key} was not tuned: {error}", stacklevel=2)
                return None

    return select.when_untuned(tuned)


def _tuned(
    problem: Problem, target: Target, seconds: float, gate: Any, measure: Any
) -> Choice | None:
    import torch

    from autotune import on_gpu, provenance
    from autotune.evaluate import RETRIED
    from autotune.gate import check_on_gpu
    from autotune.measure import PROTOCOL
    from autotune.search import DEFAULT_EFFORT, shortlist
    from autotune.trial import Trial
    from autotune.trial_store import Store
    from tconv.cost.space import candidates
    from tconv.winners import TableError, Winner, user_table, write_table

    if measure is None:
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return None
        gate = gate or check_on_gpu

        def measure(problem: Problem, choice: Choice, best: float) -> float:
            found = on_gpu.timing_here(problem, choice, target.l2_bytes, DEFAULT_EFFORT, best)
            return found.median

    deadline = Deadline(seconds)
    versions = provenance.versions(provenance.driver_version(), PROTOCOL)
    source = provenance.source_hash()
    hopes = shortlist(problem, target, candidates(problem, target), CANDIDATES)
    best, best_time = None, math.inf
    with Store() as store:
        known = store.find(target.name, problem, "measured", versions, source)
        for choice in hopes:
            trial = known.get((choice.family, choice.tile))
            if trial is None or trial.status in RETRIED:
                if best is not None and not deadline.left:
                    break
                blank = Trial(
                    target.name, problem, choice.family, choice.tile, "measured", "ok",
                    versions=versions, source=source,
                )  # fmt: skip
                trial = _tried(blank, gate, measure, best_time)
                store.add(trial)
                if on_gpu.context_lost():  # by this candidate; the next ones are not to blame
                    raise RuntimeError(f"{choice.family} {choice.tile}: {trial.detail}")
            if trial.milliseconds is not None and trial.milliseconds < best_time:
                best, best_time = trial, trial.milliseconds
    if best is None:
        return None
    winner = Winner(best.family, best.tile, "measured", best_time)
    try:
        write_table(user_table(target.name), target.name, {problem.key: winner})
    except (TableError, OSError) as error:  # it serves this process all the same
        warnings.warn(f"the winner of {problem.key} was not written: {error}", stacklevel=2)
    return replace(best.choice, ground="tuned")


def _tried(trial: Trial, gate: Any, measure: Any, best: float) -> Trial:
    from autotune.evaluate import shortened
    from autotune.workers import reason_of

    try:
        verdict = gate(trial.problem, trial.choice)
        if not verdict.passed:
            return replace(trial, status="wrong result", detail=verdict.detail)
        passed = replace(trial, error_fp64=verdict.error, checked=verdict.checked)
        return replace(passed, milliseconds=measure(trial.problem, trial.choice, best))
    except Exception as error:  # too many resources, no memory left, a compiler's refusal
        words = shortened(f"{type(error).__name__}: {error}")
        return replace(trial, status=f"measuring: {reason_of(error)}", detail=words)
