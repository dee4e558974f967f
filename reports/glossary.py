"""The glossary of a report, in the lecture's terms."""

from __future__ import annotations

from tconv.tile import TILE_LEGEND
from tconv.winners import Kind


def glossary(kind: Kind) -> list[tuple[str, str]]:
    """Return the glossary's terms and their definitions."""
    times = (
        "what the tuner's model computes from the compiled code's resources, without a GPU"
        if kind == "predicted"
        else "the median of repeated runs"
    )
    return [
        (
            "layer and volumes",
            "A layer maps a volume of W1 x H1 x C to W2 x H2 x K. It has K filters of extent F, "
            "moved by stride S over an input padded with P zeros on each side: W2 = (W1 - F + "
            "2P)/S + 1. This report writes volumes as CxHxW. A filter covers the whole depth, so "
            "it has F·F·C weights, and one bias.",
        ),
        (
            "pass",
            "fprop computes the outputs. dgrad computes the input's gradient: a full convolution "
            "of the outputs' gradient with the filters rotated by 180 degrees. wgrad computes "
            "the filters' gradient: the input convolved with the outputs' gradient.",
        ),
        (
            "tile",
            "Each pass is a matrix product, cut into tiles: a program computes block_m x block_n "
            "outputs and reduces over block_k per step. "
            f"{TILE_LEGEND[0].upper()}{TILE_LEGEND[1:]}.",
        ),
        (
            f"{kind} ms, TFLOP/s, GB/s",
            f"Milliseconds are {times}. TFLOP/s counts 2 operations for each multiply-add, GB/s "
            "one transfer each of x, w and y: the useful work, whatever the kernel really does.",
        ),
        (
            "roofline, share of roofline",
            "The roofline is the least possible time: the larger of the times that the machine's "
            "peak arithmetic rate and its memory bandwidth allow. The share is this time over "
            "the tile's; 1 is perfect. A layer with few FLOPs per byte is limited by memory.",
        ),
        (
            "times as fast, and slower",
            "torch's time over ours, both measured in one run on the same numbers and in the "
            "same precision. torch uses cuDNN's operators where cuDNN has one, and may choose "
            "among all its algorithms. channels_last, the fast memory format, stores the "
            "channels of each pixel together; contiguous, torch's default, stores one channel "
            "after another.",
        ),
        (
            "error against fp64",
            "The largest difference from the same pass in fp64, over the largest value. "
            + (
                "No GPU ran the layer. A CPU ran a scaled-down copy with the same tile through "
                "the same branches. The column checked says whether its compiled code ran, on an "
                "emulated GPU, or its source, in Triton's interpreter."
                if kind == "predicted"
                else "Measured on the layer itself, with fresh random inputs."
            ),
        ),
        (
            "registers, spills, shared memory, occupancy",
            "Read from the compiled code: registers and spilled bytes per thread, shared memory "
            "per program. Occupancy is the share of a processor's warps that these resources "
            "allow at once. Each spill is a memory access; low occupancy leaves latency exposed.",
        ),
        (
            "roof, and bound by",
            "The roof is the limit of an ideal kernel. Bound by is the resource that limits this "
            "tile according to the tuner's model: tensor cores, instruction issue, shared "
            "memory, L2, latency, DRAM, or the launch itself.",
        ),
        (
            "why it won",
            "The second best tile and its time, then the largest of these differences: masked "
            "products, operands read, waves, warps, instructions, spills. Tiles within 2% are "
            "called level.",
        ),
    ]
