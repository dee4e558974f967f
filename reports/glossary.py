"""The glossary of a report, in the lecture's terms."""

from __future__ import annotations

from tconv.tile import TILE_LEGEND
from tconv.winners import Kind


def glossary(kind: Kind) -> list[tuple[str, str]]:
    """Return the glossary's terms and their definitions."""
    times = (
        "what the tuner's model computes from the compiled code's resources; no GPU ran it"
        if kind == "predicted"
        else "the median of repeated runs"
    )
    return [
        (
            "layer and volumes",
            "A layer takes a volume of W1 x H1 x C and has K filters of extent F, moved by stride "
            "S over an input with a border of P zeros. It gives W2 x H2 x K, where "
            "W2 = (W1 - F + 2P)/S + 1. Volumes are written CxHxW here. A filter reaches through "
            "the whole depth: F·F·C weights and one bias.",
        ),
        (
            "pass",
            "fprop computes the outputs. dgrad carries their gradient back to the input: a full "
            "convolution with the filters turned by 180 degrees. wgrad carries it to the filters: "
            "the input convolved with the outputs' gradient.",
        ),
        (
            "tile",
            "Each pass is a matrix product, cut into tiles: a program computes block_m x block_n "
            f"outputs and reduces over block_k a step. {TILE_LEGEND[0].upper()}{TILE_LEGEND[1:]}.",
        ),
        (
            f"{kind} ms, TFLOP/s, GB/s",
            f"Milliseconds are {times}. TFLOP/s counts 2 operations for each multiply and add, "
            "GB/s each of x, w and y moved once: the useful work, whatever the kernel does.",
        ),
        (
            "roofline, and the share of it",
            "No machine is faster than its arithmetic, or than its memory delivers. The roofline "
            "is the larger of these two times; the share is that time over the tile's, and 1 is "
            "perfect. A layer with few FLOPs a byte lies under the memory roof.",
        ),
        (
            "times as fast, and slower",
            "torch's time over ours, both measured in one run on the same numbers, in the same "
            "precision. torch's operators are cuDNN's where cuDNN has one, and it may choose among "
            "all its algorithms. channels_last is the fast memory format, pixel after pixel with "
            "all their channels; contiguous is torch's default, channel after channel.",
        ),
        (
            "error against fp64",
            "The largest difference from the same pass in fp64, over the largest value. "
            + (
                "No GPU ran the layer: a copy of it, scaled down until a CPU can compute it, took "
                "the same tile through the same branches. Checked says whether its compiled code "
                "ran, on an emulated GPU, or its source, in Triton's interpreter."
                if kind == "predicted"
                else "Of the layer itself, on fresh random inputs."
            ),
        ),
        (
            "registers, spills, shared memory, occupancy",
            "Read from the compiled code: registers and spilled bytes a thread, shared memory a "
            "program. Occupancy is the share of a processor's warps that these let run at once. "
            "A spill is a trip to memory; low occupancy leaves waiting unhidden.",
        ),
        (
            "roof, and bound by",
            "The roof is what bounds an ideal kernel. Bound by names what the tuner's model holds "
            "to be narrowest for this very tile: tensor cores, the issue of instructions, shared "
            "memory, L2, latency, DRAM, or the launch itself.",
        ),
        (
            "why it won",
            "The next best tile and its time, then the largest of these differences: masked "
            "products, operands read, waves, warps, instructions, spills. Within 2% the two are "
            "called level.",
        ),
    ]
