"""What is to be computed, apart from how: a geometry, a pass, a dtype, a layout."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Literal

from tconv.geometry import ConvGeometry, Pass, PoolGeometry

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
Layout = Literal["nhwc", "nchw"]
Precision = Literal["ieee", "tf32", "tf32x3"]
PRECISIONS: tuple[Precision, ...] = ("tf32", "tf32x3", "ieee")
# What bounds a pass: its dtype, or the two ways in which the matrix unit forms float32 products.
ARITHMETICS = (*ITEMSIZE, "tf32", "tf32x3")


def dtype_name(dtype: object) -> str:
    """torch's name of a dtype, without torch: a key of ``ITEMSIZE`` where kernels know it."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Problem:
    """One pass of one convolution layer.

    ``layout`` is that of the activations as the caller holds them (``nhwc`` is torch's
    channels_last). ``precision`` says how a float32 product is formed: exactly, with operands
    rounded to tf32, or as three products of such parts (tf32x3).
    """

    geometry: ConvGeometry
    direction: Pass
    dtype: str = "float16"
    layout: Layout = "nhwc"
    precision: Precision = "ieee"

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def arithmetic(self) -> str:
        """The arithmetic whose peak rate bounds the pass: the dtype, ``tf32`` or ``tf32x3``."""
        return self.dtype if self.precision == "ieee" else self.precision

    @property
    def least_bytes(self) -> int:
        return self.geometry.least_bytes(self.itemsize)

    @property
    def results(self) -> int:
        """Elements of what the pass computes: y, dx or dw."""
        shape = self.geometry
        elements = {"fprop": shape.y_elements, "dgrad": shape.x_elements, "wgrad": shape.w_elements}
        return elements[self.direction]

    @property
    def key(self) -> str:
        """The name under which tuned choices are kept."""
        return f"{self.direction}/{self.arithmetic}/{self.layout}/{self.geometry.key}"

    @classmethod
    def of(
        cls, geometry: ConvGeometry, direction: Pass, arithmetic: str, layout: Layout = "nhwc"
    ) -> Problem:
        """The problem in one of ``ARITHMETICS``: a dtype, or tf32 or tf32x3 of float32."""
        if arithmetic in ("tf32", "tf32x3"):
            return cls(geometry, direction, "float32", layout, arithmetic)  # type: ignore[arg-type]
        return cls(geometry, direction, arithmetic, layout)

    @classmethod
    def from_key(cls, key: str) -> Problem:
        """The problem that ``key`` names.

        Raises:
            ValueError: where it names none, or a layer that cannot exist.
        """
        parts = key.split("/")
        if len(parts) != 4:
            raise ValueError(f"{reprlib.repr(key)} names no problem")
        direction, arithmetic, layout, geometry = parts
        if direction not in ("fprop", "dgrad", "wgrad") or layout not in ("nhwc", "nchw"):
            raise ValueError(f"{reprlib.repr(key)} names no problem")
        if arithmetic not in ARITHMETICS:
            raise ValueError(f"{reprlib.repr(key)} names no problem")
        shape = ConvGeometry.from_key(geometry)
        shape.validate()
        return cls.of(shape, direction, arithmetic, layout)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Epilogue:
    """What the forward pass does to its sums before it writes them, in one kernel.

        y = pool(relu(x * w + bias + residual))

    each part only where it is asked for. ``pool`` is the maximum of 2x2 windows at stride 2, and
    ``offsets`` asks for the place of each maximum in its window as well, for the gradient.

    Raises:
        ValueError: for offsets of no maximum, and for a residual that would be pooled.
    """

    bias: bool = False
    residual: bool = False
    relu: bool = False
    pool: bool = False
    offsets: bool = False

    def __post_init__(self) -> None:
        if self.offsets and not self.pool:
            raise ValueError("offsets are those of maxima: they come with a pool")
        if self.residual and self.pool:
            raise ValueError("a residual is added to what is not pooled")


PLAIN = Epilogue()
BIAS = Epilogue(bias=True)


@dataclass(frozen=True)
class PoolProblem:
    """One pass of one max-pool layer."""

    geometry: PoolGeometry
    direction: Literal["fprop", "dgrad"]
    dtype: str = "float16"
    layout: Layout = "nhwc"

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def key(self) -> str:
        return f"pool_{self.direction}/{self.dtype}/{self.layout}/{self.geometry.key}"
