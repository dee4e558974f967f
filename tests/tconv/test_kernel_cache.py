"""Tests that the folder of compiled kernels, which are code, is private to the user."""

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
    """Triton's default folder of kernels."""
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")  # so that monkeypatch restores it
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


def test_a_missing_folder_is_created_private(default: Path) -> None:
    before = os.umask(0)
    try:
        quietly()
    finally:
        os.umask(before)
    assert mode(default) == mode(default.parent) == 0o700
    assert VARIABLE not in os.environ


def test_an_existing_folder_is_unchanged(default: Path) -> None:
    default.mkdir(parents=True)
    default.chmod(0o775)
    quietly()
    assert mode(default) == 0o775
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("place", [".", ".."])
def test_a_folder_that_anyone_may_write_to_is_replaced_by_our_own(
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
    quietly()  # as in a worker that inherits the variable


def test_a_folder_chosen_by_the_user_is_used_with_a_warning(
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


def test_a_folder_that_cannot_be_created_is_named(
    default: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default.mkdir(parents=True)
    default.chmod(0o777)
    monkeypatch.setattr(kernel_cache, "home", lambda: Path("/dev/null"))
    with pytest.warns(UserWarning, match="which is run from"):
        guard()
    assert VARIABLE not in os.environ


def test_the_compiler_uses_the_folder(default: Path) -> None:
    """Kernels are really compiled, in a process without the interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    environment.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, umask=0)
    assert mode(default) == mode(default.parent) == 0o700
    assert any(default.iterdir())
