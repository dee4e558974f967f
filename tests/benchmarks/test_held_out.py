"""Tests of choosing a search's settings on all spaces but one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import held_out
from benchmarks.held_out import SETTINGS, chosen_for, fitness, main


def written(path: Path, best: int) -> Path:
    rows = [
        (a, b, (np.log2(a / best)) ** 2 + b + 1)
        for a, b in itertools.product([1, 2, 4, 8, 16, 32, 64], [0, 1, 2, 3])
    ]
    pd.DataFrame(rows, columns=["a", "b", "time"]).to_csv(path, index=False)
    return path


def test_the_held_out_space_has_no_say() -> None:
    one, two, three = Path("one"), Path("two"), Path("three")
    shares = {("usual", one): 0.1, ("usual", two): 0.8, ("usual", three): 0.8,
              ("3 starts", one): 0.9, ("3 starts", two): 0.7, ("3 starts", three): 0.7}  # fmt: skip
    fits = {pair: np.full((4, 100), share) for pair, share in shares.items()}
    assert fitness(fits["usual", two]) == pytest.approx(0.8)
    assert chosen_for(one, fits) == "usual"
    assert chosen_for(two, fits) == "3 starts"


def test_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: SETTINGS[name] for name in ("usual", "no oddness penalty")}
    monkeypatch.setattr(held_out, "SETTINGS", few)
    app = typer.Typer()
    app.command()(main)
    spaces = [str(written(tmp_path / f"{best}.csv", best)) for best in (4, 16)]
    options = ["--repeats", "2", "--evaluations", "25", "--workers", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*spaces, *options])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "held_out.csv")
    assert set(table["stage"]) == {"fitted", "held out"}
    assert set(table[table["stage"] == "fitted"]["settings"]) == set(few)
    assert set(table["space"]) == {"4.csv", "16.csv"}
    page = (tmp_path / "held_out.md").read_text()
    assert "4.csv" in page
    assert " (chosen) |" in page


def test_a_single_space_is_refused(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    assert CliRunner().invoke(app, [str(written(tmp_path / "one.csv", 4))]).exit_code == 2
