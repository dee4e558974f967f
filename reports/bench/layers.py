"""Measure one case: a row of the layer table with our times and cuDNN's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autotune.measure import CudaTimer, Timer, contest
from autotune.search import DEFAULT_EFFORT, Effort
from reports.bench.cases import Case, PoolCase
from reports.bench.sides import Sides, sides, torchs_precision
from reports.layer_rows import conv_row, pool_row, with_time
from reports.rows import LayerRow, rounded
from tconv.extras import extra
from tconv.select import choose
from tconv.target import Target

with extra("reports"):
    from attrs import evolve

DRAWS = 2  # draws of the inputs, used by the runs in turn
REHEARSAL = Effort(warmup_milliseconds=0.0, measure_milliseconds=0.0, least_repeats=2)


class HostTimer:
    """Times calls in turn by the host's clock, for rehearsals without a device."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self._calls, self._turn = calls, 0

    def __call__(self, repeats: int) -> list[float]:
        samples = []
        for _ in range(repeats):
            began = time.perf_counter()
            self._calls[self._turn % len(self._calls)]()
            samples.append(1e3 * (time.perf_counter() - began))
            self._turn += 1
        return samples


def timer_of(calls: Sequence[Callable[[], Any]], device: torch.device, l2_bytes: int) -> Timer:
    """Return the timer for ``device``."""
    return CudaTimer(calls, l2_bytes) if device.type == "cuda" else HostTimer(calls)


def effort_on(device: torch.device) -> Effort:
    return DEFAULT_EFFORT if device.type == "cuda" else REHEARSAL


def measure_case(case: Case, device: torch.device, target: Target) -> LayerRow:
    """Measure all three sides in turn, and the errors of two against fp64.

    Raises:
        RuntimeError: if a side cannot run, for example for lack of memory.
    """
    problem = case.problem
    choice = choose(problem, target)
    if isinstance(case, PoolCase):
        row = pool_row(case.suite, case.layer, case.problem, choice)
    else:
        name = f"{case.suite}{case.epilogue}"
        row = conv_row(name, case.layer, case.problem, choice, "measured")
    with torch.no_grad(), torchs_precision(row.dtype):
        drawn = [sides(case, device, seed) for seed in range(DRAWS)]
        errors = _errors(drawn[0])
        each = ([side.ours for side in drawn], [side.nhwc for side in drawn],
                [side.nchw for side in drawn])  # fmt: skip
        timers = [timer_of(calls, device, target.l2_bytes) for calls in each]
        ours, nhwc, nchw = contest(timers, effort_on(device))
    row = with_time(row, target, ours.median, ours.p20, ours.p80)
    return evolve(
        row,
        cudnn_nhwc_ms=rounded(nhwc.median),
        cudnn_nchw_ms=rounded(nchw.median),
        error_fp64=rounded(errors[0]),
        cudnn_error_fp64=rounded(errors[1]),
    )


def _errors(side: Sides) -> tuple[float, float]:
    """Return the largest error over the largest true value, for ours and for torch's."""
    wanted = side.wanted()
    return _error(side.ours(), wanted), _error(side.nhwc(), wanted)


def _error(result: Tensor, wanted: Tensor) -> float:
    largest = float(wanted.abs().max())
    return float((result.double() - wanted).abs().max()) / max(largest, 1e-30)
