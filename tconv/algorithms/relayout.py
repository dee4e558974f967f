"""What comes before and after a product: operands brought channels_last, parts added up."""

from __future__ import annotations

from dataclasses import dataclass, field

from tconv.algorithms.common import index_type, power_of_two
from tconv.algorithms.reduce import WORKSPACE, add_parts, parts_buffer
from tconv.geometry import ConvGeometry
from tconv.ops.launch import Buffer, Launch, Plan, Pointer, cdiv
from tconv.problem import Layout, Problem
from tconv.target import Target

TILE = 4096  # elements a program: 64 x 64, or long and narrow where channels are few


@dataclass
class Operands:
    """The launches that bring operands into shape, and the memory that they fill."""

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
        width: int | None = None,
    ) -> str:
        """The name of tensor ``name`` with its channels last, each pixel ``width`` of them.

        That is the tensor itself where it lies so already; else a launch and a buffer are added.
        """
        width = width or channels
        lies_so = layout == "nhwc" or channels == 1 or plane == 1
        if lies_so and width == channels:
            return name
        wide = f"{name}_nhwc"
        block_m, block_n = _block(plane, width, self.target)
        tiles = images * cdiv(plane, block_m) * cdiv(width, block_n)
        launch = Launch(
            "relayout.to_channels_last",
            (tiles,),
            {"narrow": Pointer(name, self.dtype), "wide": Pointer(wide, self.dtype)},
            {"plane": plane},
            {
                "CHANNELS": channels,
                "WIDTH": width,
                "CHANNELS_FIRST": not lies_so,
                "INDEX": index_type(images * plane * width),
                "BLOCK_M": block_m,
                "BLOCK_N": block_n,
            },
        )
        self.launches.append(launch)
        self.buffers[wide] = Buffer(images * plane * width, self.dtype)
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
        bias: bool = False,
    ) -> Plan:
        """Operands, ``product`` and, where it wrote parts of ``result``, their sum."""
        launches, buffers = [*self.launches, product], dict(self.buffers)
        if any(operand.tensor == WORKSPACE for operand in product.operands.values()):
            launches.append(add_parts(problem, result, layout, splits, bias))
            buffers[WORKSPACE] = parts_buffer(problem, result, splits)
        return Plan(tuple(launches), buffers, product=len(self.launches))


def _block(plane: int, width: int, target: Target) -> tuple[int, int]:
    """Pixels and channels of a program's tile: memory-bound, so by rule and not by tuning."""
    if target.backend == "interpreter":  # it costs per program
        block_n = power_of_two(width, 1, 512)
        return power_of_two(plane, 1, (1 << 19) // block_n), block_n
    block_n = power_of_two(width, 1, 64)
    return power_of_two(plane, 1, TILE // block_n), block_n
