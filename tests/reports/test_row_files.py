"""Tests of writing and reading rows; errors name the damaged file, row and column."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reports.report_head import read_about
from reports.row_files import RowError, columns_of, read_rows, write_rows
from reports.rows import LayerRow, MapRow, SpaceRow, TrialRow
from reports.tables import Tables
from tests.tconv.test_files import SPOILT

SCHEMA = [
    "suite",
    "layer",
    "pass",
    "dtype",
    "batch",
    "in_channels",
    "in_h",
    "in_w",
    "filters",
    "filter_h",
    "filter_w",
    "stride",
    "padding",
    "dilation",
    "groups",
    "family",
    "tile",
    "kind",
    "tconv_ms",
    "tconv_ms_p20",
    "tconv_ms_p80",
    "cudnn_nhwc_ms",
    "cudnn_nchw_ms",
    "tflops",
    "gbps",
    "roofline_share",
    "error_fp64",
    "cudnn_error_fp64",
]


def test_layer_columns_are_unchanged_for_other_tools() -> None:
    assert columns_of(LayerRow) == SCHEMA


@pytest.mark.parametrize("name", ["layers", "trials", "space", "map"])
def test_rows_are_read_as_they_were_written(tmp_path: Path, tables: Tables, name: str) -> None:
    rows = getattr(tables, name)
    row_type = {"layers": LayerRow, "trials": TrialRow, "space": SpaceRow, "map": MapRow}[name]
    write_rows(tmp_path / "x.csv", row_type, rows)
    assert rows
    assert read_rows(tmp_path / "x.csv", row_type) == rows


def test_a_table_that_a_spreadsheet_wrote_is_read(tmp_path: Path, tables: Tables) -> None:
    path = tmp_path / "x.csv"
    write_rows(path, LayerRow, tables.layers)
    text = path.read_text().replace("\n", "\r\n")
    path.write_bytes(f"\ufeff{text}\r\n".encode())
    assert read_rows(path, LayerRow) == tables.layers


def test_an_empty_table_is_read_as_empty(tmp_path: Path) -> None:
    write_rows(tmp_path / "x.csv", LayerRow, [])
    assert read_rows(tmp_path / "x.csv", LayerRow) == []


def damage(path: Path, row: int, column: str, cell: str) -> None:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[row][lines[0].index(column)] = cell
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("batch", "many", "invalid literal for int() with base 10: 'many'"),
        ("batch", "-1", "'batch' must be >= 0: -1"),
        ("batch", "1" + 15 * "0", "'batch' must be < 1000000000000000"),
        ("batch", "", "invalid literal for int()"),
        ("filters", "6.5", "invalid literal for int()"),
        ("pass", "sideways", "must be in ('fprop', 'dgrad', 'wgrad')"),
        ("dtype", "int4", "must be in ('float16', 'bfloat16'"),
        ("tile", "128", "'128' is not a tile such as '128x64x32 s3 w4 g8 k1'"),
        ("kind", "guessed", "must be in ('measured', 'predicted')"),
        ("stride", "2 x 2", "must match regex"),
        ("tconv_ms", "fast", "could not convert string to float: 'fast'"),
        ("tconv_ms", "-0.5", "'tconv_ms' must be >= 0: -0.5"),
        ("tflops", "nan", "'tflops' must be >= 0: nan"),
        ("tflops", "inf", "'tflops' must be < inf: inf"),
        ("suite", "", "Length of 'suite' must be"),
    ],
)
def test_damaged_cell_is_named(
    tmp_path: Path, tables: Tables, column: str, cell: str, reason: str
) -> None:
    path = tmp_path / "layers.csv"
    write_rows(path, LayerRow, tables.layers)
    damage(path, 2, column, cell)
    named = f"{path}: row 2, column {column}: {cell!r} is refused: "
    with pytest.raises(RowError, match=rf"{re.escape(named)}.*{re.escape(reason)}"):
        read_rows(path, LayerRow)


def test_an_empty_cell_is_none_where_the_type_allows_it(tmp_path: Path, tables: Tables) -> None:
    path = tmp_path / "layers.csv"
    write_rows(path, LayerRow, tables.layers)
    damage(path, 2, "tconv_ms", "")
    damage(path, 2, "filters", "")
    row = read_rows(path, LayerRow)[1]
    assert (row.tconv_ms, row.filters) == (None, None)


@pytest.mark.parametrize(("old", "new"), [(",", ""), ("\n", ",1\n")], ids=["cut off", "surplus"])
def test_a_row_of_another_length_is_named(
    tmp_path: Path, tables: Tables, old: str, new: str
) -> None:
    """Even where every cell that is missing might be empty."""
    path = tmp_path / "layers.csv"
    write_rows(path, LayerRow, tables.layers)
    before, _, after = path.read_text().rpartition(old)
    path.write_text(before + new + after)
    with pytest.raises(RowError, match=rf"row {len(tables.layers)} has 2[79] cells for 28 columns"):
        read_rows(path, LayerRow)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"suite,layer\na,b\n", "header: column pass is missing"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b'suite,layer\n"a,b\n', "cannot be read: unexpected end of data"),
    ],
    ids=["empty", "other columns", "no text", "open quote"],
)
def test_a_file_that_is_not_a_table_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "layers.csv"
    path.write_bytes(content)
    with pytest.raises(RowError, match=words) as caught:
        read_rows(path, LayerRow)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
def test_a_path_that_is_not_a_text_file_is_named(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    for name, read in (("x.csv", lambda path: read_rows(path, LayerRow)), ("a.json", read_about)):
        spoil(tmp_path / name)
        with pytest.raises(RowError, match=name):
            read(tmp_path / name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"none\.csv"):
        read_rows(tmp_path / "none.csv", LayerRow)


def test_columns_of_0_1_0_are_read_by_their_old_names(tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    write_rows(path, LayerRow, tables.layers)
    head, _, rows = path.read_text().partition("\n")
    assert ",family," in head
    path.write_text(head.replace(",family,", ",algorithm,") + "\n" + rows)
    assert read_rows(path, LayerRow) == list(tables.layers)
