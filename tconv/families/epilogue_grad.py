"""Gradients of bias, activation and pool: memory-bound, so a fixed tile and enough programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tconv.families.common import (
    accumulator_type,
    index_type,
    workspace_dtype,
)
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Buffer, Launch, Plan, Pointer
from tconv.problem import Layout
from tconv.target import Target

SUM_BLOCK = 128  # channels a program of the second step


@dataclass(frozen=True)
class Activation:
    """An activation whose gradient is taken, from its result or from its argument."""

    name: str | None
    slope: float = 0.0
    from_result: bool = True

    @property
    def constants(self) -> dict[str, Any]:
        return {"ACTIVATION": self.name, "SLOPE": self.slope, "FROM_RESULT": self.from_result}


def plan(
    dtype: str,
    layout: Layout,
    image: tuple[int, int, int],
    target: Target,
    activation: Activation | None = None,
    sums: bool = True,
) -> Plan:
    """Return the plan of dbias from dy in ``layout``; with an activation also of dz, by ``value``.

    ``image`` is (batch, channels, plane). Sums are formed over pixels in splits, then over the
    splits; without ``sums`` there is only dz.
    """
    batch, channels, plane = image
    names = ["dy", *([] if activation is None else ["value", "dz"])]
    constants: dict[str, Any] = {"PLANE": plane}
    constants |= {"value": None, "dz": None} if activation is None else {}
    constants |= (activation or Activation(None)).constants
    size = (batch * plane, channels, batch * plane * channels)
    return _plan("epilogue_grad", ("pixels", "split_pixels"), names, constants, size, dtype, layout,
                 target, sums)  # fmt: skip


def pool_plan(
    dtype: str, layout: Layout, z_size: tuple[int, ...], target: Target, sums: bool
) -> Plan:
    """Return the plan of dz and dbias behind a 2x2 max-pool (and a ReLU); ``z_size`` is dz's."""
    batch, channels, out_h, out_w = z_size
    constants = {"OUT_H": out_h, "OUT_W": out_w}
    windows = batch * cdiv(out_h, 2) * cdiv(out_w, 2)
    size = (windows, channels, batch * channels * out_h * out_w)
    return _plan("pool_epilogue_grad", ("windows", "split_windows"), ["dy", "offsets", "dz"],
                 constants, size, dtype, layout, target, sums)  # fmt: skip


def _plan(
    kernel: str,
    counts: tuple[str, str],
    names: list[str],
    constants: dict[str, Any],
    size: tuple[int, int, int],
    dtype: str,
    layout: Layout,
    target: Target,
    sums: bool,
) -> Plan:
    """Return a pass over ``size``: rows (pixels or windows), channels, elements of the largest."""
    rows, channels, elements = size
    block_n, block_k, most = _block(rows, channels, layout, target)
    split_rows = max(1, cdiv(cdiv(rows, most), block_k)) * block_k
    splits = max(1, cdiv(rows, split_rows))
    kept = workspace_dtype(dtype)
    operands = {name: Pointer(name, "int8" if name == "offsets" else dtype) for name in names}
    if sums:
        operands["workspace"] = Pointer("workspace", kept)
    parts = Launch(
        f"epilogue_grad.{kernel}",
        (cdiv(channels, block_n), splits),
        operands,
        {counts[0]: rows, counts[1]: split_rows},
        {
            **constants,
            **({} if sums else {"workspace": None}),
            "CHANNELS": channels,
            "NHWC": layout == "nhwc",
            "ACCUMULATOR": accumulator_type(dtype),
            "INDEX": index_type(elements),
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
        },
    )
    if not sums:
        return Plan((parts,))
    total = Launch(
        "epilogue_grad.bias_grad_sum",
        (cdiv(channels, SUM_BLOCK),),
        {"workspace": Pointer("workspace", kept), "dbias": Pointer("dbias", dtype)},
        {"splits": splits},
        {"CHANNELS": channels, "BLOCK": SUM_BLOCK},
    )
    return Plan((parts, total), {"workspace": Buffer(splits * channels, kept)})


def _block(rows: int, channels: int, layout: Layout, target: Target) -> tuple[int, int, int]:
    """Return channels and rows of a program's tile, and the most splits."""
    if target.backend == "interpreter":
        block_n = power_of_two(channels, 1, 128)
        return block_n, power_of_two(rows, 1, (1 << 19) // block_n), 1
    if layout == "nchw":  # pixels lie side by side: a channel a program
        return 1, 2048, max(1, min(4 * target.processors // channels, rows // (4 * 2048)))
    block_n = power_of_two(channels, 1, 128)
    block_k = max(4096 // block_n, 32)
    return block_n, block_k, max(1, min(4 * target.processors, rows // (4 * block_k)))
