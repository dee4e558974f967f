"""Compile the dense kernels with the tiles that matter, and print what their loops take.

Run in a process of its own, since Triton's interpreter and compiler do not share one:
``python -m tests.tconv.kernels.loops`` prints a JSON object, case -> resources.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.compile import READERS, listing_of
from autotune.disassembly import program_instructions
from tconv.aot.build import build
from tconv.families import FAMILIES
from tconv.geometry import ConvGeometry, Pass
from tconv.problem import Layout, Problem
from tconv.target import TARGETS
from tconv.tile import Tile

VGG = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)
STRIDED = ConvGeometry(64, 256, 56, 56, 256, 3, 3, 2, 2, 1, 1)
PLAIN = ConvGeometry(64, 256, 56, 56, 256, 1, 1)
STEM = ConvGeometry(64, 3, 224, 224, 64, 7, 7, 2, 2, 3, 3)
USUAL = Tile(128, 128, 64, stages=3, warps=8)
SMALL = Tile(128, 64, 32, stages=3, warps=4)


@dataclass(frozen=True)
class Bar:
    """A case, and the most instructions that a step of its loop may take."""

    family: str
    shape: ConvGeometry
    direction: Pass
    instructions: int
    tile: Tile = USUAL
    target: str = "sm_90"


BARS = {
    "fprop": Bar("implicit_gemm", VGG, "fprop", 105),
    "fprop, persistent":
        Bar("implicit_gemm", VGG, "fprop", 105, dataclasses.replace(USUAL, persistent=1)),
    "fprop, stride 2": Bar("implicit_gemm", STRIDED, "fprop", 105),
    "fprop, 1x1": Bar("implicit_gemm", PLAIN, "fprop", 95),
    "fprop, 256x128":
        Bar("implicit_gemm", VGG, "fprop", 150, Tile(256, 128, 64, stages=2, warps=8)),
    "fprop, 128x256":
        Bar("implicit_gemm", VGG, "fprop", 125, Tile(128, 256, 64, stages=2, warps=8)),
    "dgrad": Bar("implicit_gemm", VGG, "dgrad", 130),
    "dgrad, stride 2": Bar("implicit_gemm", STRIDED, "dgrad", 130),
    "dgrad, stride 2, sm_100": Bar("implicit_gemm", STRIDED, "dgrad", 130, target="sm_100"),
    "wgrad": Bar("implicit_gemm", VGG, "wgrad", 150),
    "wgrad, stride 2": Bar("implicit_gemm", STRIDED, "wgrad", 150),
    "boxes, fprop": Bar("implicit_gemm_tma", VGG, "fprop", 100),
    "boxes, persistent":
        Bar("implicit_gemm_tma", VGG, "fprop", 100, dataclasses.replace(USUAL, persistent=1)),
    "boxes, fprop, 1x1": Bar("implicit_gemm_tma", PLAIN, "fprop", 95),
    "boxes, fprop, stride 2": Bar("implicit_gemm_tma", STRIDED, "fprop", 122),
    "boxes, dgrad":
        Bar("implicit_gemm_tma", VGG, "dgrad", 101),  # of Triton 3.6 and 3.9; 3.7 takes fewer
    "boxes, wgrad": Bar("implicit_gemm_tma", VGG, "wgrad", 150),
    "few channels, 7x7 stride 2": Bar("few_channels", STEM, "fprop", 170, SMALL),
    "few channels, 7x7 stride 2, wgrad": Bar("few_channels", STEM, "wgrad", 170,
                                             Tile(64, 128, 64, stages=3, warps=4)),
}  # fmt: skip


DEPTHWISE_3X3 = ConvGeometry(32, 144, 56, 56, 144, 3, 3, 1, 1, 1, 1, groups=144)
DEPTHWISE_STRIDED = ConvGeometry(32, 144, 56, 56, 144, 3, 3, 2, 2, 1, 1, groups=144)


@dataclass(frozen=True)
class StripBar:
    """A depthwise case without loops, and the most instructions that one of its results takes."""

    shape: ConvGeometry
    direction: Pass
    instructions: float
    layout: Layout = "nhwc"


STRIP_BARS = {
    "depthwise 3x3, fprop": StripBar(DEPTHWISE_3X3, "fprop", 27),
    "depthwise 3x3, dgrad": StripBar(DEPTHWISE_3X3, "dgrad", 27),
    "depthwise 3x3 stride 2, fprop": StripBar(DEPTHWISE_STRIDED, "fprop", 31),
    "depthwise 3x3 stride 2, dgrad": StripBar(DEPTHWISE_STRIDED, "dgrad", 18),
    # Of contiguous tensors a load fetches one element.
    "depthwise 3x3 contiguous, fprop": StripBar(DEPTHWISE_3X3, "fprop", 40, "nchw"),
}


def strips() -> Iterator[tuple[str, dict[str, float]]]:
    """Resources of each depthwise case, and instructions for each result of a thread."""
    target = TARGETS["sm_90"]
    for name, bar in STRIP_BARS.items():
        problem = Problem(bar.shape, bar.direction, layout=bar.layout)
        tile = FAMILIES["depthwise"].heuristic(problem, target)
        plan = FAMILIES["depthwise"].plan(problem, tile, target)
        compiled = build(plan.launches[plan.product], target)
        results = tile.block_m * tile.block_n * tile.block_k / (32 * tile.warps)
        whole = program_instructions(listing_of(compiled)) / results
        yield name, dataclasses.asdict(READERS["cuda"](compiled, 1, 0)) | {"instructions": whole}


def measured() -> Iterator[tuple[str, dict[str, int]]]:
    """Resources of each case, and how often operands detour from shared memory to registers."""
    for name, bar in BARS.items():
        problem, target = Problem(bar.shape, bar.direction), TARGETS[bar.target]
        plan = FAMILIES[bar.family].plan(problem, bar.tile, target)
        compiled = build(plan.launches[plan.product], target)
        taken = dataclasses.asdict(READERS["cuda"](compiled, 1, 0))
        yield name, taken | {"detours": compiled.asm["ttgir"].count("local_load")}


if __name__ == "__main__":
    print(json.dumps(dict(measured()) | dict(strips())))
