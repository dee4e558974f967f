"""A layer drawn to scale: its input volume, a filter, its output volume, and one program's tile.

Volumes are drawn in oblique projection: height upward, width to the right, channels into the page.
The tile of one forward program is marked on the output volume, and the pixels it reads on the input
volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tconv.extras import extra
from tconv.families import matmul_shape
from tconv.geometry import cdiv
from tconv.problem import Problem
from tconv.svg import INK, STYLE
from tconv.tile import Choice

with extra("tune"):
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon

OBLIQUE = 0.35, 0.25  # offset per unit of depth, to the right and upward
LEAST_DEPTH = 0.02  # share of the drawing, so that a single channel still looks like a volume
INPUT, FILTER, OUTPUT, TILE = "#0072b2", "#009e73", "#d55e00", "#e69f00"  # colours by Okabe and Ito
Point = tuple[float, float]


@dataclass(frozen=True)
class Tiled:
    """The part of the output that one program computes: rows, columns, channels and images."""

    rows: int
    columns: int
    channels: int
    images: int
    text: str


def tile_of(problem: Problem, choice: Choice) -> Tiled:
    """Return the first forward program's tile, as the kernel family cuts the output.

    >>> from tconv.geometry import ConvGeometry
    >>> layer = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2)
    >>> from tconv.tile import Tile
    >>> tile_of(Problem(layer, "fprop"), Choice("implicit_gemm", Tile(128, 16, 16))).rows
    4
    """
    shape, tile = problem.geometry, choice.tile
    channels = min(tile.block_n, shape.group_out_channels)
    row_box = matmul_shape(problem, choice.family).row_box
    if row_box is not None:
        box = row_box(tile.block_m)
        rows, columns = min(box.rows, shape.out_h), min(box.columns, shape.out_w)
        images = min(box.images, shape.batch)
    else:  # the tile takes pixels in row order
        pixels = min(tile.block_m, shape.batch * shape.out_h * shape.out_w)
        images = cdiv(pixels, shape.out_h * shape.out_w)
        rows = min(shape.out_h, cdiv(pixels, shape.out_w))
        columns = min(shape.out_w, pixels)
    text = f"{choice.family}, tile {tile.block_m} x {tile.block_n}: a program computes "
    text += f"{rows} x {columns} pixels of {channels} of {shape.out_channels} filters"
    if images > 1:
        text += f", of {images} images"
    return Tiled(rows, columns, channels, images, text)


def _faces(
    left: float, bottom: float, width: float, height: float, depth: float
) -> list[list[Point]]:
    """Return the front, top and right side of a box."""
    dx, dy = depth * OBLIQUE[0], depth * OBLIQUE[1]
    right, top = left + width, bottom + height
    front = [(left, bottom), (right, bottom), (right, top), (left, top)]
    lid = [(left, top), (right, top), (right + dx, top + dy), (left + dx, top + dy)]
    side = [(right, bottom), (right + dx, bottom + dy), (right + dx, top + dy), (right, top)]
    return [front, lid, side]


def _draw(axes: Any, faces: list[list[Point]], colour: str, alpha: float, line: float) -> None:
    for face in faces:
        axes.add_patch(Polygon(face, facecolor=colour, alpha=alpha, edgecolor="none"))
        axes.add_patch(Polygon(face, fill=False, edgecolor=INK, linewidth=line))


def layer_picture(problem: Problem, choice: Choice, width: float = 10.0) -> Figure:
    """Draw the forward pass of ``problem`` in one figure of ``width`` inches."""
    shape, tiled = problem.geometry, tile_of(problem, choice)
    reach_h = shape.dilation_h * (shape.filter_h - 1) + 1
    reach_w = shape.dilation_w * (shape.filter_w - 1) + 1
    largest = max(shape.in_h, shape.in_w, shape.out_h, shape.out_w)
    # Shorten the depth of small volumes with many channels; channel depths keep their ratios.
    deepest = max(shape.in_channels, shape.out_channels)
    shorten = min(1.0, 2.0 * largest / deepest)
    least = LEAST_DEPTH * largest

    def depth(channels: int) -> float:
        return max(channels * shorten, least)

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.42 * width), layout="constrained")
        axes = figure.add_subplot()
        axes.set_aspect("equal")
        axes.set_axis_off()
        gap = 0.25 * largest

        def volume(left: float, size: tuple[int, int, int], colour: str, text: str) -> float:
            channels, height, across = size
            faces = _faces(left, -height / 2, across, height, depth(channels))
            _draw(axes, faces, colour, 0.25, 1.0)
            axes.text(left + across / 2, -height / 2 - 0.05 * largest, text,
                      ha="center", va="top", fontsize=10)  # fmt: skip
            return left + across + depth(channels) * OBLIQUE[0]

        left = 0.0
        end = volume(left, (shape.in_channels, shape.in_h, shape.in_w), INPUT,
                     f"input {shape.input_volume}")  # fmt: skip
        # the part of the tile's windows that lies on the image
        seen_h = min(shape.in_h, (tiled.rows - 1) * shape.stride_h + reach_h - shape.pad_h)
        seen_w = min(shape.in_w, (tiled.columns - 1) * shape.stride_w + reach_w - shape.pad_w)
        seen = _faces(left, shape.in_h / 2 - seen_h, seen_w, seen_h, depth(shape.in_channels))
        _draw(axes, seen, TILE, 0.45, 0.6)

        left = end + gap
        taps = f"{shape.group_in_channels}x{shape.filter_h}x{shape.filter_w}"
        end = volume(left, (shape.group_in_channels, reach_h, reach_w), FILTER,
                     f"{shape.out_channels} filters\n{taps}")  # fmt: skip
        left = end + gap
        volume(left, (shape.out_channels, shape.out_h, shape.out_w), OUTPUT,
               f"output {shape.output_volume}")  # fmt: skip
        top = shape.out_h / 2
        part = _faces(left, top - tiled.rows, tiled.columns, tiled.rows, depth(tiled.channels))
        _draw(axes, part, TILE, 0.75, 0.8)
        scale = "" if shorten == 1.0 else f"; depth at {shorten:.0%} of the scale"
        axes.set_title(f"{shape.describe()}{scale}\n{tiled.text}", fontsize=10, loc="left")
        axes.autoscale_view()
        axes.margins(0.03)
    return figure
