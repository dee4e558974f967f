"""Tests of the comparison of searches; other packages are tested if they are installed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import benchmarks.search as compared
from benchmarks.search import Contender, best_so_far, main, run


@pytest.fixture
def space(tmp_path: Path) -> Path:
    rows = [
        (a, b, c, "" if a * b > 200 else (a - 8) ** 2 + (b - 4) ** 2 + c + 1)
        for a, b, c in itertools.product([1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16], [0, 1])
    ]
    path = tmp_path / "made_up.csv"
    pd.DataFrame(rows, columns=["a", "b", "c", "time"]).to_csv(path, index=False)
    return path


def test_best_so_far_starts_at_zero_and_never_falls() -> None:
    assert best_so_far([np.nan, 4.0, 8.0, 2.0], 2.0, 6) == [0, 0.5, 0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("package", "module", "strategy"),
    [
        ("tconv", "autotune", "combined"),
        ("Kernel Tuner", "kernel_tuner", "genetic_algorithm"),
        ("Optuna", "optuna", "RandomSampler"),
    ],
)
def test_every_package_searches_the_space(
    space: Path, package: str, module: str, strategy: str
) -> None:
    pytest.importorskip(module)
    shares = run(Contender(package, strategy), space, budget=50, seed=1)
    assert len(shares) == 50
    assert all(one <= other for one, other in itertools.pairwise(shares))
    assert 0.1 < shares[-1] <= 1


def test_the_table_the_spread_and_the_plot(space: Path, tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "out"
    arguments = [str(space), "--evaluations", "12", "--repeats", "2", "--package", "tconv"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    shares = pd.read_csv(out / "shares.csv")
    assert set(shares["contender"]) == {f"tconv {name}" for name in compared.OURS}
    assert set(shares["evaluations"]) == {10}
    assert set(shares["runs"]) == {2}
    text = (out / "index.md").read_text()
    for mean, off in zip(shares["optimum_share"], shares["deviation"], strict=True):
        assert f"{mean:.3f} +- {off:.3f}" in text
    assert (out / "made_up.svg").read_text().startswith("<?xml")


def test_a_file_that_is_not_a_space_is_reported(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(tmp_path / "nowhere.csv")])
    assert result.exit_code == 2
    assert "there is no such file" in " ".join(result.output.split())  # a long path wraps it


def test_predicted_spaces_are_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compared, "PREDICTED_LAYERS", (("lenet5", "c3", "dgrad"),))
    (path,) = compared.predicted_spaces(tmp_path)
    assert path.name == "predicted_lenet5_c3_dgrad.csv"
    assert len(pd.read_csv(path)) > 100
