"""Tests of a full or read-only disk: an error message, an exit status, and no lost data.

A file system of one MiB is mounted, which requires root; otherwise these tests are skipped.
``test_trial_store.py`` and ``tests/tconv/test_files.py`` simulate the errors.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from autotune import calibrate as calibrating
from autotune import tune as tuning
from autotune.calibrate import Calibration
from autotune.cli import app
from autotune.gate import Verdict
from autotune.trial import Trial
from autotune.trial_store import Store, default_path
from reports.cli import app as reporting
from tconv import svg
from tconv.cost.constants import Calibrated, Constants, user_constants, write_calibrated
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.tile import Choice, Tile
from tconv.winners import Winner, read_table, user_table, write_table
from tests.autotune.test_tune import Compilers

PROBLEM = Problem(ConvGeometry(8, 16, 14, 14, 32, 3, 3), "fprop")
TILES = [Tile(64, 32, 32, stages=stages) for stages in (2, 3)]
WINNER = Winner("implicit_gemm", TILES[0], "measured", 1.0)
TRIALS = [
    Trial("sm_90", PROBLEM, "implicit_gemm", tile, kind, "ok", 1.0, error_fp64=1e-4)  # type: ignore[arg-type]
    for tile in TILES
    for kind in ("measured", "predicted")
]
Spoil = Callable[[Path], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a separate file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Fill the disk completely."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def lock_up(disk: Path) -> None:
    """Make the disk read-only."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True)


def mend(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    (disk / "filler").unlink(missing_ok=True)


SPOILT = pytest.mark.parametrize("spoil", [fill, lock_up], ids=["full", "read-only"])


@pytest.fixture
def home(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder on that disk with a store, a table and constants."""
    monkeypatch.setenv("TCONV_HOME", str(disk / "home"))
    with Store() as store:
        for trial in TRIALS:
            store.add(trial)
    write_table(user_table("sm_90"), "sm_90", {PROBLEM.key: WINNER})
    write_calibrated(user_constants("sm_90"), "sm_90", Calibrated())
    return disk / "home"


def files(folder: Path) -> dict[str, bytes]:
    """Return all files in ``folder`` except SQLite's log and index, and locks."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in found
        if not path.name.endswith(("-wal", "-shm", ".lock"))
    }


def words(result: Result) -> str:
    return re.sub(r"\s+", " ", result.output)


def tune(*arguments: str) -> Result:
    command = ["tune", "--suite", "lenet5", "--passes", "fprop", "--target", "sm_90"]
    options = ["--batch", "4", "--candidates", "2", *arguments]
    return CliRunner().invoke(app, [*command, *options], env={"COLUMNS": "200"})


def with_gate(monkeypatch: pytest.MonkeyPatch, gate: Callable[..., Verdict]) -> None:
    monkeypatch.setattr(tuning, "Workers", Compilers)
    monkeypatch.setattr(tuning, "worker_gate", lambda *_: gate)


def passing(problem: Problem, choice: Choice) -> Verdict:
    return Verdict(True, 1e-4)


@SPOILT
@pytest.mark.filterwarnings("ignore:.*left alone:UserWarning")
def test_a_run_reports_its_winners_and_what_it_could_not_store(
    disk: Path, home: Path, spoil: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(home)
    with_gate(monkeypatch, passing)
    spoil(disk)
    ended = tune()
    assert ended.exit_code == 1
    text = words(ended)
    assert "3 problems, 6 candidates: 6 compiled now" in text
    assert "winners were not written" in text
    assert "trials could not be kept" in text
    for place in (user_table("sm_90"), default_path()):
        assert str(place) in text
    mend(disk)
    assert files(home) == before


@pytest.mark.filterwarnings("ignore:.*left alone:UserWarning")
def test_a_disk_that_fills_up_midway_keeps_earlier_trials(
    disk: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filling(problem: Problem, choice: Choice) -> Verdict:
        if problem.geometry.in_channels == 6:
            fill(disk)
        return Verdict(True, 1e-4)

    with_gate(monkeypatch, filling)
    ended = tune()
    assert ended.exit_code == 1
    assert "3 problems, 6 candidates" in words(ended)
    mend(disk)
    kept = read_table(user_table("sm_90"))
    assert kept.pop(PROBLEM.key) == WINNER
    # Closing the store frees its log's space, which later winners may use.
    assert 1 in {Problem.from_key(key).geometry.in_channels for key in kept}
    with Store() as store:
        assert store.path is not None
        assert list(store.trials())[:4] == TRIALS
        found = [t for t in store.trials() if t.problem.geometry.in_channels == 1]
        assert len(found) == 2  # and none is tried again
    with_gate(monkeypatch, passing)
    ended = tune()
    assert ended.exit_code == 0
    assert len(read_table(user_table("sm_90"))) == 4


def calibration() -> Calibration:
    return Calibration(Constants(), Constants(), 30, 5, *[1.0] * 6, 5)


@SPOILT
@pytest.mark.parametrize("command", ["export", "import", "record", "calibrate", "report"])
@pytest.mark.filterwarnings("ignore:.*left alone:UserWarning")
def test_a_command_that_cannot_write_reports_it_and_leaves_files_unchanged(
    disk: Path, home: Path, tmp_path: Path, spoil: Spoil, command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(calibrating, "calibrate", lambda trials, target: calibration())
    drawn = "<svg></svg>"  # drawing takes seconds, and the disk does not care what is drawn
    monkeypatch.setattr(svg, "as_svg", lambda figure, name, title: drawn)
    theirs = tmp_path / "theirs.json"
    key = replace(PROBLEM, direction="dgrad").key
    write_table(theirs, "sm_90", {key: WINNER})
    out = disk / "out"
    calls: dict[str, tuple[Any, Sequence[str], Path]] = {
        "export": (app, ["export", "--target", "sm_90", "--to", str(out / "w.json")], out),
        "import": (app, ["import", str(theirs)], user_table("sm_90")),
        "record": (app, ["record", "--target", "sm_90", str(out)], out),
        "calibrate": (app, ["calibrate", "--target", "sm_90"], user_constants("sm_90")),
        "report": (
            reporting,
            ["render", "--target", "sm_90", "--out", str(out), "--store", str(tmp_path / "s")],
            out,
        ),
    }
    with Store(tmp_path / "s") as store:
        for trial in TRIALS:
            store.add(trial)
    called, arguments, named = calls[command]
    if command != "import":  # import succeeds only once
        assert CliRunner().invoke(called, arguments).exit_code == 0
    before = files(disk)
    spoil(disk)
    ended = CliRunner().invoke(called, arguments)
    assert ended.exit_code in (1, 2)
    if command == "calibrate":
        assert "matrix_share" in ended.output  # the result is shown
    assert str(named) in words(ended).replace(" ", "")
    mend(disk)
    assert files(disk) == before


@SPOILT
@pytest.mark.filterwarnings("ignore:.*left alone:UserWarning")
def test_a_store_that_cannot_be_written_can_be_read(
    disk: Path, home: Path, tmp_path: Path, spoil: Spoil
) -> None:
    """Its trials can be carried to another disk."""
    spoil(disk)
    ended = CliRunner().invoke(app, ["record", "--target", "sm_90", str(tmp_path / "saved")])
    assert ended.exit_code == 0
    (saved,) = (tmp_path / "saved").iterdir()
    assert len(saved.read_text().splitlines()) == 1 + len(TILES)
    ended = CliRunner().invoke(app, ["export", "--target", "sm_90", "--to", str(tmp_path / "w")])
    assert ended.exit_code == 0
    assert read_table(tmp_path / "w") == {PROBLEM.key: WINNER}
