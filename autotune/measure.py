"""Time a call on a CUDA GPU: replay its graph with the L2 flushed before each run.

Host time is excluded: the CPU queues the next work while the flush runs. A call that cannot be
captured is timed directly.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from autotune.search import Effort
from tconv.geometry import Pass
from tconv.problem import Problem

# Only times of the same protocol are comparable; increase it when the code below changes.
PROTOCOL = "protocol 2"  # graphs of two inputs in turn, L2 flushed, medians
FLUSH_FACTOR = 2  # the flush writes this many times the L2's bytes
LEAST_FLUSH = 64 << 20  # bytes
CALIBRATION_RUNS = 3
LOST_CAUSE = 1.5  # times the best so far
ROUNDS = 10  # per contest
OPERANDS: dict[Pass, tuple[str, str]] = {
    "fprop": ("x", "w"),
    "dgrad": ("dy", "w"),
    "wgrad": ("x", "dy"),
}


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median, the quantiles that bound the middle 60%, and the number of runs.

    ``reference`` is the time of a fixed piece of work measured beside them. If it changes during a
    run, the clock drifts or another process uses the GPU.
    """

    median: float
    p20: float
    p80: float
    repeats: int
    reference: float = 0.0


class Timer(Protocol):
    """Runs a call ``repeats`` times and returns the milliseconds of each run."""

    def __call__(self, repeats: int) -> Sequence[float]: ...


def summary(samples: Sequence[float]) -> Timing:
    """Return the statistics that a trial keeps of its runs."""
    median, p20, p80 = map(float, np.quantile(samples, (0.5, 0.2, 0.8)))
    return Timing(median, p20, p80, len(samples))


def repeats_for(milliseconds: float, budget: float, least: int, most: int) -> int:
    """Return how many runs of ``milliseconds`` fill ``budget``, within bounds.

    >>> repeats_for(0.5, budget=50.0, least=10, most=200)
    100
    >>> repeats_for(40.0, budget=50.0, least=10, most=200)
    10
    """
    if milliseconds <= 0:
        return most
    return min(max(int(budget / milliseconds), least), most)


def measure(timer: Timer, effort: Effort, best: float = math.inf) -> Timing:
    """Calibrate, warm up, then time as often as ``effort`` allows.

    A candidate whose fastest calibration run is far behind ``best`` is given up after calibration.
    """
    first = timer(CALIBRATION_RUNS)
    if min(first) > LOST_CAUSE * best:
        return summary(first)
    once = statistics.median(first)
    timer(repeats_for(once, effort.warmup_milliseconds, 1, effort.most_repeats))
    bounds = (effort.least_repeats, effort.most_repeats)
    return summary(timer(repeats_for(once, effort.measure_milliseconds, *bounds)))


def contest(timers: Sequence[Timer], effort: Effort) -> list[Timing]:
    """Time several calls in turn, round by round, so that a disturbance affects all alike."""
    onces = [statistics.median(timer(CALIBRATION_RUNS)) for timer in timers]
    bounds = (effort.least_repeats, effort.most_repeats)
    runs = [repeats_for(once, effort.measure_milliseconds, *bounds) for once in onces]
    rounds = min(ROUNDS, *runs)
    samples: list[list[float]] = [[] for _ in timers]
    for turn in range(rounds):
        order = range(len(timers)) if turn % 2 == 0 else reversed(range(len(timers)))
        for place in order:
            samples[place] += timers[place](-(-runs[place] // rounds))
    return [summary(times) for times in samples]


class CudaTimer:
    """Times ``calls`` in turn on the current CUDA device, each run with cold caches.

    Several calls do the same work on different inputs, so that no result depends on one draw.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]], l2_bytes: int) -> None:
        size = max(LEAST_FLUSH, FLUSH_FACTOR * l2_bytes)
        self._flush = torch.empty(size, dtype=torch.int8, device="cuda")
        self._stream = torch.cuda.Stream()
        self._turns = itertools.cycle([self._captured(call) for call in calls])

    def _captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Capture ``call`` as a graph; capture requires the warm-up on the same stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                call()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                call()
        except RuntimeError:  # some launches cannot be captured
            torch.cuda.synchronize()
            return call
        return graph.replay

    def __call__(self, repeats: int) -> list[float]:
        begins = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
        with torch.cuda.stream(self._stream):
            for begin, end in zip(begins, ends, strict=True):
                self._flush.zero_()
                begin.record()
                next(self._turns)()
                end.record()
        self._stream.synchronize()
        return [begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True)]


def inputs(problem: Problem, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Return the pass's operands, of unit variance, by name; x and dy in the problem's layout."""
    shape = problem.geometry
    generator = torch.Generator(device=device).manual_seed(seed)
    sizes = {
        "x": (shape.batch, shape.in_channels, shape.in_h, shape.in_w),
        "w": (shape.out_channels, shape.group_in_channels, shape.filter_h, shape.filter_w),
        "dy": (shape.batch, shape.out_channels, shape.out_h, shape.out_w),
    }
    tensors = {}
    for name in OPERANDS[problem.direction]:
        drawn = torch.randn(sizes[name], generator=generator, device=device)
        nhwc = name == "w" or problem.layout == "nhwc"
        layout = torch.channels_last if nhwc else torch.contiguous_format
        tensors[name] = drawn.to(getattr(torch, problem.dtype)).to(memory_format=layout)
    return tensors
