"""The shortcuts through Triton's interpreter change no result and leave nothing replaced."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from tests.interpreter_speed import hasten, overflow_checked

pytestmark = pytest.mark.interpreter


@triton.jit
def plus_one(values):
    return values + 1


@triton.jit
def add_one(values, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(values + place, plus_one(tl.load(values + place)))


def test_a_launch_replaces_the_language_and_restores_it() -> None:
    hasten()  # again: it does nothing
    values = torch.arange(4, dtype=torch.int32)
    add_one[(1,)](values, 4)  # the first one leaves inherited methods in the class itself
    language = dict(vars(tl)), dict(vars(tl.tensor))
    for _ in range(3):
        values = torch.arange(4, dtype=torch.int32)
        add_one[(1,)](values, 4)
        assert values.tolist() == [1, 2, 3, 4]
        assert language == (dict(vars(tl)), dict(vars(tl.tensor)))


def test_an_overflow_is_seen_where_it_is_asked_for() -> None:
    largest = torch.full((4,), 2**31 - 1, dtype=torch.int32)
    add_one[(1,)](largest.clone(), 4)
    with overflow_checked(), pytest.raises(Exception, match="overflow"):
        add_one[(1,)](largest.clone(), 4)


@triton.jit
def add_rows(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    rows = tl.zeros((ROWS, COLUMNS), tl.int32) + row[:, None]
    total = tl.sum(rows + column[None, :] + tl.full((COLUMNS,), 1, tl.int64), axis=0)
    tl.static_assert(total.shape[0] == COLUMNS)
    tl.static_assert(rows.dtype == tl.int32)
    tl.static_assert(total.dtype == tl.int64)
    tl.store(values + column, total)


@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (4, 2), (2, 2), (1, 4)])
def test_types_and_shapes_made_once_stay_apart(rows: int, columns: int) -> None:
    """Blocks of equal sizes and other types, of equal types and other sizes, and broadcast ones."""
    values = torch.zeros(columns, dtype=torch.int64)
    add_rows[(1,)](values, rows, columns)
    first = rows * (rows - 1) // 2 + rows
    assert values.tolist() == [first + rows * column for column in range(columns)]


def test_blocks_that_do_not_match_are_refused() -> None:
    with pytest.raises(Exception, match="incompatible dimensions"):
        add_apart[(1,)](torch.zeros(8))


@triton.jit
def add_apart(values):
    tl.store(values + tl.arange(0, 8), tl.arange(0, 8) + tl.arange(0, 4))


@triton.jit
def add_constants(values, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    small, half = place.to(tl.int8), (place + 1).to(tl.float16)
    tl.static_assert((place + 1).dtype == tl.int32)
    tl.static_assert((1 - place.to(tl.int64)).dtype == tl.int64)
    tl.static_assert((small + small).dtype == tl.int8)
    tl.static_assert((place + 0.5).dtype == tl.float32)
    tl.static_assert((half / half).dtype == tl.float32)
    tl.static_assert((place + place.to(tl.int64)).dtype == tl.int64)
    tl.store(values + place, (7 - place) * 2 + small)


def test_operands_have_the_types_of_the_language() -> None:
    values = torch.zeros(4, dtype=torch.int64)
    add_constants[(1,)](values, 4)
    assert values.tolist() == [14, 13, 12, 11]


INNER = """
import triton
import triton.language as tl

@triton.jit
def plus_one(values):
    return values + tl.full(values.shape, 1, values.dtype)

@triton.jit
def add_one(values, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(values + place, plus_one(tl.load(values + place)))
"""
OUTER = """
import triton
import triton.language as tl
from {inner} import plus_one

@triton.jit
def add_two(values, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    found = plus_one(plus_one(tl.load(values + place)))
    tl.store(values + place, tl.where(found > 0, found, found))
"""


@pytest.mark.parametrize("outer_first", [True, False])
def test_a_function_of_another_module_replaces_and_restores_what_its_caller_needs(
    outer_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    inner, outer = (f"{name}_{outer_first}" for name in ("inner", "outer"))
    (tmp_path / f"{inner}.py").write_text(INNER)
    (tmp_path / f"{outer}.py").write_text(OUTER.format(inner=inner))
    kernels = [(import_module(outer).add_two, 2), (import_module(inner).add_one, 1)]
    for kernel, more in 2 * (kernels if outer_first else kernels[::-1]):
        values = torch.arange(4, dtype=torch.int32)
        kernel[(1,)](values, 4)
        assert values.tolist() == [more, more + 1, more + 2, more + 3]
