"""Tests of tuned tables: atomic writes, checked reads, unusable files left unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tconv import select
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.target import INTERPRETER, TARGETS
from tconv.tile import Tile
from tconv.winners import TableError, Winner, load_table, read_table, user_table, write_table

PROBLEM = Problem(ConvGeometry(64, 64, 56, 56, 64, 3, 3, pad_h=1, pad_w=1), "fprop")
TILE = Tile(64, 32, 16, stages=2, warps=2)
WINNER = Winner("implicit_gemm", TILE, "predicted", 0.25)
TARGET = TARGETS["sm_90"]


def test_written_winners_take_effect() -> None:
    select.forget()
    assert select.choose(PROBLEM, TARGET).ground == "heuristic"
    write_table(user_table("sm_90"), "sm_90", {PROBLEM.key: WINNER})
    select.forget()
    choice = select.choose(PROBLEM, TARGET)
    assert (choice.tile, choice.ground) == (TILE, "predicted")
    measured = Winner("implicit_gemm", Tile(32, 32, 32), "measured", 0.2)
    write_table(user_table("sm_90"), "sm_90", {PROBLEM.key: measured})
    select.forget()
    assert select.choose(PROBLEM, TARGET).ground == "tuned"
    assert select.choose(PROBLEM, INTERPRETER).ground == "heuristic"
    select.forget()


def test_a_predicted_winner_does_not_replace_a_measured_one(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    measured = Winner("implicit_gemm", TILE, "measured", 0.5)
    write_table(path, "sm_90", {"a": measured, "b": WINNER})
    write_table(path, "sm_90", {"a": WINNER, "c": WINNER})
    assert read_table(path) == {"a": measured, "b": WINNER, "c": WINNER}


DAMAGED = {
    "cut off": '{"format": 1, "winn',
    "no table": "[1, 2]",
    "newer": '{"format": 2, "target": "sm_90", "winners": {}}',
    "bytes": "\udcff\udcfe",
    "no tile": '{"format": 1, "winners": {"a": {"family": "x", "kind": "measured", "ms": 1, '
    '"tile": "big"}}}',
    "huge tile": '{"format": 1, "winners": {"a": {"family": "x", "kind": "measured", "ms": 1, '
    '"tile": "1099511627776x16x16 s1 w4 g1 k1"}}}',
    "no time": '{"format": 1, "winners": {"a": {"family": "x", "tile": "16x16x16 s1 w4 g1 k1", '
    '"kind": "measured", "ms": "fast"}}}',
    "deep": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tables_are_named_and_left_unchanged(name: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(DAMAGED[name].encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.warns(UserWarning, match=r"table\.json"):
        assert load_table(path) == {}
    with pytest.raises(TableError, match=r"table\.json"):
        write_table(path, "sm_90", {"a": WINNER})
    assert path.read_bytes() == before


def test_a_damaged_table_does_not_stop_choosing() -> None:
    path = user_table("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    select.forget()
    with pytest.warns(UserWarning, match="heuristics take over"):
        assert select.choose(PROBLEM, TARGET).ground == "heuristic"
    select.forget()


def test_tables_read_well_in_a_diff(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_table(path, "sm_90", {"b": WINNER, "a": WINNER})
    assert [line[:5] for line in path.read_text().splitlines()[1:-1]] == ['  "a"', '  "b"']
    assert json.loads(path.read_text())["target"] == "sm_90"
