"""Recorded search spaces: a CSV of configurations and the times that were measured of them.

Columns are parameters, the last is ``time``, empty where the configuration failed. The unit of time
does not matter: results are shares of the optimum.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import SearchSpace
from tconv.extras import extra
from tconv.files import read_text

with extra("tune"):
    import pandas as pd

TIME = "time"
LARGEST_SPACE = 256 << 20  # bytes; a million configurations of ten parameters take about 50 MiB
LARGEST_VALUE = 1e15  # of a parameter or a time: strategies multiply and square them


class SpaceError(ValueError):
    """A file that holds no search space; the message names file, row and column."""


@dataclass(frozen=True)
class RecordedSpace:
    """Configurations and their times; NaN where one failed."""

    space: SearchSpace
    times: NDArray[np.float64]

    @property
    def optimum(self) -> float:
        return float(np.nanmin(self.times))


def read_space(path: Path) -> RecordedSpace:
    """The space that ``path`` holds.

    Raises:
        SpaceError: where the file is missing, empty or too large, has no ``time`` as its last
            column, has text or gaps among its numbers, times that are not positive, a configuration
            twice, or none that succeeded.
    """
    try:
        text = read_text(path, LARGEST_SPACE)
        if text is None:
            raise SpaceError(f"{path}: there is no such file")
        table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SpaceError(f"{path}: no CSV table: {error}") from error
    names = [str(name) for name in table.columns]
    if names[-1:] != [TIME] or len(names) < 2:
        raise SpaceError(
            f"{path}: the last column is {names[-1]!r}; parameters come first, and then {TIME!r}"
        )
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus cells for an index
        raise SpaceError(f"{path}, line 2: more cells than the heading has columns")
    if table.empty:
        raise SpaceError(f"{path}: no configuration, only the heading")
    numbers = table.apply(lambda column: pd.to_numeric(column.str.strip(), errors="coerce"))
    allowed = numbers.notna() & (numbers.abs() <= LARGEST_VALUE)
    allowed[TIME] = np.where(
        table[TIME].str.strip() == "", True, allowed[TIME] & (numbers[TIME] > 0)
    )
    if not allowed.to_numpy().all():
        row, column = np.argwhere(~allowed.to_numpy())[0]
        found = reprlib.repr(table.iat[row, column])
        wanted = f"a number of at most {LARGEST_VALUE:g}"
        if names[column] == TIME:
            wanted = "a positive number, or empty where the configuration failed"
        raise SpaceError(
            f"{path}, line {row + 2}, column {names[column]!r}: {found} is not {wanted}"
        )
    twice = numbers[names[:-1]].duplicated()
    if twice.any():
        raise SpaceError(f"{path}, line {int(twice.argmax()) + 2}: the configuration came before")
    times = numbers[TIME].to_numpy(dtype=np.float64)
    if np.isnan(times).all():
        raise SpaceError(f"{path}: every configuration failed, column {TIME!r} is empty")
    values = numbers[names[:-1]].to_numpy(dtype=np.float64)
    return RecordedSpace(SearchSpace(tuple(names[:-1]), values), times)
