"""Recorded search spaces: a CSV of configurations and the times that were measured of them.

Columns are parameters, the last is ``time``, empty where the configuration failed. The unit of time
does not matter: results are shares of the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autotune.strategies.common import SearchSpace

TIME = "time"


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
        SpaceError: where the file is missing or empty, has no ``time`` as its last column, has text
            or gaps among its numbers, times that are not positive, a configuration twice, or none
            that succeeded.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise SpaceError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise SpaceError(f"{path}: no CSV table: {error}") from error
    names = [str(name) for name in table.columns]
    if names[-1:] != [TIME] or len(names) < 2:
        raise SpaceError(
            f"{path}: the last column is {names[-1]!r}; parameters come first, and then {TIME!r}"
        )
    if table.empty:
        raise SpaceError(f"{path}: no configuration, only the heading")
    numbers = table.apply(lambda column: pd.to_numeric(column.str.strip(), errors="coerce"))
    allowed = numbers.notna() & np.isfinite(numbers)
    allowed[TIME] = np.where(
        table[TIME].str.strip() == "", True, allowed[TIME] & (numbers[TIME] > 0)
    )
    if not allowed.to_numpy().all():
        row, column = np.argwhere(~allowed.to_numpy())[0]
        found, wanted = table.iat[row, column], "a number"
        if names[column] == TIME:
            wanted = "a positive number, or empty where the configuration failed"
        raise SpaceError(
            f"{path}, line {row + 2}, column {names[column]!r}: {found!r} is not {wanted}"
        )
    twice = numbers[names[:-1]].duplicated()
    if twice.any():
        raise SpaceError(f"{path}, line {int(twice.argmax()) + 2}: the configuration came before")
    times = numbers[TIME].to_numpy(dtype=np.float64)
    if np.isnan(times).all():
        raise SpaceError(f"{path}: every configuration failed, column {TIME!r} is empty")
    values = numbers[names[:-1]].to_numpy(dtype=np.float64)
    return RecordedSpace(SearchSpace(tuple(names[:-1]), values), times)
