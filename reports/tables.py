"""A report's content as tables, stored as a folder of CSV files and ``about.json``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reports.report_head import About, about_text, read_about
from reports.row_files import RowError, read_rows, rows_text
from reports.rows import (
    CauseRow,
    LayerRow,
    MapRow,
    MemoryRow,
    NetworkRow,
    OperatorRow,
    SpaceRow,
    TrialRow,
)
from tconv.files import replace_all

HEAD = "about.json"
# Row types by field of ``Tables`` and file name. Only the layers are required.
ROWS: dict[str, Any] = {
    "layers": LayerRow,
    "trials": TrialRow,
    "space": SpaceRow,
    "map": MapRow,
    "networks": NetworkRow,
    "operators": OperatorRow,
    "memory": MemoryRow,
    "causes": CauseRow,
}
# tables that need a GPU: a folder of predictions has none of them
MEASURED_ONLY = ("networks", "operators", "memory", "causes")


@dataclass(frozen=True)
class Tables:
    """Everything that a report is rendered from."""

    about: About
    layers: list[LayerRow]
    trials: list[TrialRow] = field(default_factory=list)
    space: list[SpaceRow] = field(default_factory=list)
    map: list[MapRow] = field(default_factory=list)
    networks: list[NetworkRow] = field(default_factory=list)
    operators: list[OperatorRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    causes: list[CauseRow] = field(default_factory=list)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the tables' files."""
        held = (name for name in ROWS if name not in MEASURED_ONLY or getattr(self, name))
        return (*(f"{name}.csv" for name in held), HEAD)


def merged(tuned: Tables | None, benched: Tables | None) -> Tables:
    """Merge a GPU's report: measurements beside cuDNN, and for the rest the tuner's results.

    Raises:
        LookupError: if both are missing.
    """
    if tuned is None or benched is None:
        if (one := tuned or benched) is None:
            raise LookupError("nothing was tuned and nothing was measured")
        return one
    known = {row.problem for row in benched.layers if row.filters and not row.epilogue}
    rest = [row for row in tuned.layers if row.problem not in known]
    versions = dict.fromkeys((benched.about.versions, tuned.about.versions))
    commands = dict.fromkeys((*tuned.about.commands, *benched.about.commands))
    about = replace(benched.about, versions="; ".join(versions), commands=tuple(commands))
    story = {"trials": tuned.trials, "space": tuned.space, "map": tuned.map}
    return replace(benched, about=about, layers=[*benched.layers, *rest], **story)  # type: ignore[arg-type]


def tables_text(tables: Tables) -> dict[str, str]:
    """Return the files' texts by name: ``layers.csv``, ``trials.csv``, ... and ``about.json``."""
    texts = {
        f"{name}.csv": rows_text(row_type, getattr(tables, name))
        for name, row_type in ROWS.items()
        if f"{name}.csv" in tables.files
    }
    return {**texts, HEAD: about_text(tables.about)}


def write_tables(folder: Path, tables: Tables) -> None:
    """Write the tables as files into ``folder``, all of them or none.

    Raises:
        OSError: if a file cannot be written; existing tables stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_all({folder / name: text for name, text in tables_text(tables).items()})


def read_tables(folder: Path) -> Tables:
    """Read a report's tables as ``write_tables`` wrote them; all but the layers may be missing.

    Raises:
        RowError: naming file, row and column of an invalid value, or of a figure whose kind is not
            the report's.
    """
    about = read_about(folder / HEAD)
    found: dict[str, list[Any]] = {}
    for name, row_type in ROWS.items():
        path = folder / f"{name}.csv"
        if name == "layers" or path.exists():
            found[name] = read_rows(path, row_type)
    for name in ("layers", "trials"):
        for number, row in enumerate(found.get(name, []), 1):
            if row.kind != about.kind:
                raise RowError(
                    f"{folder / name}.csv: row {number}, column kind: {row.kind} stands in a "
                    f"report of {about.kind} figures; the two never mix"
                )
    for name in MEASURED_ONLY:
        if found.get(name) and about.kind != "measured":
            raise RowError(
                f"{folder / name}.csv: measured figures in a report of {about.kind} ones"
            )
    return Tables(about, **found)
