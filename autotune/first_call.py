"""Tune a layer when it is first met: ``autotune.on_first_call(seconds=5)``."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.deadline import Deadline

# What loads Triton is imported when it is needed: a worker process mends its environment first.
if TYPE_CHECKING:
    from autotune.evaluate import Gate, Measure
    from tconv.problem import Problem
    from tconv.target import Target
    from tconv.tile import Choice

CANDIDATES = 16  # of the model's hopes, as far as the time allows


def on_first_call(
    seconds: float = 5.0,
    *,
    gate: Gate | None = None,
    measure: Measure | None = None,
) -> Callable[[], None]:
    """Have each untuned layer tuned at its first call, within ``seconds`` for each of its passes.

    The best of what the cost model hopes for is measured on the spot, in this process, on inputs of
    the layer's own geometry; each candidate passes the correctness gate first. Trials and winners
    are kept as ``autotune tune`` keeps them: the next process finds them, and measures nothing.
    Layers that were tuned before, by whatever way, are left as they are. Without a GPU there is
    nothing to measure and nothing changes. Under CUDA graphs, call the model once before capture.

    Args:
        seconds: for each pass of a layer; the candidate under way is finished.
        gate: ``gate(problem, choice)``, in place of the check on the GPU; a ``Verdict``.
        measure: ``measure(problem, choice, best)``, in place of the GPU's clock; a ``Timing``. It
            comes with a ``gate``.

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
    problem: Problem, target: Target, seconds: float, gate: Gate | None, measure: Measure | None
) -> Choice | None:
    """The winner of the tuner's own bench, in this process; None where nothing was measured."""
    import torch

    from autotune import on_gpu, provenance
    from autotune.evaluate import Bench, Setting, publish
    from autotune.measure import PROTOCOL
    from autotune.search import DEFAULT_EFFORT, shortlist
    from autotune.trial_store import Store
    from tconv.cost.space import candidates
    from tconv.winners import TableError

    deadline, contest = Deadline(seconds), None
    if measure is None:
        if not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing():
            return None
        here = on_gpu.Here(target, DEFAULT_EFFORT, deadline)
        gate, measure, contest = gate or here.check, here.timing, here.contest
    assert gate is not None, "a clock of one's own comes with a gate"
    versions = provenance.versions(provenance.driver_version(), PROTOCOL)
    setting = Setting(target, "measured", versions, provenance.source_hash(), DEFAULT_EFFORT)
    hopes = shortlist(problem, target, candidates(problem, target), CANDIDATES)
    with Store() as store:
        bench = Bench(setting, store, None, gate, measure, contest)
        winner = bench.winner(list(bench.tried(problem, hopes, deadline)))
    if winner is None:
        return None
    try:
        publish(target, [winner])
    except (TableError, OSError) as error:  # it serves this process all the same
        warnings.warn(f"the winner of {problem.key} was not written: {error}", stacklevel=2)
    return replace(winner.choice, ground="tuned")
