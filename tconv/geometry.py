"""Geometry of convolution and pooling layers: shapes, parameters, operations and bytes.

This module alone translates between PyTorch's terms (``in_channels``, ``kernel_size``,
``padding``) and the lecture's (an input volume W1 x H1 x C, K filters of spatial
extent F, stride S, zero padding P).

>>> layer = ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, stride=1, padding=2)
>>> layer.output_volume
'10x32x32'
>>> layer.parameters()
760
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import gcd
from typing import Literal

Pass = Literal["fprop", "dgrad", "wgrad"]
PASSES: tuple[Pass, ...] = ("fprop", "dgrad", "wgrad")
LARGEST = 2**31 - 1  # largest size, extent, stride or dilation that a kernel accepts
MOST_DIGITS = 12  # digits of a number in a key; no tensor is larger


def cdiv(a: int, b: int) -> int:
    """The quotient ``a / b``, rounded up."""
    return -(-a // b)


def power_of_two(value: int, least: int = 1, most: int | None = None) -> int:
    """The smallest power of two that is at least ``value``, within bounds.

    >>> power_of_two(27)
    32
    """
    found = max(1 << (max(value, 1) - 1).bit_length(), least)
    return found if most is None else min(found, most)


def out_size(in_size: int, extent: int, stride: int, pad: int, dilation: int = 1) -> int:
    """Output size of a sliding window: ``(W - F + 2P)/S + 1``, rounded down as torch does.

    With a dilation D the window covers ``D (F - 1) + 1`` elements. Arguments may be plain or
    symbolic integers.

    >>> out_size(32, extent=5, stride=1, pad=0)
    28
    >>> out_size(7, extent=3, stride=2, pad=0)
    3
    >>> out_size(7, extent=3, stride=3, pad=0)  # 2.33: the last column is dropped
    2
    """
    return (in_size + 2 * pad - dilation * (extent - 1) - 1) // stride + 1


def pool_out_size(
    in_size: int, window: int, stride: int, pad: int, dilation: int, ceil_mode: bool
) -> int:
    """Output size of a pooling window; with ``ceil_mode`` the last window may overhang.

    As in torch, a window must still start inside the input or its left padding.

    >>> pool_out_size(5, window=2, stride=2, pad=0, dilation=1, ceil_mode=True)
    3
    """
    span = in_size + 2 * pad - dilation * (window - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    out = (span + stride - 1) // stride + 1
    return out - 1 if (out - 1) * stride >= in_size + pad else out


def _parse_volume(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or 0 in (volume := tuple(int(part) for part in match.groups())):
        raise ValueError(f"a volume reads CxHxW, as in 3x32x32, not {text!r}")
    return volume[0], volume[1], volume[2]


def _positions_read(
    size: int, extent: int, stride: int, pad: int, dilation: int, windows: int
) -> int:
    """Return how many of an axis's ``size`` positions some window reads.

    The count is exact for windows that lie apart and for windows without dilation. For others, gaps
    near the borders are assumed to be as frequent as those further inside.

    >>> _positions_read(7, extent=2, stride=3, pad=0, dilation=1, windows=2)
    4
    """
    span = dilation * (extent - 1) + 1  # of one window
    last = (windows - 1) * stride + span

    def read_before(end: int) -> int:
        """Return how many of the first ``end`` positions are read; these include the padding."""
        if stride >= span:
            whole, rest = divmod(min(end, last), stride)
            return whole * extent + min(extent, cdiv(rest, dilation))
        common = gcd(stride, dilation)
        return cdiv(min(end, last), common) * min(extent, stride // common) // (stride // common)

    return min(windows * extent, read_before(size + pad) - read_before(pad))


@dataclass(frozen=True)
class ConvGeometry:
    """The shape of one two-dimensional convolution.

    x is (batch, in_channels, in_h, in_w), w is (out_channels, in_channels / groups,
    filter_h, filter_w), y is (batch, out_channels, out_h, out_w).
    """

    batch: int
    in_channels: int
    in_h: int
    in_w: int
    out_channels: int
    filter_h: int
    filter_w: int
    stride_h: int = 1
    stride_w: int = 1
    pad_h: int = 0
    pad_w: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1

    @classmethod
    def from_torch(
        cls,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> ConvGeometry:
        """Return the geometry of a ``torch.nn.functional.conv2d`` call; arguments are pairs."""
        batch, in_channels, in_h, in_w = x_shape
        out_channels, _, filter_h, filter_w = w_shape
        (stride_h, stride_w), (pad_h, pad_w) = stride, padding
        dilation_h, dilation_w = dilation
        layer = (batch, in_channels, in_h, in_w, out_channels, filter_h, filter_w)
        window = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        return cls(*layer, *window, groups)

    @classmethod
    def from_lecture(
        cls,
        volume: str,
        filters: int,
        extent: int,
        stride: int = 1,
        padding: int = 0,
        batch: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> ConvGeometry:
        """Return the geometry for the lecture's K, F, S, P and a volume ``"CxHxW"``.

        Raises:
            ValueError: if the volume does not parse or the layer cannot exist.
        """
        channels, height, width = _parse_volume(volume)
        geometry = cls(
            batch,
            channels,
            height,
            width,
            filters,
            extent,
            extent,
            stride,
            stride,
            padding,
            padding,
            dilation,
            dilation,
            groups,
        )
        geometry.validate()
        return geometry

    def validate(self) -> None:
        """Raise a ValueError that names the wrong value if the layer cannot exist."""
        volumes = ("in_channels", "in_h", "in_w", "out_channels", "filter_h", "filter_w")
        window = ("stride_h", "stride_w", "dilation_h", "dilation_w", "groups")
        for name in volumes + window:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for field in fields(self):
            if getattr(self, field.name) > LARGEST:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}, over {LARGEST}")
        for name in ("batch", "pad_h", "pad_w"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must not be negative")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which groups={self.groups} does not divide"
                )
        if self.out_h < 1 or self.out_w < 1:
            reach_h = self.dilation_h * (self.filter_h - 1) + 1
            reach_w = self.dilation_w * (self.filter_w - 1) + 1
            raise ValueError(
                f"a filter that covers {reach_h}x{reach_w} is larger than the padded input "
                f"{self.in_h + 2 * self.pad_h}x{self.in_w + 2 * self.pad_w}"
            )

    @property
    def out_h(self) -> int:
        return out_size(self.in_h, self.filter_h, self.stride_h, self.pad_h, self.dilation_h)

    @property
    def out_w(self) -> int:
        return out_size(self.in_w, self.filter_w, self.stride_w, self.pad_w, self.dilation_w)

    @property
    def is_empty(self) -> bool:
        """True if x, w or y has no elements, so that there is nothing to multiply."""
        return 0 in (self.batch, self.in_channels, self.out_channels)

    @property
    def group_in_channels(self) -> int:
        return self.in_channels // self.groups

    @property
    def group_out_channels(self) -> int:
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Number of positions in a filter: F x F."""
        return self.filter_h * self.filter_w

    @property
    def x_elements(self) -> int:
        return self.batch * self.in_channels * self.in_h * self.in_w

    @property
    def w_elements(self) -> int:
        return self.out_channels * self.group_in_channels * self.taps

    @property
    def y_elements(self) -> int:
        return self.batch * self.out_channels * self.out_h * self.out_w

    @property
    def flops(self) -> int:
        """Floating-point operations of one pass: two for each multiplication and addition.

        The three passes perform the same multiplications, so the figure is the same for all.
        As is usual, multiplications by the zero padding are counted.
        """
        return 2 * self.y_elements * self.group_in_channels * self.taps

    def parameters(self, bias: bool = True) -> int:
        """Number of trainable parameters: F F C K weights and K biases."""
        return self.w_elements + (self.out_channels if bias else 0)

    @property
    def x_read(self) -> int:
        """Number of elements of x that some window reads; windows that lie apart leave gaps.

        >>> ConvGeometry.from_lecture("1x7x7", filters=1, extent=1, stride=2).x_read
        16
        """
        rows = _positions_read(
            self.in_h, self.filter_h, self.stride_h, self.pad_h, self.dilation_h, self.out_h
        )
        columns = _positions_read(
            self.in_w, self.filter_w, self.stride_w, self.pad_w, self.dilation_w, self.out_w
        )
        return self.batch * self.in_channels * rows * columns

    def least_bytes(self, itemsize: int) -> int:
        """Fewest bytes that any of the passes can move: w, y and what is read of x, each once."""
        return itemsize * (self.x_read + self.w_elements + self.y_elements)

    @property
    def dropped(self) -> tuple[int, int]:
        """Rows and columns at the bottom and right border that no window reaches.

        >>> ConvGeometry.from_lecture("1x7x7", filters=1, extent=3, stride=3).dropped
        (1, 1)
        """
        span_h = self.in_h + 2 * self.pad_h - self.dilation_h * (self.filter_h - 1) - 1
        span_w = self.in_w + 2 * self.pad_w - self.dilation_w * (self.filter_w - 1) - 1
        return span_h % self.stride_h, span_w % self.stride_w

    @property
    def input_volume(self) -> str:
        return f"{self.in_channels}x{self.in_h}x{self.in_w}"

    @property
    def output_volume(self) -> str:
        return f"{self.out_channels}x{self.out_h}x{self.out_w}"

    @property
    def key(self) -> str:
        """A short text with the value of every field; ``from_key`` parses it.

        >>> ConvGeometry(64, 3, 224, 224, 64, 3, 3, pad_h=1, pad_w=1).key
        'n64c3h224w224-k64f3x3-s1x1-p1x1-d1x1-g1'
        """
        return (
            f"n{self.batch}c{self.in_channels}h{self.in_h}w{self.in_w}"
            f"-k{self.out_channels}f{self.filter_h}x{self.filter_w}"
            f"-s{self.stride_h}x{self.stride_w}-p{self.pad_h}x{self.pad_w}"
            f"-d{self.dilation_h}x{self.dilation_w}-g{self.groups}"
        )

    @classmethod
    def from_key(cls, key: str) -> ConvGeometry:
        """Return the geometry that ``key`` names.

        >>> key = "n64c3h224w224-k64f3x3-s1x1-p1x1-d1x1-g1"
        >>> ConvGeometry.from_key(key).key == key
        True

        Raises:
            ValueError: if ``key`` names no geometry.
        """
        numbers = re.findall(r"[0-9]+", key)
        if len(numbers) != len(fields(cls)) or max(map(len, numbers)) > MOST_DIGITS:
            raise ValueError(f"{reprlib.repr(key)} names no convolution")
        geometry = cls(*map(int, numbers))
        if geometry.key != key:
            raise ValueError(f"{reprlib.repr(key)} names no convolution")
        return geometry

    def describe(self) -> str:
        """Return the layer's hyperparameters in the lecture's words, as in "K=10 F=5 S=1 P=2"."""

        def pair(a: int, b: int) -> str:
            return str(a) if a == b else f"{a}x{b}"

        text = (
            f"K={self.out_channels} F={pair(self.filter_h, self.filter_w)} "
            f"S={pair(self.stride_h, self.stride_w)} P={pair(self.pad_h, self.pad_w)}"
        )
        if (self.dilation_h, self.dilation_w) != (1, 1):
            text += f" dilation {pair(self.dilation_h, self.dilation_w)}"
        if self.groups > 1:
            text += f" groups {self.groups}"
        return text


