"""Launches around a product: operands converted to channels_last, partial results added."""

from __future__ import annotations

from dataclasses import dataclass, field

from tconv.families.common import index_type
from tconv.families.reduce import WORKSPACE, add_parts, parts_buffer
from tconv.geometry import ConvGeometry, cdiv, power_of_two
from tconv.launch import Buffer, Launch, Plan, Pointer
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target

TILE = 4096  # elements a program: 64 x 64, or long and narrow where channels are few


@dataclass
class Operands:
    """The launches that convert operands, and the buffers that they fill."""

    target: Target
    dtype: str
    launches: list[Launch] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def channels_last(
        self,
        name: str,
        layout: Layout,
        images: int,
        channels: int,
        plane: int,
    ) -> str:
        """Return the name of tensor ``name`` with its channels last.

        A tensor that already has its channels last is used as it is; otherwise this adds a launch
        and a buffer.
        """
        if layout == "nhwc" or channels == 1 or plane == 1:
            return name
        last = f"{name}_nhwc"
        block_m, block_n = _block(plane, channels, self.target)
        tiles = images * cdiv(plane, block_m) * cdiv(channels, block_n)
        launch = Launch(
            "relayout.to_channels_last",
            (tiles,),
            {"contiguous": Pointer(name, self.dtype), "last": Pointer(last, self.dtype)},
            {"plane": plane},
            {
                "CHANNELS": channels,
                "INDEX": index_type(images * plane * channels),
                "BLOCK_M": block_m,
                "BLOCK_N": block_n,
            },
        )
        self.launches.append(launch)
        self.buffers[last] = Buffer(images * plane * channels, self.dtype)
        return last

    def widened(
        self,
        name: str,
        layout: Layout,
        size: tuple[int, int, int, int],
        width: int,
        pad: tuple[int, int] = (0, 0),
    ) -> str:
        """Return the name of a copy of ``name`` with ``width`` channels and a border of zeros.

        ``size`` is (images, channels, rows, columns).
        """
        images, channels, rows, columns = size
        wide_rows, wide_columns = rows + 2 * pad[0], columns + 2 * pad[1]
        wide, elements = f"{name}_wide", images * wide_rows * wide_columns * width
        block = 1 << 16 if self.target.backend == "interpreter" else 1024
        launch = Launch(
            "relayout.widen",
            (cdiv(elements, block),),
            {"narrow": Pointer(name, self.dtype), "wide": Pointer(wide, self.dtype)},
            {
                "rows": rows,
                "columns": columns,
                "wide_rows": wide_rows,
                "wide_columns": wide_columns,
                "elements": elements,
            },
            {
                "PAD_H": pad[0],
                "PAD_W": pad[1],
                "CHANNELS": channels,
                "WIDTH": width,
                "CHANNELS_FIRST": layout == "nchw" and channels > 1,
                "INDEX": index_type(elements),
                "BLOCK": block,
            },
        )
        self.launches.append(launch)
        self.buffers[wide] = Buffer(elements, self.dtype)
        return wide

    def x(self, shape: ConvGeometry, layout: Layout) -> str:
        plane = shape.in_h * shape.in_w
        return self.channels_last("x", layout, shape.batch, shape.in_channels, plane)

    def dy(self, shape: ConvGeometry, layout: Layout) -> str:
        plane = shape.out_h * shape.out_w
        return self.channels_last("dy", layout, shape.batch, shape.out_channels, plane)

    def w(self, shape: ConvGeometry, layout: Layout) -> str:
        filters, channels = shape.out_channels, shape.group_in_channels
        return self.channels_last("w", layout, filters, channels, shape.taps)

    def plan(
        self,
        product: Launch,
        problem: Problem,
        result: str,
        layout: Layout,
        splits: int,
        epilogue: Epilogue = PLAIN,
        width: int | None = None,
    ) -> Plan:
        """Return the plan: operands, ``product`` and, if it wrote parts of ``result``, their sum.

        Parts may have ``width`` channels, more than the result.
        """
        launches, buffers = [*self.launches, product], dict(self.buffers)
        if any(operand.tensor == WORKSPACE for operand in product.operands.values()):
            launches.append(add_parts(problem, result, layout, splits, epilogue, width))
            buffers[WORKSPACE] = parts_buffer(problem, result, splits, width)
        return Plan(tuple(launches), buffers, product=len(self.launches))


def _block(plane: int, channels: int, target: Target) -> tuple[int, int]:
    """Return pixels and channels of a program's tile, by rule: the copy is bound by memory."""
    if target.backend == "interpreter":  # it costs per program
        block_n = power_of_two(channels, 1, 512)
        return power_of_two(plane, 1, (1 << 19) // block_n), block_n
    block_n = power_of_two(channels, 1, 64)
    return power_of_two(plane, 1, TILE // block_n), block_n
