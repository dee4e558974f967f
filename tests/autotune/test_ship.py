"""Tests of exporting and importing winners and search traces."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from autotune.replay import replay
from autotune.ship import export_winners, import_winners, record_spaces
from autotune.trial import Trial
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.tile import Tile
from tconv.winners import TableError, Winner, home, read_table, user_table, write_table
from tests.tconv.test_files import SPOILT
from tests.tconv.test_hostile import HOSTILE

PROBLEM = Problem(ConvGeometry(8, 16, 14, 14, 32, 3, 3), "fprop")
KEY = PROBLEM.key
OTHER = Problem(ConvGeometry(8, 16, 14, 14, 32, 1, 1), "fprop").key
TILES = [Tile(64, 32, 32, stages=stages, warps=warps) for stages in (2, 3, 4) for warps in (2, 4)]
GPU = "nvidia-test"


def winner(milliseconds: float, kind: str = "measured") -> Winner:
    return Winner("implicit_gemm", TILES[0], kind, milliseconds)  # type: ignore[arg-type]


def test_measured_winners_are_exported_and_imported(tmp_path: Path) -> None:
    write_table(user_table(GPU), GPU, {KEY: winner(1.0), OTHER: winner(2.0, "predicted")})
    path = tmp_path / "theirs.json"
    assert export_winners(GPU, path) == 1
    assert read_table(path) == {KEY: winner(1.0)}
    user_table(GPU).unlink()
    done = import_winners(path)
    assert (done.target, done.taken, done.kept) == (GPU, 1, 0)
    assert read_table(user_table(GPU)) == {KEY: winner(1.0)}


def test_import_keeps_local_measurements_and_replaces_predictions(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    write_table(path, GPU, {KEY: winner(1.0), OTHER: winner(2.0)})
    write_table(user_table(GPU), GPU, {KEY: winner(3.0), OTHER: winner(4.0, "predicted")})
    done = import_winners(path)
    assert (done.taken, done.kept) == (1, 1)
    assert read_table(user_table(GPU)) == {KEY: winner(3.0), OTHER: winner(2.0)}


def test_predictions_are_not_exported(tmp_path: Path) -> None:
    write_table(user_table(GPU), GPU, {KEY: winner(1.0, "predicted")})
    with pytest.raises(TableError, match="no measured winners of nvidia-test"):
        export_winners(GPU, tmp_path / "out.json")


def test_files_of_different_gpus_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    write_table(path, "nvidia-other", {KEY: winner(1.0)})
    write_table(user_table(GPU), GPU, {KEY: winner(1.0)})
    with pytest.raises(TableError, match="winners of nvidia-other"):
        export_winners(GPU, path)


HOSTILE_FILES = {
    **HOSTILE,
    "no target": '{"format": 1, "winners": {}}',
    "interpreter's escape": '{"format": 1, "target": "a\\u001b[2J", "winners": {}}',
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_hostile_file_is_refused_and_nothing_is_imported(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(HOSTILE_FILES[name])
    result = CliRunner().invoke(app, ["import", str(path)])
    assert result.exit_code == 2
    assert "hostile.json" in result.output
    assert "\x1b" not in result.output
    assert not home().exists() or not list(home().rglob("*.json"))


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(tmp_path / "hostile.json")
    result = CliRunner().invoke(app, ["import", str(tmp_path / "hostile.json")])
    assert result.exit_code == 2
    assert "hostile.json" in result.output


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "a/b", "", "sm_90.constants", "a" * 99])
@pytest.mark.parametrize("command", ["export", "record", "calibrate"])
def test_a_target_with_a_path_is_refused(tmp_path: Path, command: str, name: str) -> None:
    folder = [str(tmp_path / "out")] if command == "record" else []
    result = CliRunner().invoke(app, [command, *folder, "--target", name])
    assert result.exit_code == 2
    assert "name" in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named() -> None:
    result = CliRunner().invoke(app, ["import", "nowhere.json"])
    assert result.exit_code == 2
    assert "nowhere.json" in result.output


def test_the_command_exports(tmp_path: Path) -> None:
    write_table(user_table(GPU), GPU, {KEY: winner(1.0)})
    to = str(tmp_path / "out.json")
    result = CliRunner().invoke(app, ["export", "--target", GPU, "--to", to])
    assert (result.exit_code, list(read_table(Path(to)))) == (0, [KEY])
    assert CliRunner().invoke(app, ["export", "--target", "nvidia-none"]).exit_code == 2


def test_recorded_trials_are_replayed(tmp_path: Path) -> None:
    times = [3.0, 2.0, None, 1.0, 4.0, 5.0]
    trials = [
        Trial(GPU, PROBLEM, "implicit_gemm", tile, "measured", "ok" if time else "spills", time)
        for tile, time in zip(TILES, times, strict=True)
    ]
    lonely = Trial(GPU, Problem.from_key(OTHER), "direct", TILES[0], "measured", "ok", 1.0)
    (path,) = record_spaces([*trials, lonely], tmp_path / "traces")
    assert path.read_text().splitlines()[0].startswith("family,block_m,")
    found = replay(path, "exhaustive", budget=6, repeats=1, seed=0)
    assert found.curve == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1, 1, 1])