@dataclass(frozen=True)
class PoolGeometry:
    """The shape of one two-dimensional max-pool; x and y are (batch, channels, h, w)."""

    batch: int
    channels: int
    in_h: int
    in_w: int
    window_h: int
    window_w: int
    stride_h: int
    stride_w: int
    pad_h: int = 0
    pad_w: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    ceil_mode: bool = False

    @property
    def out_h(self) -> int:
        window = (self.window_h, self.stride_h, self.pad_h, self.dilation_h)
        return pool_out_size(self.in_h, *window, self.ceil_mode)

    @property
    def out_w(self) -> int:
        window = (self.window_w, self.stride_w, self.pad_w, self.dilation_w)
        return pool_out_size(self.in_w, *window, self.ceil_mode)

    @property
    def x_elements(self) -> int:
        return self.batch * self.channels * self.in_h * self.in_w

    @property
    def y_elements(self) -> int:
        return self.batch * self.channels * self.out_h * self.out_w

    def least_bytes(self, itemsize: int) -> int:
        """Fewest bytes that the forward pass can move: x once and y once."""
        return itemsize * (self.x_elements + self.y_elements)

    @property
    def key(self) -> str:
        return (
            f"n{self.batch}c{self.channels}h{self.in_h}w{self.in_w}"
            f"-f{self.window_h}x{self.window_w}-s{self.stride_h}x{self.stride_w}"
            f"-p{self.pad_h}x{self.pad_w}-d{self.dilation_h}x{self.dilation_w}"
            f"-ceil{int(self.ceil_mode)}"
        )


@dataclass(frozen=True)
class AdaptiveGeometry:
    """The shape of one adaptive pool, or of a gather by index between planes of two sizes.

    x is (batch, channels, in_h, in_w), y is (batch, channels, out_h, out_w).
    """

    batch: int
    channels: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int

    @property
    def x_elements(self) -> int:
        return self.batch * self.channels * self.in_h * self.in_w

    @property
    def y_elements(self) -> int:
        return self.batch * self.channels * self.out_h * self.out_w

    @property
    def key(self) -> str:
        return f"n{self.batch}c{self.channels}h{self.in_h}w{self.in_w}-to{self.out_h}x{self.out_w}"


def most_covered(places: int, windows: int) -> int:
    """Most places in any of ``windows`` adaptive windows that divide ``places`` evenly.

    Window p covers the places from ``p places // windows`` to ``((p + 1) places - 1) // windows``.

    >>> most_covered(7, windows=3), most_covered(8, windows=4), most_covered(3, windows=7)
    (3, 2, 2)
    >>> most_covered(7, windows=0)
    0
    """
    first_period = range(windows // gcd(places, windows))  # the sizes repeat after this
    sizes = (cdiv((p + 1) * places, windows) - p * places // windows for p in first_period)
    return max(sizes, default=0)
