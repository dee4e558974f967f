"""Build rows of the layer table from problems and times; derive their figures here only."""

from __future__ import annotations

from reports.rows import LayerRow, pair_text, rounded
from tconv.extras import extra
from tconv.geometry import ConvGeometry, PoolGeometry
from tconv.problem import PoolProblem, Problem
from tconv.target import Target
from tconv.tile import Choice
from tconv.winners import Kind

with extra("reports"):
    from attrs import evolve


def conv_row(suite: str, layer: str, problem: Problem, choice: Choice, kind: Kind) -> LayerRow:
    """Return the row of a convolution pass, without its figures."""
    shape = problem.geometry
    volume = (shape.batch, shape.in_channels, shape.in_h, shape.in_w)
    filters = (shape.out_channels, shape.filter_h, shape.filter_w)
    return LayerRow(
        suite, layer, problem.direction, problem.arithmetic, *volume, *filters, *_window(shape),
        shape.groups, choice.family, str(choice.tile), kind,
    )  # fmt: skip


def pool_row(suite: str, layer: str, problem: PoolProblem, choice: Choice) -> LayerRow:
    """Return the row of a max-pool pass, without its figures: a row without filters."""
    shape = problem.geometry
    volume = (shape.batch, shape.channels, shape.in_h, shape.in_w)
    return LayerRow(
        suite, layer, problem.direction, problem.dtype, *volume, None, shape.window_h,
        shape.window_w, *_window(shape), 1, choice.family, str(choice.tile), "measured",
    )  # fmt: skip


def _window(shape: ConvGeometry | PoolGeometry) -> tuple[str, str, str]:
    """Return stride, padding and dilation as table text."""
    return (
        pair_text(shape.stride_h, shape.stride_w),
        pair_text(shape.pad_h, shape.pad_w),
        pair_text(shape.dilation_h, shape.dilation_w),
    )


def with_time(
    row: LayerRow,
    target: Target,
    milliseconds: float,
    p20: float | None = None,
    p80: float | None = None,
) -> LayerRow:
    """Return ``row`` with its time and the figures derived from it: rates and roofline share.

    The roofline is the least time in which the vendor's peak rates allow the useful work: every
    operation of a convolution, and one transfer each of x, w and y; for a pool, of x and y.
    """
    seconds, flops = milliseconds / 1e3, 0 if row.filters is None else row.geometry.flops
    least = target.memory_seconds(row.least_bytes)
    if flops and row.dtype in target.peak_tflops:
        least = max(least, target.compute_seconds(flops, row.dtype))
    return evolve(
        row,
        tconv_ms=rounded(milliseconds),
        tconv_ms_p20=rounded(p20),
        tconv_ms_p80=rounded(p80),
        tflops=rounded(flops / seconds / 1e12) if flops else None,
        gbps=rounded(row.least_bytes / seconds / 1e9),
        roofline_share=rounded(least / seconds) if target.peak_tflops else None,
    )
