"""Tests of comparing two layer tables: changes beyond noise, and their report."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from typer.testing import CliRunner

from reports.cli import app
from reports.compare import compare, render_comparison, share_of
from reports.row_files import RowError, write_rows
from reports.rows import LayerRow
from reports.tables import Tables
from tests.reports.conftest import measured


@pytest.fixture
def rows(tables: Tables) -> list[LayerRow]:
    """Rows of 1 ms each, with the middle 60% of samples within 2%."""
    made = measured(tables).layers
    return [evolve(r, tconv_ms=1.0, tconv_ms_p20=0.98, tconv_ms_p80=1.02) for r in made]


def times(row: LayerRow, factor: float) -> LayerRow:
    return evolve(row, tconv_ms=factor, tconv_ms_p20=0.98 * factor, tconv_ms_p80=1.02 * factor)


def write(path: Path, rows: list[LayerRow]) -> Path:
    write_rows(path, LayerRow, rows)
    return path


@pytest.fixture
def files(tmp_path: Path, rows: list[LayerRow]) -> tuple[Path, Path]:
    """Tables with three changes (much slower, faster, within noise), each with an extra row."""
    after = [times(rows[0], 1.2), times(rows[1], 0.95), times(rows[2], 1.03), *rows[3:-1]]
    after.append(evolve(rows[-1], layer="new"))
    return write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", after)


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return result.exit_code, result.output


def test_changes_beyond_noise(files: tuple[Path, Path], rows: list[LayerRow]) -> None:
    found = compare(*files)
    assert [pair.ratio for pair in found.changed("slower")] == [1.2]
    assert [pair.ratio for pair in found.changed("faster")] == [0.95]
    assert len(found.changed("within noise")) == len(rows) - 3
    assert ([row.layer for row in found.only_after], len(found.only_before)) == (["new"], 1)


def test_predictions_have_no_noise(tmp_path: Path, tables: Tables) -> None:
    rows = [evolve(row, tconv_ms=1.0) for row in tables.layers]
    after = [evolve(rows[0], tconv_ms=1.02), evolve(rows[1], tconv_ms=1.005), *rows[2:]]
    found = compare(write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", after))
    assert [pair.ratio for pair in found.changed("slower")] == [1.02]


@pytest.mark.parametrize(("limit", "code"), [("5%", 1), ("19.9%", 1), ("25%", 0)])
def test_a_regression_beyond_the_limit_fails(
    files: tuple[Path, Path], limit: str, code: int
) -> None:
    found, output = invoke(*files, "--fail-on-regression", limit)
    assert found == code, output
    assert "1 became slower and 1 faster" in output
    assert (f"1 passes are slower by more than {limit}" in output) == bool(code)


def test_without_a_limit_nothing_fails(files: tuple[Path, Path]) -> None:
    assert invoke(*files)[0] == 0
    assert invoke(files[0], files[0], "--fail-on-regression", "0%")[0] == 0


def test_both_tables_are_rendered_side_by_side(files: tuple[Path, Path], tmp_path: Path) -> None:
    code, output = invoke(*files, "--out", tmp_path / "out")
    assert code == 0, output
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    for text in (html, markdown):
        assert "+20.0%" in text
        assert "-5.0%" in text
        assert "Only in the table after" in text
    assert "| 1 | 1.2 | +20.0% | slower |" in markdown
    assert (tmp_path / "out" / "changes.svg").exists()


def test_nothing_in_common(tmp_path: Path, rows: list[LayerRow]) -> None:
    files = write(tmp_path / "a.csv", rows[:1]), write(tmp_path / "b.csv", rows[1:2])
    found = compare(*files)
    assert found.pairs == ()
    (page, *_) = render_comparison(found, *files, tmp_path / "out")
    assert "There is nothing to compare." in page.read_text(encoding="utf-8")
    assert "no layer and pass in common" in invoke(*files)[1]


def test_predicted_and_measured_are_never_compared(
    tmp_path: Path, tables: Tables, rows: list[LayerRow]
) -> None:
    files = write(tmp_path / "a.csv", tables.layers), write(tmp_path / "b.csv", rows)
    code, output = invoke(*files)
    assert code == 2
    assert "measured and predicted figures; the two are never compared" in output


def test_a_duplicate_row_is_refused(tmp_path: Path, rows: list[LayerRow]) -> None:
    path = write(tmp_path / "a.csv", [rows[0], rows[0]])
    with pytest.raises(RowError, match=r"a\.csv: row 2, column layer: .* appears twice"):
        compare(path, path)


def test_damaged_files_are_named_with_row_and_column(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    text = files[0].read_text()
    damaged = tmp_path / "damaged.csv"
    for spoilt, words in (
        ("", "is empty"),
        (text.replace("tconv_ms,", "ms,", 1), "column tconv_ms is missing"),
        (text.replace("dgrad", "backward", 1), "row 2, column pass: 'backward'"),
        (text[: len(text) // 2], "row"),
    ):
        damaged.write_text(spoilt)
        code, output = invoke(files[0], damaged)
        assert code == 2, spoilt
        assert "damaged.csv" in output
        assert words in output
    code, output = invoke(files[0], tmp_path / "none.csv")
    assert code == 2
    assert "none.csv cannot be read" in output


@pytest.mark.parametrize("text", ["5", "-5%", "five%", "", "%", "nan%"])
def test_a_limit_is_a_percentage(text: str, files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="write 5%"):
        share_of(text)
    code, output = invoke(*files, f"--fail-on-regression={text}")
    assert code == 2
    assert "write 5%" in output
