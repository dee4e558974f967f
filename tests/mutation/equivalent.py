"""Equivalent mutants and the reasons, read from ``equivalent.txt``.

An unindented line is a reason. The indented lines after it name the mutants to which it applies:
``function: before -> after``, or ``kernel / function: ...`` if it applies in that kernel only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).parent / "equivalent.txt"


def read(path: Path = TABLE) -> dict[str, str]:
    """Return reasons by mutant from a file of that form; lines that begin with # are comments."""
    reasons, reason = dict[str, str](), ""
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            reasons[line.strip()] = reason
        elif line and not line.startswith("#"):
            reason = line
    return reasons


def reason(reasons: Mapping[str, str], kernel: str, mutant: str) -> str | None:
    """Return why a mutant is equivalent in a kernel, or None."""
    return reasons.get(mutant) or reasons.get(f"{kernel} / {mutant}")
