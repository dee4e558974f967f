"""Tests of the page on how far to trust a prediction, and of the links to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports import trust
from reports.cli import app
from reports.render import pages_text
from tconv.cost.constants import support
from tconv.target import TARGETS
from tests.autotune.test_judge import GEMM_HEAD, products


def test_the_page_names_sources_errors_and_unsupported_targets() -> None:
    files = pages_text(trust.content(), trust.chapters(), trust.PAGE)
    assert set(files) >= {"trust.html", "trust.md", "trust-picks.svg", "trust-times-a100.svg"}
    for text in (files["trust.html"], files["trust.md"]):
        for word in ("3ed2bc47", "63d5ee62", "gfx942", "Where it errs", "NVIDIA"):
            assert word in text
        for name, cell in trust.published()["cells"].items():
            assert name in text
            assert f"{cell['top1']:.3f}" in text


def test_statistics_come_from_tables_and_hold_no_row(tmp_path: Path) -> None:
    table, out = tmp_path / "products.csv", tmp_path / "judged.json"
    table.write_text(GEMM_HEAD + products())
    result = CliRunner().invoke(app, ["trust", str(table), "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert '"A100/float16/fprop"' in text
    assert '"top1": 1.0' in text
    assert '"16": 1.0' in text
    assert "BLOCK" not in text
    assert CliRunner().invoke(app, ["trust", str(tmp_path / "none")]).exit_code == 2


@pytest.mark.parametrize(
    ("name", "words"), [("sm_90", "Expected error"), ("gfx942", "supported by no")]
)
def test_support_is_stated_for_each_target(name: str, words: str) -> None:
    assert words in support(TARGETS[name])
