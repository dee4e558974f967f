"""Imports run one way: reports -> autotune -> tconv, and device code knows no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "tconv": {"autotune", "reports", "tests"},
    "autotune": {"reports", "tests"},
    "reports": {"tests"},
    "tconv/kernels": {"torch", "tconv.ops", "tconv.select"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_run_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            for forbidden in FORBIDDEN[folder]:
                assert name != forbidden, path
                assert not name.startswith(f"{forbidden}."), path
