"""The mutants that compute the same, and why: read from ``equivalent.txt``.

A line at the margin is a reason; the indented ones after it name the mutants that it holds for:
``function: before -> after``, or ``kernel / function: ...`` where only one of its users may say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).parent / "equivalent.txt"


def read(path: Path = TABLE) -> dict[str, str]:
    """Reasons by mutant; the path's lines are as above, those that begin with # are comments."""
    reasons, reason = dict[str, str](), ""
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            reasons[line.strip()] = reason
        elif line and not line.startswith("#"):
            reason = line
    return reasons


def reason(reasons: Mapping[str, str], kernel: str, mutant: str) -> str | None:
    """Why a mutant computes the same in one kernel; None where nobody claims it."""
    return reasons.get(mutant) or reasons.get(f"{kernel} / {mutant}")
