"""Recorded search spaces: a CSV of configurations and their measured times.

Each column but the last is a parameter. The last is ``time``, empty if the configuration failed.
The unit of time does not matter: results are shares of the optimum.
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
LARGEST_VALUE = 1e15  # for a parameter or a time: strategies multiply and square them


class SpaceError(ValueError):
    """A file is not a valid search space; the message names file, row and column."""


@dataclass(frozen=True)
class RecordedSpace:
    """Configurations and their times, NaN for a failed one."""

    space: SearchSpace
    times: NDArray[np.float64]

    @property
    def optimum(self) -> float:
        return float(np.nanmin(self.times))


def read_space(path: Path) -> RecordedSpace:
    """Read the search space in ``path``.

    Raises:
        SpaceError: if the file is missing, empty or too large, if ``time`` is not its last column,
            if a cell is not a number or a time not positive, if a configuration appears twice, or
            if none succeeded.
    """
    try:
        text = read_text(path, LARGEST_SPACE)
        if text is None:
            raise SpaceError(f"{path}: there is no such file")
        table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SpaceError(f"{path}: not a CSV table: {error}") from error
    names = [str(name) for name in table.columns]
    if names[-1:] != [TIME] or len(names) < 2:
        raise SpaceError(
            f"{path}: the last column is {names[-1]!r}; parameters come first, and then {TIME!r}"
        )
    if not isinstance(table.index, pd.RangeIndex):  # pandas reads surplus cells as an index
        raise SpaceError(f"{path}, line 2: more cells than columns in the header")
    if table.empty:
        raise SpaceError(f"{path}: no configurations, only a header")
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
        raise SpaceError(f"{path}, line {twice.argmax() + 2}: repeats an earlier configuration")
    times = numbers[TIME].to_numpy(dtype=np.float64)
    if np.isnan(times).all():
        raise SpaceError(f"{path}: every configuration failed, column {TIME!r} is empty")
    values = numbers[names[:-1]].to_numpy(dtype=np.float64)
    return RecordedSpace(SearchSpace(tuple(names[:-1]), values), times)
