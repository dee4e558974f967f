"""Tests of comparing the winners compiled by several versions of Triton."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from attrs import evolve

from reports import compilers
from reports.compilers import CompilersError, changes, row_of
from reports.row_files import read_rows
from reports.rows import CompilerRow

COUNTERS = {
    "results": 64,
    "blocks": 2,
    "instructions_by_class": {"integer": 8, "matrix": 2},
    "global_load_bytes": 128,
    "global_load_requests": 4,
    "global_load_sectors": 16,
    "shared_ideal_wavefronts": 10,
    "bank_conflicts": 5,
    "block_barriers": 6,
}
KEYS = [f"fprop/float16/nhwc/n1c16h{size}w8-k16f3x3-s1x1-p1x1-d1x1-g1" for size in (8, 9, 10)]


def found(problem: str, **changed: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "problem": problem,
        "family": "implicit_gemm",
        "tile": "32x16x16 s2 w4 g8 k1",
        "passed": True,
        "error": 1e-4,
        "detail": "",
        "counters": COUNTERS,
        "resources": {"registers": 64, "spill_bytes": 0, "shared_bytes": 8, "instructions": 97},
    }
    return plain | changed


def test_a_row_of_an_emulated_kernel() -> None:
    row = row_of(found(KEYS[0]), "3.7.1")
    assert (row.registers, row.instructions, row.result) == (64, 97, "passed")
    assert (row.emulated_instructions, row.emulated_global_bytes) == (5.0, 2.0)
    assert (row.emulated_sectors, row.emulated_bank_conflicts) == (4.0, 0.5)
    assert row.emulated_barriers == 3.0


def test_regressions_come_first(tmp_path: Path) -> None:
    rows = [row_of(found(key), version) for key in KEYS for version in ("3.9.0", "3.10.0")]
    rows[1] = evolve(rows[1], registers=60)  # better
    rows[3] = evolve(rows[3], registers=70, spill_bytes=24)
    rows[5] = evolve(rows[5], result="failed", error_fp64=None)
    ordered = changes(rows)
    assert [change.rows[0].problem for change in ordered] == [KEYS[2], KEYS[1], KEYS[0]]
    assert [row.triton for row in ordered[0].rows] == ["3.9.0", "3.10.0"]
    assert math.isinf(ordered[0].factor)
    assert ordered[0].words == "3.9.0 to 3.10.0: passed, now failed"
    assert ordered[1].factor == 24
    assert ordered[1].words == "3.9.0 to 3.10.0: registers 64 to 70, spilled bytes 0 to 24"
    assert ordered[2].factor == 1.0
    page, table = compilers.write(ordered, "sm_90", tmp_path / "new")
    text = page.read_text()
    assert "3 winners. With a newer Triton 2 have" in text
    assert text.index(KEYS[2]) < text.index(KEYS[1]) < text.index(KEYS[0])
    assert "| 64 / 70 |" in text
    assert read_rows(table, CompilerRow) == [row for change in ordered for row in change.rows]


def test_a_kernel_that_always_failed_comes_first_too() -> None:
    rows = [
        row_of(found(KEYS[0], passed=False, error=None, counters={}), v) for v in ("3.6", "3.7")
    ]
    rows += [row_of(found(KEYS[1]), version) for version in ("3.6", "3.7")]
    first = changes(rows)[0]
    assert first.rows[0].problem == KEYS[0]
    assert first.words == "fails with each version"


def test_each_python_is_run_for_its_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {sys.executable: "3.7.1", "/three/six": "3.6.0"}
    monkeypatch.setattr(compilers, "version_of", versions.__getitem__)
    assert compilers.pythons_named(["3.6.0=/three/six"]) == {
        "3.6.0": "/three/six",
        "3.7.1": sys.executable,
    }
    with pytest.raises(CompilersError, match=r"/three/six imports Triton 3\.6\.0, not 3\.9\.0"):
        compilers.pythons_named(["3.9.0=/three/six"])
    with pytest.raises(CompilersError, match=r"Triton 3\.7\.1 alone: name others"):
        compilers.pythons_named([])


def test_a_missing_python_is_reported() -> None:
    with pytest.raises(CompilersError, match="No such file"):
        compilers.version_of("/no/python")
