"""Compare Triton versions: compile and emulate each winner with every version.

Each version runs in its own Python, since a process can only import one Triton. The comparison
covers what can be known without a GPU: registers, spills, shared memory, instructions, an emulated
GPU's counters, and whether the result is still correct. No figure here is a time.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tconv
from autotune.counted import Counted
from reports.row_files import rows_text
from reports.rows import CompilerRow, number_text, rounded
from tconv.files import replace_all
from tconv.problem import Problem
from tconv.tile import Choice

ROOT = Path(tconv.__file__).parents[1]
NOTED = 1.05  # factor from which a change is reported
# Columns of a row in which a larger value is worse, and their headings.
FIGURES = {
    "registers": "registers",
    "spill_bytes": "spilled bytes",
    "shared_bytes": "shared memory bytes",
    "instructions": "instructions of the loop",
    "emulated_instructions": "instructions per result",
    "emulated_global_bytes": "global bytes per result",
    "emulated_sectors": "sectors per request",
    "emulated_bank_conflicts": "bank conflicts, share",
    "emulated_barriers": "barriers per program",
}
LEAST = {"emulated_bank_conflicts": 0.05, "spill_bytes": 1.0}  # reference for a change from 0


class CompilersError(Exception):
    """A Python cannot be compared; the message says which and why."""


@dataclass(frozen=True)
class Change:
    """One winner's rows, oldest Triton first, and its regressions."""

    rows: tuple[CompilerRow, ...]
    factor: float  # growth of the worst figure from one version to the next
    words: str


def pythons_named(named: Iterable[str]) -> dict[str, str]:
    """Return the paths of Pythons, this one included, by their Triton version, oldest first.

    Raises:
        CompilersError: if a Python imports another version than it is named for, or none.
    """
    found = {version_of(sys.executable): sys.executable}
    for text in named:
        wanted, _, path = text.rpartition("=")
        version = version_of(path)
        if wanted and wanted != version:
            raise CompilersError(f"{path} imports Triton {version}, not {wanted}")
        found[version] = path
    if len(found) < 2:
        only = next(iter(found))
        raise CompilersError(f"there is Triton {only} alone: name others, --python 3.6.0=PATH")
    return dict(sorted(found.items(), key=lambda item: version_key(item[0])))


