"""Tests of command lines with impossible values, bad pictures and a home folder with a tilde."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from tconv.winners import home

LAYER = ["layer", "--input", "3x8x8", "--filters", "4", "--extent", "3", "--target", "sm_90"]


@pytest.mark.parametrize("option", ["--stride", "--padding", "--dilation", "--batch", "--filters"])
def test_impossible_values_are_refused(option: str) -> None:
    result = CliRunner().invoke(app, [*LAYER, option, "99999999999999999999"])
    assert result.exit_code == 2
    assert "is 99999999999999999999, over 2147483647" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("picture", ["layer.jpg", "missing/layer.svg"])
def test_a_bad_picture_is_refused_before_any_output(picture: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*LAYER, "--picture", str(tmp_path / picture)])
    assert result.exit_code == 2
    assert not result.stdout


def test_the_home_folder_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCONV_HOME", "~/x")
    assert home() == Path.home() / "x"
