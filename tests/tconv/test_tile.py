"""Tests that a tile is checked when it is made."""

from __future__ import annotations

import dataclasses

import pytest

from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import TARGETS
from tconv.tile import TILE_LEGEND, Tile


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_m": 48}, "block_m is 48, not a power of two"),
        ({"warps": 0}, "warps is 0"),
        ({"stages": 2.0}, "stages is 2.0"),
        ({"block_k": 1 << 21}, "block_k is 2097152"),
        ({"splits": True}, "splits is True"),
    ],
)
def test_errors_name_the_value(change: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(Tile(64, 64, 32), **change)


@pytest.mark.parametrize("text", ["", "64x64", "64x64x32", "64x64x32 s3 w4 g8 k1 x"])
def test_text_that_is_not_a_tile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a tile"):
        Tile.parse(text)


LAYERS = [
    ConvGeometry(64, 3, 224, 224, 64, 3, 3, pad_h=1, pad_w=1),
    ConvGeometry(64, 512, 14, 14, 512, 3, 3, pad_h=1, pad_w=1),
    ConvGeometry(1, 1, 32, 32, 6, 5, 5),
    ConvGeometry(8, 96, 14, 14, 96, 3, 3, groups=96),
]


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_heuristic_tiles_can_be_launched(target, dtype: str) -> None:  # type: ignore[no-untyped-def]
    for layer in LAYERS:
        for direction in ("fprop", "dgrad", "wgrad"):
            problem = Problem(layer, direction, dtype)  # type: ignore[arg-type]
            choice = heuristic(problem, target)
            tile = choice.tile
            if choice.family in ("direct", "depthwise"):  # no matrix unit: every thread has work
                assert tile.block_m * tile.block_n * tile.block_k >= tile.warps * target.warp_size
                continue
            operands = (tile.block_m + tile.block_n) * tile.block_k * problem.itemsize
            assert min(tile.block_m, tile.block_n, tile.block_k) >= 16  # the minimum of tl.dot
            buffers = tile.stages if target.sm >= 90 else max(1, tile.stages - 1)
            assert buffers * operands <= target.shared_per_program


def test_the_legend_shows_a_real_tile() -> None:
    assert Tile.parse(TILE_LEGEND.removeprefix("tile ").partition(":")[0]).block_m == 128
