"""CSV files of typed rows; errors name file, row and column."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from reports.rows import number_text
from tconv.extras import extra
from tconv.files import read_text, replace_all
from tconv.winners import LARGEST_FILE

with extra("reports"):
    import attrs

ADDED = re.compile("checked|emulated_.*")  # columns that tables of version 0.1.0 lack
RENAMED = {"algorithm": "family", "direction": "pass"}  # today's names of columns of 0.1.0
Row = TypeVar("Row", bound=attrs.AttrsInstance)


class RowError(ValueError):
    """Raised for a CSV file that is not a table of rows; the message names file, row and column."""


def column_of(field_name: str) -> str:
    """Return the column of a field; ``pass``, a keyword of Python, cannot be a field's name."""
    return "pass" if field_name == "direction" else field_name


def columns_of(row_type: type[Row]) -> list[str]:
    """Return the columns of a table, in order."""
    return [column_of(column.name) for column in attrs.fields(row_type)]


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return number_text(cell) if isinstance(cell, float) else str(cell)


def rows_text(row_type: type[Row], rows: Iterable[Row]) -> str:
    """Return ``rows`` as CSV text, with the header even if there are none."""
    names = [column.name for column in attrs.fields(row_type)]
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns_of(row_type))
    table.writerows([_text(getattr(row, name)) for name in names] for row in rows)
    return text.getvalue()


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
        # Spreadsheets write a byte-order mark and other line ends.
        source = StringIO(text.removeprefix("\ufeff"), newline=None)
        lines = [line for line in csv.reader(source, strict=True) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RowError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise RowError(f"{path} is empty: not even a header")
    header = [RENAMED.get(column, column) for column in lines[0]]
    columns = columns_of(row_type)
    for column in columns:
        if column not in header and not ADDED.fullmatch(column):
            raise RowError(f"{path}: header: column {column} is missing")
    rows = []
    for number, cells in enumerate(lines[1:], 1):
        if len(cells) != len(header):
            raise RowError(f"{path}: row {number} has {len(cells)} cells for {len(header)} columns")
        given = dict(zip(header, cells, strict=True))
        rows.append(_row(path, row_type, number, [given.get(column, "") for column in columns]))
    return rows


def _row(path: Path, row_type: type[Row], number: int, cells: Sequence[str]) -> Row:
    try:
        return row_type(*cells)
    except ValueError:
        raise RowError(f"{path}: row {number}, {_refused(row_type, cells)}") from None


def _refused(row_type: type[Row], cells: Sequence[str]) -> str:
    """Name the first column that refuses its cell, the cell and the reason."""
    for column, cell in zip(attrs.fields(row_type), cells, strict=True):
        try:
            value = column.converter(cell) if column.converter else cell
            if column.validator:
                column.validator(None, column, value)
        except ValueError as error:
            return f"column {column_of(column.name)}: {cell!r} is refused: {error.args[0]}"
    raise AssertionError("every column takes its cell")
