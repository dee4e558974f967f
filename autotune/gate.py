"""The correctness gate: a tile can only win if its results agree with the reference.

On a GPU the gate runs the real geometry on fresh random inputs. Without a GPU it runs a scaled-down
geometry that takes the same branches, on the CPU in a worker process (``environment``): the
compiled code on an emulated GPU or, for targets that cannot be emulated, the source in Triton's
interpreter. The two cannot share a process.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autotune.measure import inputs
from autotune.trial import Check
from tconv import reference
from tconv.families import serves
from tconv.geometry import ConvGeometry, cdiv
from tconv.problem import Problem
from tconv.target import EMULATED, INTERPRETER, Target
from tconv.tile import Choice, Tile

SMALL_BATCH = 2  # images: a tile then spans the border between two
SMALL_SPLITS = 3  # parts of a split reduction: a first, a middle and a last
SMALL_GROUPS = 2
BLOCKS_ACROSS = 2  # blocks along each axis of the matrix product: one whole and one partial


@dataclass(frozen=True)
class Verdict:
    """Whether a result is correct; ``error`` is its largest error over the largest true value.

    ``counters`` are those of an emulated GPU, with the number of ``results``; ``faults`` are the
    machine rules that the compiled code broke.
    """

    passed: bool
    error: float
    detail: str = ""
    checked: Check = ""
    counters: Mapping[str, Any] | None = None
    faults: tuple[Mapping[str, Any], ...] = ()


def checked_by(target: Target) -> Check:
    """Return how a result for ``target`` is checked on a machine without its GPU."""
    return "emulated" if target.arch in EMULATED else "interpreted"


def environment(target: Target) -> dict[str, str | None]:
    """Return the environment of a worker that checks ``target``'s results without its GPU."""
    if checked_by(target) == "emulated":
        return {"TRITON_INTERPRET": None, "TCONV_EMULATE": target.arch}
    return {"TRITON_INTERPRET": "1", "TCONV_EMULATE": None}


def reduction_length(problem: Problem) -> int:
    """Return the largest number of products summed for one output."""
    shape = problem.geometry
    if problem.direction == "wgrad":
        return shape.batch * shape.out_h * shape.out_w
    channels = shape.group_in_channels if problem.direction == "fprop" else shape.group_out_channels
    return shape.taps * channels


def expected(problem: Problem, tensors: dict[str, Tensor]) -> Tensor:
    """Return the pass's correct result in fp64."""
    shape = problem.geometry
    if problem.direction == "fprop":
        return reference.conv2d(tensors["x"], tensors["w"], None, shape)
    if problem.direction == "dgrad":
        return reference.conv2d_dgrad(tensors["dy"], tensors["w"], shape)
    return reference.conv2d_wgrad(tensors["x"], tensors["dy"], shape)


def compare(result: Tensor, wanted: Tensor, problem: Problem) -> Verdict:
    """Compare ``result`` with the reference, within the tolerance of its dtype."""
    length = reduction_length(problem)
    rtol, atol = reference.tolerance(problem.dtype, length, problem.precision)
    error = (result.double() - wanted).abs()
    largest = float(error.max()) / max(float(wanted.abs().max()), 1e-30)
    # Negated so that NaN fails: NaN satisfies no bound.
    wrong = int((~(error <= atol + rtol * wanted.abs())).sum())
    if wrong == 0:
        return Verdict(True, largest)
    share = f"{wrong} of {wanted.numel()} values beyond rtol {rtol:.2g}, atol {atol:.2g}"
    return Verdict(False, largest if math.isfinite(largest) else math.inf, share)


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Fill fresh tensors with NaN, so that an output that no program wrote is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    # makes torch.empty fill (a flag that is on by default)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check_on(problem: Problem, choice: Choice, device: str) -> Verdict:
    """Run ``choice`` on fresh random tensors on ``device`` and compare with the reference."""
    from tconv.ops.conv_run import compute

    tensors = inputs(problem, device, secrets.randbits(31))
    with _poisoned():
        result = compute(problem, choice, **tensors)
    return compare(result, expected(problem, tensors), problem)


def check_on_gpu(problem: Problem, choice: Choice) -> Verdict:
    """Return the verdict on the real geometry, computed on the current GPU."""
    return replace(check_on(problem, choice, "cuda"), checked="gpu")


