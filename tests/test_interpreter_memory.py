"""Tests that the interpreter reports kernels' memory errors."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.interpreter_memory import unwatched

pytestmark = pytest.mark.interpreter


@triton.jit
def copy(x, y, SHIFT: tl.constexpr, READ: tl.constexpr, WRITTEN: tl.constexpr, STEP: tl.constexpr):
    """y = x, four elements per program; any argument other than the default breaks a rule."""
    place = tl.program_id(0) * STEP + tl.arange(0, 4)
    value = tl.load(x + place + SHIFT, mask=place < READ, other=0.0)
    tl.store(y + place, value, mask=place < WRITTEN)


SOUND = {"SHIFT": 0, "READ": 7, "WRITTEN": 7, "STEP": 4}


def run(**changed: int) -> None:
    x, y = torch.arange(7.0), torch.zeros(7)
    copy[(2,)](x, y, **(SOUND | changed))
    torch.testing.assert_close(y, x)


def test_correct_kernels_pass() -> None:
    run()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"READ": 8}, "0 elements before x and 1 beyond it"),
        ({"SHIFT": -2}, "2 elements before x and 0 beyond it"),
        ({"SHIFT": 1 << 20}, "far from each"),
        ({"WRITTEN": 8}, "0 elements before y and 1 beyond it"),
        ({"WRITTEN": 6}, "1 of 7 elements of y are not written"),
        ({"STEP": 3}, "an element of y is written twice"),
    ],
    ids=["reads-beyond", "reads-before", "reads-afar", "writes-beyond", "misses", "twice"],
)
def test_faults(changed: dict[str, int], words: str) -> None:
    with pytest.raises(Exception, match=words):  # Triton wraps a kernel's exceptions
        run(**changed)


@triton.jit
def in_place(x, SHIFT: tl.constexpr):
    place = tl.program_id(0) * 4 + tl.arange(0, 4)
    source = (place + SHIFT) % 8
    tl.store(x + place, tl.load(x + source))


def test_reading_what_another_program_writes() -> None:
    in_place[(2,)](torch.zeros(8), SHIFT=0)
    with pytest.raises(Exception, match="x is read where the same launch has written it"):
        in_place[(2,)](torch.zeros(8), SHIFT=4)


@triton.jit
def to_one_place(y):
    tl.store(y + tl.arange(0, 4) // 2, tl.arange(0, 4))


def test_two_lanes_of_one_store() -> None:
    with pytest.raises(Exception, match="an element of y is written twice"):
        to_one_place[(1,)](torch.zeros(2))


@triton.jit
def masked_without_other(x, y):
    place = tl.arange(0, 4)
    tl.store(y + place, tl.load(x + place, mask=place < 3))


def test_a_masked_load_needs_other() -> None:
    with pytest.raises(Exception, match="does not say what it leaves out"):
        masked_without_other[(1,)](torch.zeros(4), torch.zeros(4))


def test_deliberately_broken_kernels_are_skipped() -> None:
    with unwatched():
        in_place[(2,)](torch.zeros(8), SHIFT=4)
    with pytest.raises(Exception, match="x is read"):
        in_place[(2,)](torch.zeros(8), SHIFT=4)
