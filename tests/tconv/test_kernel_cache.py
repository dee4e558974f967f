"""Compiled kernels are code: their folder is their user's alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tconv import kernel_cache
from tconv.kernel_cache import VARIABLE, guard

COMPILE = """
from autotune.compile import compile_choice
from tconv.tile import Choice
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Tile
problem = Problem(ConvGeometry(1, 16, 8, 8, 16, 1, 1), "fprop")
compile_choice(problem, Choice("implicit_gemm", Tile(16, 16, 16)), TARGETS["sm_90"])
"""


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Triton would keep kernels by itself."""
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(VARIABLE)
    guard.cache_clear()
    yield tmp_path / ".triton" / "cache"
    guard.cache_clear()


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def quietly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guard()


def test_a_folder_that_is_missing_is_made_for_its_user_alone(default: Path) -> None:
    before = os.umask(0)
    try:
        quietly()
    finally:
        os.umask(before)
    assert mode(default) == mode(default.parent) == 0o700
    assert VARIABLE not in os.environ


def test_one_that_is_there_is_left_as_it_is(default: Path) -> None:
    default.mkdir(parents=True)
    default.chmod(0o775)
    quietly()
    assert mode(default) == 0o775
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("place", [".", ".."])
def test_one_that_anyone_may_write_to_is_left_for_our_own(
    default: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    default.mkdir(parents=True)
    (default / place).chmod(0o777)
    with pytest.warns(UserWarning, match="are kept in .* instead"):
        guard()
    own = Path(os.environ["TCONV_HOME"]) / "triton"
    assert os.environ[VARIABLE] == str(own)
    assert mode(own) == 0o700
    guard.cache_clear()
    quietly()  # as a worker that inherits it finds it


def test_one_that_the_user_has_chosen_is_used_and_named(
    default: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "chosen"
    monkeypatch.setenv(VARIABLE, str(chosen))
    quietly()
    assert mode(chosen) == 0o700
    assert not default.exists()
    chosen.chmod(0o777)
    guard.cache_clear()
    with pytest.warns(UserWarning, match=f"anyone may write to {chosen}"):
        guard()
    assert os.environ[VARIABLE] == str(chosen)


def test_where_none_can_be_made_it_is_said(default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default.mkdir(parents=True)
    default.chmod(0o777)
    monkeypatch.setattr(kernel_cache, "home", lambda: Path("/dev/null"))
    with pytest.warns(UserWarning, match="which is run from"):
        guard()
    assert VARIABLE not in os.environ


def test_the_compiler_finds_it(default: Path) -> None:
    """For real, in a process without the interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    environment.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, umask=0)
    assert mode(default) == mode(default.parent) == 0o700
    assert any(default.iterdir())
