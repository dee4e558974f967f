"""Tuning choices: a tile and its kernel family, as frozen values that are passed at launch."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

# Numbers of at most seven digits, as many as 2^20 has.
PATTERN = re.compile("{0}x{0}x{0} s{0} w{0} g{0} k{0}(?: p{0})?".format("([0-9]{1,7})"))

# Legend of a printed tile, shown where a reader first meets one.
TILE_LEGEND = (
    "tile 128x16x32 s3 w4 g8 k1: 128 pixels x 16 filters x 32 channels of a step in fprop (pixels "
    "x channels x filters in dgrad, filters x taps and channels x pixels in wgrad); s pipeline "
    "stages, w warps, g swizzle (rows of tiles walked together), k splits of the reduction, "
    "p programs of a processor that take tiles in turn"
)


@dataclass(frozen=True, order=True)
class Tile:
    """The division of a problem among programs, and of a program's work into steps.

    Each pass of a convolution is a matrix product: a program computes ``block_m`` x ``block_n``
    outputs, in steps of ``block_k`` along the reduction. For max-pool ``block_m`` counts outputs
    of one channel and ``block_n`` channels.

    >>> str(Tile(128, 64, 32, stages=3, warps=4))
    '128x64x32 s3 w4 g8 k1'
    >>> Tile.parse("128x64x32 s3 w4 g8 k1") == Tile(128, 64, 32, stages=3, warps=4)
    True
    """

    block_m: int
    block_n: int
    block_k: int
    stages: int = 3  # depth of the software pipeline
    warps: int = 8
    swizzle: int = 8  # rows of tiles that share an L2 neighbourhood
    splits: int = 1  # programs that share one reduction
    persistent: int = 0  # programs on each processor that share all tiles; 0: one program a tile

    def __post_init__(self) -> None:
        for name in FIELDS:
            value, least = getattr(self, name), 0 if name == "persistent" else 1
            if type(value) is not int or not least <= value <= 1 << 20:
                raise ValueError(f"tile: {name} is {value!r}, not within {least} to 2^20")
        for name in ("block_m", "block_n", "block_k", "warps"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"tile: {name} is {value}, not a power of two")

    def __str__(self) -> str:
        text = (
            f"{self.block_m}x{self.block_n}x{self.block_k} "
            f"s{self.stages} w{self.warps} g{self.swizzle} k{self.splits}"
        )
        return f"{text} p{self.persistent}" if self.persistent else text

    @classmethod
    def parse(cls, text: str) -> Tile:
        match = PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{reprlib.repr(text)} is not a tile such as '128x64x32 s3 w4 g8 k1'")
        return cls(*map(int, match.groups(default="0")))

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


Count = Any  # a number, or an array that holds one for each of many tiles


@dataclass(frozen=True, eq=False)
class Tiles:
    """Many tiles: each field of ``Tile`` is an array. The cost model's arithmetic takes either.

    >>> many = Tiles.of([Tile(128, 64, 32), Tile(64, 64, 32, splits=4)])
    >>> many.block_m * many.block_n
    array([8192, 4096])
    >>> many.tile(1)
    Tile(block_m=64, block_n=64, block_k=32, stages=3, warps=8, swizzle=8, splits=4, persistent=0)
    """

    block_m: Count
    block_n: Count
    block_k: Count
    stages: Count
    warps: Count
    swizzle: Count
    splits: Count
    persistent: Count

    @classmethod
    def of(cls, tiles: Iterable[Tile]) -> Tiles:
        rows = [[getattr(tile, name) for name in FIELDS] for tile in tiles]
        return cls(*np.array(rows, dtype=np.int64).reshape(-1, len(FIELDS)).T)

    def __len__(self) -> int:
        return len(self.block_m)

    def take(self, places: Any) -> Tiles:
        """The tiles at ``places``: indices, or a mask."""
        if places.dtype == bool:  # indices are counted once for all fields
            places = np.flatnonzero(places)
        return Tiles(*(getattr(self, name)[places] for name in FIELDS))

    def tile(self, place: int) -> Tile:
        """The tile at ``place``."""
        return Tile(*(int(getattr(self, name)[place]) for name in FIELDS))


FIELDS = tuple(each.name for each in fields(Tile))
SHARED_OUT = ("swizzle", "splits", "persistent")  # how tiles are shared out among programs


@dataclass(frozen=True, eq=False)
class Spread:
    """Many tiles of fewer blocks: what tiles have in common is held once.

    Attributes:
        blocks: a tile for each combination of the other fields than ``SHARED_OUT``, and for each
            another one if its reduction is split.
        places: of each tile's block, among ``blocks``.
    """

    blocks: Tiles
    places: Count
    swizzle: Count
    splits: Count
    persistent: Count

    def __len__(self) -> int:
        return len(self.places)

    def tile(self, place: int) -> Tile:
        """The tile at ``place``."""
        shares = {name: int(getattr(self, name)[place]) for name in SHARED_OUT}
        return replace(self.blocks.tile(self.places[place]), **shares)

    def join(self, tiles: Tiles) -> Spread:
        """These tiles, then ``tiles``."""
        pairs = [(getattr(self.blocks, name), getattr(tiles, name)) for name in FIELDS]
        shares = [(getattr(self, name), getattr(tiles, name)) for name in SHARED_OUT]
        places = len(self.blocks) + np.arange(len(tiles))
        return Spread(
            Tiles(*map(np.concatenate, pairs)),
            np.concatenate([self.places, places]),
            *map(np.concatenate, shares),
        )


def for_each(function: Callable[[int], int], values: Count) -> Count:
    """``function`` of a number, or of each number of an array, called once for equal numbers.

    >>> for_each(lambda block: 100 // block, np.array([16, 32, 16]))
    array([6, 3, 6])
    """
    if np.ndim(values) == 0:
        return function(int(values))
    distinct = np.flatnonzero(np.bincount(np.ravel(values)))  # fields are small: no need to sort
    found = np.zeros(distinct[-1] + 1 if len(distinct) else 0, dtype=np.int64)
    found[distinct] = [function(int(value)) for value in distinct]
    return found[values]


class EachOnce:
    """``for_each`` of one function, which remembers what it returned.

    >>> found = EachOnce(lambda block: 100 // block)
    >>> found(np.array([16, 32])), found(np.array([64, 16]))
    (array([6, 3]), array([1, 6]))
    """

    def __init__(self, function: Callable[[int], int]) -> None:
        self._function = function
        self._found = np.full(1, -1, dtype=np.int64)  # by value; -1 where it was not called

    def __call__(self, values: Count) -> Count:
        if np.ndim(values) == 0:
            return self._function(int(values))
        if len(self._found) <= (largest := values.max(initial=0)):
            more = np.full(largest + 1 - len(self._found), -1, dtype=np.int64)
            self._found = np.concatenate([self._found, more])
        found = self._found[values]
        for value in np.unique(values[found < 0]) if found.min(initial=0) < 0 else ():
            self._found[value] = self._function(int(value))
            found = np.where(values == value, self._found[value], found)
        return found


Ground = Literal["tuned", "shipped", "predicted", "heuristic"]


@dataclass(frozen=True)
class Choice:
    """A kernel family and its tile for one problem, and where the choice comes from."""

    family: str
    tile: Tile
    ground: Ground = field(default="heuristic", compare=False)
    at: str = field(default="", compare=False)  # the size it was found for, where not the problem's
