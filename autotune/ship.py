"""Winners and trials as files, to move between machines and to ship with the library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autotune.recorded import TIME
from autotune.search import PARAMETERS, parameters_of
from autotune.trial import Trial
from tconv.extras import extra
from tconv.files import replace_all
from tconv.problem import Problem
from tconv.tile import Tile
from tconv.winners import (
    TableError,
    Winner,
    read_table,
    table_target,
    user_table,
    write_table,
)

with extra("tune"):
    import pandas as pd

LEAST_RECORDED = 2  # fewer configurations leave nothing to search


@dataclass(frozen=True)
class Exchange:
    """Result of an import: how many winners were imported, and how many existing ones kept."""

    target: str
    taken: int
    kept: int


def export_winners(target: str, path: Path) -> int:
    """Write the user's measured winners of ``target`` to ``path`` and return their number.

    They are added to the winners in ``path``. Predictions are not exported: anyone can recompute
    them.

    Raises:
        TableError: if there are none, or if a file cannot be read or belongs to another GPU.
        OSError: if the file cannot be written.
    """
    source = user_table(target)
    measured = {
        key: winner for key, winner in read_table(source).items() if winner.kind == "measured"
    }
    if not measured:
        raise TableError(f"{source} holds no measured winners of {target}: tune on that GPU first")
    _same_target(path, target)
    write_table(path, target, measured)
    return len(measured)


def import_winners(path: Path) -> Exchange:
    """Add the winners in ``path`` to the user's own; winners measured here are not replaced.

    Raises:
        TableError: if the file cannot be read or names no target.
        OSError: if the user's table cannot be written.
    """
    if not path.exists():
        raise TableError(f"{path}: there is no such file")
    given, target = read_table(path), table_target(path)
    if target is None:
        raise TableError(f"{path} names no target and so is not a table of winners")
    own = user_table(target)
    standing = read_table(own)
    fresh: dict[str, Winner] = {
        key: winner
        for key, winner in given.items()
        if key not in standing or (standing[key].kind, winner.kind) == ("predicted", "measured")
    }
    if fresh:
        write_table(own, target, fresh)
    return Exchange(target, len(fresh), len(given) - len(fresh))


def _same_target(path: Path, target: str) -> None:
    found = table_target(path)
    if found is not None and found != target:
        raise TableError(f"{path} holds winners of {found}, not of {target}")


def record_spaces(trials: Iterable[Trial], folder: Path) -> list[Path]:
    """Write each problem's trials as a recorded space, to be replayed without a GPU.

    There is one CSV per problem, named after it. Its columns are the family (its index in
    ``tconv.families``), the fields of the tile, and ``time`` in milliseconds, empty if the
    configuration failed. Problems with fewer than two successes are left out.

    Raises:
        OSError: if the folder cannot be written; spaces already in it stay.
    """
    grouped: dict[Problem, dict[tuple[str, Tile], Trial]] = {}
    for trial in trials:
        grouped.setdefault(trial.problem, {})[trial.family, trial.tile] = trial
    written: dict[Path, str] = {}
    for problem, made in grouped.items():
        if sum(trial.milliseconds is not None for trial in made.values()) < LEAST_RECORDED:
            continue
        table = pd.DataFrame(parameters_of([t.choice for t in made.values()]), columns=PARAMETERS)
        table = table.astype(int)
        table[TIME] = [trial.milliseconds for trial in made.values()]
        written[folder / f"{problem.key.replace('/', '_')}.csv"] = table.to_csv(index=False)
    if written:
        folder.mkdir(parents=True, exist_ok=True)
    replace_all(written)
    return list(written)
