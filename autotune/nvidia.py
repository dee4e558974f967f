"""The tile that NVIDIA's own heuristics choose: nvidia-matmul-heuristics, which needs no GPU.

It comes with the extra ``tconv[judge]`` for Linux on x86-64. Asked for a Triton kernel of a matrix
product, it lists tiles, best first; the first that was timed is its choice.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache
from typing import Any

from autotune.recordings import Recording, product_of

PACKAGE = "nvMatmulHeuristics"
INSTALL = "python -m pip install 'tconv[judge]'"
MOST_LISTED = 64  # tiles; more than NVIDIA's list has
GPUS = {"A100": "A100_SXM_80GB", "H100": "H100_SXM"}
# Operands, sums, results: H float16, T bfloat16, S float32, F sums of tf32 products.
PRECISIONS = {"float16": "HSH", "bfloat16": "TST", "tf32": "SFS"}
# Memory order of the operands: N as multiplied, T transposed.
LAYOUTS = {"fprop": "NT_ROW_MAJOR", "dgrad": "NN_ROW_MAJOR", "wgrad": "TN_ROW_MAJOR"}


def available() -> bool:
    """Return whether nvidia-matmul-heuristics is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def first_choice(recording: Recording) -> int | None:
    """Return the place, among the timed tiles, of the one that the heuristics rank first.

    None if they list no timed tile, or do not know the GPU or the problem.

    Raises:
        ImportError: where nvidia-matmul-heuristics is not installed.
    """
    problem = recording.problem
    precision, product = PRECISIONS.get(problem.arithmetic), product_of(problem)
    if recording.gpu not in GPUS or precision is None or product is None:
        return None
    heuristics = importlib.import_module(PACKAGE)

    interface = _interface(GPUS[recording.gpu])
    layout = heuristics.NvMatmulHeuristicsMatmulLayout[LAYOUTS[problem.direction]]
    request = interface.makeNvMatmulHeuristicsProblem(*product, layout)
    timed = {
        (tile.block_m, tile.block_n, tile.block_k, tile.stages, tile.warps): place
        for place, tile in enumerate(recording.tiles)
    }
    listed = (_tile(each["kernel"]) for each in interface.get(request, MOST_LISTED, precision))
    return next((timed[tile] for tile in listed if tile in timed), None)


def _tile(kernel: Any) -> tuple[int, int, int, int, int]:
    m, n = kernel.cta_tile_m, kernel.cta_tile_n
    warps = m // kernel.warp_tile_m * (n // kernel.warp_tile_n)
    return m, n, kernel.cta_tile_k, kernel.stages, warps


@lru_cache(maxsize=4)
def _interface(gpu: str) -> Any:
    heuristics = importlib.import_module(PACKAGE)

    return heuristics.NvMatmulHeuristicsInterfaceEx(
        heuristics.NvMatmulHeuristicsTarget.TRITON,
        load_discovery_implicitly=False,  # its built-in measurements make its choices worse here
        gpu=heuristics.NvMatmulHeuristicsNvidiaGpu[gpu],
    )