def check(problem: Problem, choice: Choice) -> Verdict:
    """Return the verdict on a scaled-down geometry in the interpreter; takes about a second."""
    small, tile = scaled_down(problem, choice)
    if small.dtype == "bfloat16":
        # The interpreter multiplies bfloat16 as raw bits. The kernel source is the same for both
        # dtypes, so float16 stands in.
        small = replace(small, dtype="float16")
    return replace(check_on(small, replace(choice, tile=tile), "cpu"), checked="interpreted")


def scaled_down(problem: Problem, choice: Choice) -> tuple[Problem, Tile]:
    """Return the smallest geometry that takes ``choice`` through the same branches.

    Filter, stride, padding, dilation, the remainders of channels modulo their blocks and the
    dropped border stay the same. The rest shrinks to about two blocks along each axis, or less far
    where the kernel family would not support it: boxes need strides of 16 bytes, so some groups
    keep more.

    >>> layer = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)
    >>> choice = Choice("implicit_gemm", Tile(128, 128, 64))
    >>> scaled_down(Problem(layer, "fprop"), choice)[0].geometry.key
    'n2c128h10w10-k256f3x3-s1x1-p1x1-d1x1-g1'
    """
    shape, tile = problem.geometry, choice.tile
    splits = min(tile.splits, SMALL_SPLITS)
    block_in, block_out, pixels = {
        "fprop": (tile.block_k, tile.block_n, tile.block_m),
        "dgrad": (tile.block_n, tile.block_k, tile.block_m),
        "wgrad": (tile.block_n, tile.block_m, tile.block_k * splits),
    }[problem.direction]
    # wgrad's columns are taps times channels, so several taps already make several blocks.
    along_taps = problem.direction == "wgrad" and shape.taps > 1
    ins = _fewer(shape.group_in_channels, block_in, 1 if along_taps else BLOCKS_ACROSS)
    outs = _fewer(shape.group_out_channels, block_out, BLOCKS_ACROSS)
    for batch, out_h, out_w in _fewer_pixels(shape, pixels + pixels // 2):
        for groups in range(min(shape.groups, SMALL_GROUPS), shape.groups + 1):
            small = replace(
                shape,
                batch=batch,
                in_channels=groups * ins,
                out_channels=groups * outs,
                groups=groups,
                # Shrink the input by as many strides as the output, to keep the dropped border.
                in_h=_least(shape.in_h - (shape.out_h - out_h) * shape.stride_h, shape.in_h),
                in_w=_least(shape.in_w - (shape.out_w - out_w) * shape.stride_w, shape.in_w),
            )
            posed = replace(problem, geometry=small)
            if serves(choice.family, posed, INTERPRETER):
                return posed, replace(tile, splits=splits)
    return problem, tile


def _fewer_pixels(shape: ConvGeometry, wanted: int) -> Iterator[tuple[int, int, int]]:
    """Yield batches and output sizes with ``wanted`` pixels: one whole block and part of another.

    The first is two small images. Boxes must divide an image's sides, so sides that are multiples
    of 8 follow, then whole images. Boxes may also run along the batch, so a whole batch comes last.
    """
    for images in (SMALL_BATCH, shape.batch):
        image = cdiv(wanted, max(images, 1))
        out_h = min(shape.out_h, math.ceil(math.sqrt(image)))
        out_w = min(shape.out_w, cdiv(image, out_h))
        even = min(shape.out_h, -8 * (-out_h // 8)), min(shape.out_w, -8 * (-out_w // 8))
        for rows, columns in ((out_h, out_w), even, (shape.out_h, shape.out_w)):
            yield min(shape.batch, max(images, cdiv(wanted, rows * columns))), rows, columns


def _fewer(channels: int, block: int, blocks: int) -> int:
    """Return at most ``blocks`` blocks of channels, with the same remainder as ``channels``."""
    if channels <= blocks * block:
        return channels
    return block + channels % block if channels % block else blocks * block


def _least(size: int, whole: int) -> int:
    """Return ``size``, or ``whole`` if padding and filter alone would cover so small an input."""
    return size if size >= 1 else whole
