"""Compare the counts of the emulated GPU with the cost model's estimates, family by family.

    python -m benchmarks.counts --target sm_90 --json

Each row is one launch of a small layer. The executed counts are the warp instructions of the PTX,
prologue and stores included, the bytes of global memory that threads or boxes access, and the share
of wavefronts of shared memory that bank conflicts add. The estimates are the instructions of the
model's loop and of the sums across threads after it, and the bytes that a program fetches and
writes. A ratio is executed / estimated.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from autotune.estimated import count
from tconv.command_line import command_line
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import Problem
from tconv.target import EMULATED, TARGETS
from tconv.tile import Choice, Tile

C3 = ConvGeometry(2, 6, 14, 14, 16, 5, 5)  # LeNet-5's second convolution
BLOCK = ConvGeometry(2, 32, 8, 8, 32, 3, 3, pad_h=1, pad_w=1)
SEPARATE = ConvGeometry(2, 64, 12, 12, 64, 3, 3, pad_h=1, pad_w=1, groups=64)
GROUPS = ConvGeometry(2, 64, 8, 8, 64, 3, 3, pad_h=1, pad_w=1, groups=4)
STEM = ConvGeometry(2, 3, 16, 16, 32, 3, 3, pad_h=1, pad_w=1)
TILES: dict[tuple[ConvGeometry, str], dict[Pass, str]] = {
    (BLOCK, "implicit_gemm"): dict.fromkeys(PASSES, "32x32x32 s3 w4 g8 k1"),
    (BLOCK, "implicit_gemm_tma"): dict.fromkeys(PASSES, "64x32x32 s3 w4 g8 k1"),
    (GROUPS, "grouped"): {
        "fprop": "64x32x32 s3 w4 g8 k1",
        "dgrad": "64x32x32 s3 w4 g8 k1",
        "wgrad": "64x64x32 s3 w4 g8 k1",
    },
    (SEPARATE, "depthwise"): dict.fromkeys(PASSES, "16x64x4 s1 w4 g8 k1"),
    (C3, "direct"): {
        "fprop": "128x16x1 s1 w4 g8 k1",
        "dgrad": "128x8x1 s1 w4 g8 k1",
        "wgrad": "4x8x128 s1 w4 g8 k1",
    },
    (C3, "implicit_gemm"): {"wgrad": "16x32x16 s3 w4 g8 k1"},
    (STEM, "few_channels"): {"fprop": "64x32x16 s3 w4 g8 k1", "wgrad": "32x32x32 s3 w4 g8 k1"},
}
CASES = [
    (Problem(shape, direction), Choice(family, Tile.parse(tile)))
    for (shape, family), tiles in TILES.items()
    for direction, tile in tiles.items()
]
IN_PLACE = Choice("implicit_gemm_in_place", Tile.parse("32x32x32 s3 w4 g8 k1"))
CASES += [(Problem(BLOCK, direction, layout="nchw"), IN_PLACE) for direction in PASSES]


def main(
    target: Annotated[str, typer.Option(help="sm_80 or sm_90")] = "sm_90",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Print a row for each family and pass: counts executed on the emulated GPU, and estimated."""
    if target not in EMULATED:
        raise typer.BadParameter(f"{target!r} is not emulated; there are: {', '.join(EMULATED)}")
    rows = list(count(CASES, TARGETS[target]))
    if as_json:
        print(json.dumps([row.as_json() for row in rows]))
        return
    table = Table(title=f"{target}: executed on the emulated GPU / estimated by the cost model")
    for heading in ("problem", "family", "tile", "instructions", "ratio", "bytes", "ratio",
                    "bank conflicts"):  # fmt: skip
        table.add_column(heading)
    for row in rows:
        conflicts = "" if row.bank_conflicts is None else f"{row.bank_conflicts:.0%}"
        table.add_row(row.problem, row.family, row.tile,
                      f"{row.instructions} / {row.estimated_instructions:.0f}",
                      f"{row.instruction_ratio:.2f}",
                      f"{row.global_bytes} / {row.estimated_bytes:.0f}",
                      f"{row.byte_ratio:.2f}", conflicts)  # fmt: skip
    Console(width=180).print(table)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
