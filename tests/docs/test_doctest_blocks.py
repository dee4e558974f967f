"""Tests that docstrings' sessions become fenced blocks in the API reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="needs the documentation's dependencies")


def test_a_session_is_fenced_and_the_text_around_it_is_kept() -> None:
    path = Path(__file__).parents[2] / "docs" / "doctest_blocks.py"
    spec = importlib.util.spec_from_file_location("doctest_blocks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "Adds.\n\n>>> 1 + 1\n2\n\nNothing else."
    assert module.fenced(text) == "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nNothing else."