def version_of(python: str) -> str:
    """Return the version of Triton that ``python`` imports.

    Raises:
        CompilersError: if it has none.
    """
    code = "import triton; print(triton.__version__)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=_clean())
    except OSError as error:
        raise CompilersError(f"{python}: {error.strerror}") from error
    if done.returncode:
        raise CompilersError(f"{python} has no Triton: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def emulated_with(
    python: str, chosen: Sequence[tuple[Problem, Choice]], target: str, workers: int = 1
) -> list[dict[str, Any]]:
    """Run ``autotune emulate`` on ``chosen`` with the Triton of ``python`` and return its output.

    Raises:
        CompilersError: if it prints no result, with its error message.
    """
    wanted = [
        {"problem": problem.key, "family": choice.family, "tile": str(choice.tile)}
        for problem, choice in chosen
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "choices.json"
        path.write_text(json.dumps({"problems": wanted}), encoding="utf-8")
        command = ["-m", "autotune", "emulate", "--choices", str(path), "--target", target]
        command += ["--json", "--resources", "--workers", str(workers)]
        done = subprocess.run([python, *command], capture_output=True, text=True, env=_clean())
    try:
        return list(json.loads(done.stdout)["problems"])
    except (ValueError, KeyError, TypeError) as error:
        errors = done.stderr.strip().splitlines() or ["nothing"]
        raise CompilersError(f"{python} -m autotune emulate failed: {errors[-1]}") from error


def _clean() -> dict[str, str]:
    """Return this environment with this project on the path, without kernel settings."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TCONV_EMULATE")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def row_of(found: Mapping[str, Any], triton: str) -> CompilerRow:
    """Return the row of one problem that ``autotune emulate`` printed."""
    taken = found.get("resources") or {}
    counted = Counted.of(found.get("counters") or {})
    return CompilerRow(
        found["problem"],
        found["family"],
        found["tile"],
        triton,
        "passed" if found["passed"] else "failed",
        rounded(found["error"]),
        taken.get("registers"),
        taken.get("spill_bytes"),
        taken.get("shared_bytes"),
        taken.get("instructions"),
        rounded(counted.instructions),
        rounded(counted.global_bytes),
        rounded(counted.sectors),
        rounded(counted.bank_conflicts),
        rounded(counted.barriers),
        found.get("detail") or "",
    )


def changes(rows: Iterable[CompilerRow]) -> list[Change]:
    """Return each winner's changes from version to version, worst regression first."""
    grouped: dict[tuple[str, str, str], list[CompilerRow]] = {}
    for row in rows:
        grouped.setdefault((row.problem, row.family, row.tile), []).append(row)
    found = []
    for group in grouped.values():
        ordered = tuple(sorted(group, key=lambda row: version_key(row.triton)))
        found.append(Change(ordered, *_worst(ordered)))
    return sorted(found, key=lambda change: (-change.factor, change.rows[0].problem))


def version_key(version: str) -> tuple[int, ...]:
    """Sort key of a version.

    >>> sorted(["3.10.0", "3.9.1"], key=version_key)
    ['3.9.1', '3.10.0']
    """
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _worst(rows: Sequence[CompilerRow]) -> tuple[float, str]:
    """Return the largest factor by which a figure grew, and a description of the changes."""
    factor, words = 1.0, []
    for before, after in pairwise(rows):
        differences = []
        if before.result != after.result:
            differences.append(f"{before.result}, now {after.result}")
            factor = math.inf if after.result == "failed" else factor
        for name, heading in FIGURES.items():
            old, new = getattr(before, name), getattr(after, name)
            if old is None or new is None or old == new:
                continue
            least = LEAST.get(name, 1e-9)
            grown = max(new, least) / max(old, least)
            factor = max(factor, grown)
            if grown >= NOTED or grown <= 1 / NOTED:
                differences.append(f"{heading} {number_text(old)} to {number_text(new)}")
        if differences:
            words.append(f"{before.triton} to {after.triton}: {', '.join(differences)}")
    if any(row.result == "failed" for row in rows) and not math.isinf(factor):
        factor = math.inf
        words.append("fails with each version" if len(rows) > 1 else "fails")
    return factor, "; ".join(words) or "nothing of note"


def markdown(found: Sequence[Change], target: str) -> str:
    """Return the changes as a table, one line per winner, all versions' figures in each cell."""
    versions = [row.triton for row in found[0].rows] if found else []
    worse = sum(change.factor >= NOTED for change in found)
    headings = ["problem", "kernel", "tile", "what changed", "result", *FIGURES.values()]
    lines = [
        f"# Triton {', '.join(versions)} on {target}: the same kernels, compiled and emulated",
        "",
        f"{len(found)} winners. With a newer Triton {worse} have a figure that is worse by "
        f"{NOTED - 1:.0%} or more; these are first, the worst on top. Cells read "
        f"{' / '.join(versions)}. Registers to instructions of the loop are of the code compiled "
        "for the layer itself. The columns after them were counted by an emulated GPU on a "
        "scaled-down copy. No figure here is a time.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
    ]
    for change in found:
        first = change.rows[0]
        figures = [_side_by_side(change.rows, name) for name in FIGURES]
        results = _joined([row.result for row in change.rows])
        cells = [first.problem, first.family, first.tile, change.words, results, *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _side_by_side(rows: Sequence[CompilerRow], name: str) -> str:
    values = [getattr(row, name) for row in rows]
    return _joined(["" if value is None else number_text(value) for value in values])


def _joined(cells: Sequence[str]) -> str:
    """Return the text of a cell, once if all versions agree."""
    return cells[0] if len(set(cells)) == 1 else " / ".join(cell or "-" for cell in cells)


def write(found: Sequence[Change], target: str, folder: Path) -> tuple[Path, Path]:
    """Write ``compilers.md`` and ``compilers.csv``, both or neither."""
    folder.mkdir(parents=True, exist_ok=True)
    page, table = folder / "compilers.md", folder / "compilers.csv"
    rows = [row for change in found for row in change.rows]
    replace_all({page: markdown(found, target), table: rows_text(CompilerRow, rows)})
    return page, table
