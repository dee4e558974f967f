"""Tests of drawing a layer to scale with one program's tile."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.patches import Polygon
from typer.testing import CliRunner

from autotune.cli import app
from autotune.picture import layer_picture, tile_of
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.tile import Choice, Tile

LECTURE = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2, batch=4)
LAYER = ("layer", "--input", "3x32x32", "--filters", "10", "--extent", "5", "--padding", "2")


@pytest.mark.parametrize(
    ("shape", "choice", "rows", "columns", "channels", "images"),
    [
        (LECTURE, Choice("implicit_gemm", Tile(64, 16, 16)), 2, 32, 10, 1),
        (LECTURE, Choice("implicit_gemm", Tile(2048, 16, 16)), 32, 32, 10, 2),
        (LECTURE, Choice("direct", Tile(16, 4, 1)), 1, 16, 4, 1),
        (ConvGeometry(64, 64, 56, 56, 64, 3, 3, pad_h=1, pad_w=1),
         Choice("implicit_gemm_tma", Tile(64, 64, 64)), 8, 8, 64, 1),
    ],
)  # fmt: skip
def test_the_tile_is_that_of_the_first_program(
    shape: ConvGeometry, choice: Choice, rows: int, columns: int, channels: int, images: int
) -> None:
    tiled = tile_of(Problem(shape, "fprop"), choice)
    assert (tiled.rows, tiled.columns, tiled.channels, tiled.images) == (
        rows, columns, channels, images,
    )  # fmt: skip


def test_volumes_are_to_scale() -> None:
    figure = layer_picture(Problem(LECTURE, "fprop"), Choice("implicit_gemm", Tile(64, 16, 16)))
    faces = [patch for patch in figure.axes[0].patches if isinstance(patch, Polygon) and patch.fill]
    sides = [tuple(face.get_xy()[:4].max(0) - face.get_xy()[:4].min(0)) for face in faces[::3]]
    # Front faces of the input, the tile's input, a filter, the output and the tile. Two rows of
    # output read four rows of the image, because two more are in the zero padding.
    assert sides == [(32, 32), (32, 4), (5, 5), (32, 32), (32, 2)]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_command_draws(ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"layer.{ending}"
    result = CliRunner().invoke(app, [*LAYER, "--picture", str(out)])
    assert result.exit_code == 0
    assert f"drawn: {out}" in result.output
    assert out.stat().st_size > 1000


def test_pictures_that_cannot_be_drawn_are_reported(tmp_path: Path) -> None:
    for out, words in (("layer.pdf", ".svg or a .png"), ("missing/layer.svg", "No such file")):
        result = CliRunner().invoke(app, [*LAYER, "--picture", str(tmp_path / out)])
        assert result.exit_code != 0
        assert words in result.output
