"""What is to be computed, apart from how: a geometry, a pass, a dtype, a layout."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Literal

from tconv.geometry import AdaptiveGeometry, ConvGeometry, Pass, PoolGeometry

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


# What a kernel may apply to its results; "gelu" is the exact form, "gelu_tanh" the approximate.
ACTIVATIONS = (
    "relu",
    "relu6",
    "leaky_relu",
    "silu",
    "hardswish",
    "hardsigmoid",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
)
# Their derivative is a function of the result; of the others it takes the argument.
FROM_RESULT = frozenset({"relu", "relu6", "leaky_relu", "sigmoid", "tanh"})


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalization with given statistics, as a kernel applies it to each channel.

        (value - mean) weight / sqrt(variance + eps) + bias

    ``weight`` and ``bias`` say which of the two tensors are there; ``dtype`` is that of all.
    """

    dtype: str
    eps: float
    weight: bool = True
    bias: bool = True


@dataclass(frozen=True)
class Epilogue:
    """What the forward pass does to its sums before it writes them, in one kernel.

        y = pool(activation(norm(x * w + bias) + residual))

    each part only where it is asked for; with ``residual_after`` the residual is added to the
    activation's result. ``pool`` is the maximum of 2x2 windows at stride 2. For the gradient,
    ``kept`` asks for the activation's argument at each element of y as well, and ``offsets`` for
    the place of each maximum in its window.

    Raises:
        ValueError: for an activation that does not exist, for offsets without a pool, and for an
            argument to be kept without an activation.
    """

    bias: bool = False
    norm: BatchNorm | None = None
    residual: bool = False
    activation: str | None = None
    slope: float = 0.0  # of leaky_relu, for negative arguments
    residual_after: bool = False
    pool: bool = False
    offsets: bool = False
    kept: bool = False

    def __post_init__(self) -> None:
        if self.activation not in (None, *ACTIVATIONS):
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation is {self.activation!r}; it is one of {known}, or None")
        if self.offsets and not self.pool:
            raise ValueError("offsets belong to a pool, and there is none")
        if self.kept and self.activation is None:
            raise ValueError("there is no activation whose argument could be kept")

    @property
    def from_result(self) -> bool:
        """Whether the activation's derivative is known from y, so that nothing need be kept."""
        if self.residual and self.residual_after:
            return False
        return self.activation in FROM_RESULT and self.slope >= 0


PLAIN = Epilogue()
BIAS = Epilogue(bias=True)


@dataclass(frozen=True)
class PoolProblem:
    """One pass of one pooling layer."""

    geometry: PoolGeometry | AdaptiveGeometry
    direction: Literal["fprop", "dgrad"]
    dtype: str = "float16"
    layout: Layout = "nhwc"

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def key(self) -> str:
        return f"pool_{self.direction}/{self.dtype}/{self.layout}/{self.geometry.key}"
