"""Typed rows of a report's tables, and their CSV files.

``layers.csv`` has one row per layer and pass, ``trials.csv`` one per tried candidate in the order
of the tuner's ranking, ``space.csv`` the number of tiles left by each rule, ``map.csv`` the model's
figure for each block shape, ``networks.csv`` whole networks, ``operators.csv`` their time by
operator, ``memory.csv`` each layer's memory. Writing and reading a row changes nothing, because
collectors first round figures with ``rounded``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, get_type_hints, overload

from tconv.extras import extra
from tconv.files import read_text, replace_all
from tconv.geometry import ConvGeometry, Pass, PoolGeometry
from tconv.problem import ARITHMETICS, ITEMSIZE, Problem
from tconv.tile import Tile
from tconv.winners import LARGEST_FILE, Kind

with extra("reports"):
    import pandas as pd

ADDED = re.compile("checked|emulated_.*")  # columns that tables of version 0.1.0 lack
DIGITS = 4  # significant digits of every figure in a table


class RowError(ValueError):
    """A CSV is not a table of rows; the message names file, row and column."""


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: None) -> None: ...
def rounded(value: float | None) -> float | None:
    """Round ``value`` to the digits that a table shows.

    >>> rounded(0.123456), rounded(98765.4)
    (0.1235, 98770.0)
    """
    return None if value is None else float(f"{value:.{DIGITS}g}")


def number_text(value: float) -> str:
    """Format a figure as in tables, CSV files and pages.

    >>> [number_text(value) for value in (0.1235, 98770.0, 0.00000123, 12.0)]
    ['0.1235', '98770', '1.23e-06', '12']
    """
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{DIGITS}g}"
    return f"{value:.8f}".rstrip("0").rstrip(".") if value != int(value) else str(int(value))


def pair_text(down: int, across: int) -> str:
    """Format a hyperparameter of both axes: ``1`` if they agree, else ``1x2``."""
    return str(down) if down == across else f"{down}x{across}"


def pair_of(text: str) -> tuple[int, int]:
    """Parse the output of ``pair_text``."""
    down, _, across = text.partition("x")
    return int(down), int(across or down)


@dataclass(frozen=True)
class LayerRow:
    """One pass of one layer with the best choice found for it; None means unknown.

    ``dtype`` is the arithmetic (``tf32`` if operands are rounded to it). ``kind`` says whether
    ``tconv_ms`` was measured, or predicted by the model from compiled code.
    """

    suite: str
    layer: str
    direction: Pass  # column "pass"
    dtype: str
    batch: int
    in_channels: int
    in_h: int
    in_w: int
    filters: int | None
    filter_h: int
    filter_w: int
    stride: str
    padding: str
    dilation: str
    groups: int
    family: str
    tile: str
    kind: Kind
    tconv_ms: float | None = None
    tconv_ms_p20: float | None = None
    tconv_ms_p80: float | None = None
    cudnn_nhwc_ms: float | None = None
    cudnn_nchw_ms: float | None = None
    tflops: float | None = None
    gbps: float | None = None
    roofline_share: float | None = None
    error_fp64: float | None = None
    cudnn_error_fp64: float | None = None

    @property
    def geometry(self) -> ConvGeometry:
        """The convolution's geometry, or None for a pooling row, which has no filters."""
        assert self.filters is not None, self
        window = (*pair_of(self.stride), *pair_of(self.padding), *pair_of(self.dilation))
        volume = (self.batch, self.in_channels, self.in_h, self.in_w)
        return ConvGeometry(
            *volume, self.filters, self.filter_h, self.filter_w, *window, self.groups
        )

    @property
    def pool(self) -> PoolGeometry:
        """The pool's geometry, for a row without filters."""
        assert self.filters is None, self
        volume = (self.batch, self.in_channels, self.in_h, self.in_w)
        window = (*pair_of(self.stride), *pair_of(self.padding), *pair_of(self.dilation))
        return PoolGeometry(*volume, self.filter_h, self.filter_w, *window)

    @property
    def output_volume(self) -> str:
        """The output volume as CxHxW."""
        if self.filters is not None:
            return self.geometry.output_volume
        return f"{self.in_channels}x{self.pool.out_h}x{self.pool.out_w}"

    @property
    def times_nhwc(self) -> float | None:
        """Speed-up over torch's operator on channels_last tensors."""
        return _over(self.cudnn_nhwc_ms, self.tconv_ms)

    @property
    def times_nchw(self) -> float | None:
        """Speed-up over torch's operator on contiguous tensors."""
        return _over(self.cudnn_nchw_ms, self.tconv_ms)

    @property
    def epilogue(self) -> str:
        """The kernel's epilogue, in the form of its suite's suffix: ``relu+pool``."""
        return self.suite.partition("+")[2]

    @property
    def least_bytes(self) -> int:
        """Bytes that the pass must move: x, w and y once each; for a pool, x and y."""
        if self.filters is None:
            return self.pool.least_bytes(ITEMSIZE[self.dtype])
        shape, problem = self.geometry, self.problem
        if "pool" not in self.epilogue:
            return problem.least_bytes
        pooled = shape.batch * shape.out_channels * (shape.out_h // 2) * (shape.out_w // 2)
        return problem.least_bytes - problem.itemsize * (shape.y_elements - pooled)

    @property
    def problem(self) -> Problem:
        return Problem.of(self.geometry, self.direction, self.dtype)


def _over(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs and ours else None


@dataclass(frozen=True)
class TrialRow:
    """One candidate for one problem.

    ``ms`` is of ``kind``. ``ranked_ms`` is the model's figure before compilation. ``status`` is
    ``ok`` or the reason for failure. A row without an error was never checked and cannot win.
    ``bound`` is the resource that limits the tile according to the model, ``waves`` how often its
    programs fill the GPU. ``checked`` says how the error was found. The emulated columns were
    counted on a GPU emulator that ran the compiled code of a scaled-down copy.
    """

    problem: str
    family: str
    tile: str
    kind: Kind
    status: str
    ranked_ms: float | None = None
    ms: float | None = None
    error_fp64: float | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    occupancy: float | None = None
    instructions: int | None = None
    programs: int | None = None
    waves: float | None = None
    bound: str = ""
    checked: str = ""
    emulated_instructions: float | None = None  # per result
    emulated_kinds: str = ""  # the most frequent kinds, per result
    emulated_global_bytes: float | None = None  # per result
    emulated_sectors: float | None = None  # per request
    emulated_bank_conflicts: float | None = None  # over the necessary passes
    emulated_tma_bytes: float | None = None  # per result
    emulated_barriers: float | None = None  # per program


@dataclass(frozen=True)
class SpaceRow:
    """Number of a problem's tiles left by ``rule``; rules apply in the order of the rows."""

    problem: str
    rule: str
    remaining: int


@dataclass(frozen=True)
class MapRow:
    """The model's best figure before compilation over all tiles of one block shape."""

    problem: str
    block_m: int
    block_n: int
    tile: str
    ranked_ms: float


@dataclass(frozen=True)
class NetworkRow:
    """A whole network: ``ms`` is the median of a batch's inference or of a training step.

    ``peak_mib`` is the peak memory, weights included. ``backend`` names the kernels and how they
    were launched.
    """

    model: str
    mode: str  # inference or training
    batch: int
    dtype: str
    backend: str
    ms: float
    images_per_s: float
    peak_mib: float | None = None


@dataclass(frozen=True)
class OperatorRow:
    """Device time that a network's step spends in one kind of operator."""

    model: str
    mode: str
    batch: int
    dtype: str
    backend: str
    operator: str
    ms: float


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of one layer's forward and backward pass, its tensors included."""

    suite: str
    layer: str
    operator: str  # convolution or max-pool
    dtype: str
    batch: int
    tconv_peak_mib: float
    torch_peak_mib: float


@dataclass(frozen=True)
class CauseRow:
    """Known cause of a layer pass's speed, written by hand."""

    suite: str
    layer: str
    direction: Pass  # column "pass"
    dtype: str
    cause: str


@dataclass(frozen=True)
class CompilerRow:
    """One Triton version's code for a winner, and whether its result is correct.

    Resources are of the code compiled for the problem itself; emulated figures are of a scaled-down
    copy.
    """

    problem: str
    family: str
    tile: str
    triton: str
    result: str  # passed or failed
    error_fp64: float | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    instructions: int | None = None
    emulated_instructions: float | None = None  # per result
    emulated_global_bytes: float | None = None  # per result
    emulated_sectors: float | None = None  # per request
    emulated_bank_conflicts: float | None = None  # over the necessary passes
    emulated_barriers: float | None = None  # per program
    detail: str = ""


Row = TypeVar(
    "Row", LayerRow, TrialRow, SpaceRow, MapRow, NetworkRow, OperatorRow, MemoryRow, CauseRow,
    CompilerRow,
)  # fmt: skip


RENAMED = {"algorithm": "family"}  # columns of 0.1.0 that have been renamed


def column_of(field_name: str) -> str:
    return "pass" if field_name == "direction" else field_name


def columns_of(row_type: type[Row]) -> list[str]:
    return [column_of(field.name) for field in fields(row_type)]


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return number_text(cell) if isinstance(cell, float) else str(cell)


def rows_text(row_type: type[Row], rows: Iterable[Row]) -> str:
    """Return ``rows`` as CSV text, with the header even if there are none."""
    names = [field.name for field in fields(row_type)]
    content = [[_text(getattr(row, name)) for name in names] for row in rows]
    frame = pd.DataFrame(content, columns=columns_of(row_type), dtype=str)
    return frame.to_csv(index=False, lineterminator="\n")


def write_rows(path: Path, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write ``rows`` as CSV, atomically."""
    replace_all({path: rows_text(row_type, rows)})


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Read the rows of a CSV that ``write_rows`` or another tool wrote.

    Raises:
        RowError: naming the file, the row (counted from 1 below the header) and the column, if the
            table is missing, empty or cut off, or has other columns or invalid values.
    """
    try:
        text = read_text(path, LARGEST_FILE)
        if text is None:
            raise RowError(f"{path} cannot be read: there is no such file")
        frame = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False, na_values=[])
    except pd.errors.EmptyDataError as error:
        raise RowError(f"{path} is empty: not even a header") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise RowError(f"{path} cannot be read: {str(error).strip()}") from error
    frame = frame.rename(columns=RENAMED)
    expected = columns_of(row_type)
    missing = [column for column in expected if column not in frame.columns]
    if absent := [column for column in missing if not ADDED.fullmatch(column)]:
        raise RowError(f"{path}: header: column {absent[0]} is missing")
    if not isinstance(frame.index, pd.RangeIndex):  # pandas reads surplus cells as an index
        raise RowError(f"{path}: row 1 has more cells than the header has columns")
    frame = frame.assign(**dict.fromkeys(missing, ""))
    parsers = _parsers(row_type)
    cells = frame[expected].itertuples(index=False, name=None)
    return [_row(path, row_type, parsers, number, row) for number, row in enumerate(cells, 1)]


def _row(
    path: Path,
    row_type: type[Row],
    parsers: dict[str, Callable[[str], Any]],
    number: int,
    cells: Sequence[object],
) -> Row:
    values: list[Any] = []
    for (column, parse), cell in zip(parsers.items(), cells, strict=True):
        if not isinstance(cell, str):
            raise RowError(f"{path}: row {number}, column {column}: the row ends before it")
        try:
            values.append(parse(cell))
        except ValueError as error:
            raise RowError(f"{path}: row {number}, column {column}: {error}") from error
    return row_type(*values)


def _parsers(row_type: type[Row]) -> dict[str, Callable[[str], Any]]:
    """A parser for each column: by the column's name where it has rules, else by its type."""
    hints = get_type_hints(row_type)
    by_type: dict[object, Callable[[str], Any]] = {
        int: _count,
        int | None: _optional(_count),
        float: _figure,
        float | None: _optional(_figure),
    }
    return {
        column_of(name): RULES.get(name) or by_type.get(hint, _word) for name, hint in hints.items()
    }


def _word(cell: str) -> str:
    if not cell:
        raise ValueError("it is empty")
    return cell


def _count(cell: str) -> int:
    if not re.fullmatch(r"\d{1,15}", cell):
        raise ValueError(f"{cell!r} is not a whole number")
    return int(cell)


def _figure(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{cell!r} is not a number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{cell!r} is not a number from 0 up")
    return value


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda cell: parse(cell) if cell else None


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(cell: str) -> str:
        if cell not in words:
            raise ValueError(f"{cell!r} is not one of {', '.join(words)}")
        return cell

    return parse


def _extent(cell: str) -> str:
    if not re.fullmatch(r"\d{1,9}(x\d{1,9})?", cell):
        raise ValueError(f"{cell!r} does not read as 1 or 1x2")
    return cell


def _tile(cell: str) -> str:
    return str(Tile.parse(cell))


def _problem(cell: str) -> str:
    try:
        return Problem.from_key(cell).key
    except ValueError:
        raise ValueError(f"{cell!r} names no problem") from None


MODES = ("inference", "training")
RULES: dict[str, Callable[[str], Any]] = {
    "mode": _one_of(*MODES),
    "direction": _one_of("fprop", "dgrad", "wgrad"),
    "dtype": _one_of(*ARITHMETICS),
    "kind": _one_of("measured", "predicted"),
    "stride": _extent,
    "padding": _extent,
    "dilation": _extent,
    "tile": _tile,
    "problem": _problem,
    "bound": str,
    "checked": _one_of("", "interpreted", "emulated", "gpu"),
    "emulated_kinds": str,
    "detail": str,
}
