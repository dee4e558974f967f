"""Tune a layer at its first call: ``autotune.on_first_call(seconds=5)``."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.deadline import Deadline

# Import anything that loads Triton late: a worker process sets its environment first.
if TYPE_CHECKING:
    from autotune.evaluate import Gate, Measure
    from tconv.problem import Problem
    from tconv.target import Target
    from tconv.tile import Choice

CANDIDATES = 16  # taken from the model's best predictions, as far as the time allows


def on_first_call(
    seconds: float = 5.0,
    *,
    gate: Gate | None = None,
    measure: Measure | None = None,
) -> Callable[[], None]:
    """Tune each untuned layer at its first call, within ``seconds`` for each of its passes.

    The candidates that the cost model predicts fastest are measured in this process, on inputs of
    the layer's own geometry; each must pass the correctness gate first. Trials and winners are
    stored as ``autotune tune`` stores them, so that the next process measures nothing. Layers that
    are already tuned are left unchanged. Without a GPU nothing is measured and nothing changes.
    With CUDA graphs, call the model once before capture.

    Args:
        seconds: time for each pass of a layer; a started candidate is finished.
        gate: ``gate(problem, choice)`` returning a ``Verdict``, instead of the check on the GPU.
        measure: ``measure(problem, choice, best)`` returning a ``Timing``, instead of the GPU's
            clock; requires a ``gate``.

    Returns:
        A function that turns tuning at the first call off again.

    Raises:
        ValueError: if ``seconds`` is not positive.
        ModuleNotFoundError: without the packages of ``tconv[tune]``.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds!r}; the time for each pass must be more than 0")
    import autotune.trial_store  # noqa: F401  # a missing extra is named here, not at each layer
    from tconv import select

    lock = threading.Lock()

    def tuned(problem: Problem, target: Target) -> Choice | None:
        with lock:
            try:
                return _tuned(problem, target, seconds, gate, measure)
            except Exception as error:  # a layer must run even if its tuning fails
                warnings.warn(f"{problem.key} was not tuned: {error}", stacklevel=2)
                return None

    return select.when_untuned(tuned)


def _tuned(
    problem: Problem, target: Target, seconds: float, gate: Gate | None, measure: Measure | None
) -> Choice | None:
    """Return the winner of a search in this process, or None if nothing was measured."""
    import torch

    from autotune import on_gpu, provenance
    from autotune.evaluate import Bench, Setting, publish
    from autotune.measure import PROTOCOL
    from autotune.search import DEFAULT_EFFORT, shortlist
    from autotune.trial_store import Store
    from tconv.cost.space import candidates
    from tconv.source import source_hash
    from tconv.winners import TableError

    deadline, contest = Deadline(seconds), None
    if measure is None:
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return None
        here = on_gpu.InThisProcess(target, DEFAULT_EFFORT, deadline)
        gate, measure, contest = gate or here.check, here.timing, here.contest
    assert gate is not None, "a custom measure requires a gate"
    versions = provenance.versions(provenance.driver_version(), PROTOCOL)
    setting = Setting(target, "measured", versions, source_hash(), DEFAULT_EFFORT)
    promising = shortlist(problem, target, candidates(problem, target), CANDIDATES)
    with Store() as store:
        bench = Bench(setting, store, None, gate, measure, contest)
        winner = bench.winner(list(bench.tried(problem, promising, deadline)))
    if winner is None:
        return None
    try:
        publish(target, [winner])
    except (TableError, OSError) as error:  # the winner still serves this process
        warnings.warn(f"the winner of {problem.key} was not written: {error}", stacklevel=2)
    return replace(winner.choice, ground="tuned")
