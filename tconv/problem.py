"""A problem: what to compute, as a geometry, a pass, a dtype and a layout."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from tconv.geometry import AdaptiveGeometry, ConvGeometry, Pass, PoolGeometry

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
Layout = Literal["nhwc", "nchw"]
Precision = Literal["ieee", "tf32", "tf32x3"]
PRECISIONS: tuple[Precision, ...] = ("tf32", "tf32x3", "ieee")
# The arithmetics that can bound a pass: a dtype, or one of two forms of float32 products.
ARITHMETICS = (*ITEMSIZE, "tf32", "tf32x3")


def dtype_name(dtype: object) -> str:
    """Return torch's name of a dtype, without importing torch; one in ``ITEMSIZE`` if supported."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Problem:
    """One pass of one convolution layer.

    ``layout`` is the memory layout of the caller's activations (``nhwc`` is torch's channels_last).
    ``precision`` is how float32 products are formed: exactly, with operands rounded to tf32, or as
    three products of tf32 parts (tf32x3).
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
        """Fewest bytes that the pass can move; dgrad also writes 0 where no window reads x."""
        shape, found = self.geometry, self.geometry.least_bytes(self.itemsize)
        unread = shape.x_elements - shape.x_read if self.direction == "dgrad" else 0
        return found + self.itemsize * unread

    @property
    def results(self) -> int:
        """Number of elements in the pass's result: y, dx or dw."""
        shape = self.geometry
        elements = {"fprop": shape.y_elements, "dgrad": shape.x_elements, "wgrad": shape.w_elements}
        return elements[self.direction]

    @property
    def key(self) -> str:
        """The name under which tuned choices are stored."""
        return f"{self.direction}/{self.arithmetic}/{self.layout}/{self.geometry.key}"

    @classmethod
    def of(
        cls, geometry: ConvGeometry, direction: Pass, arithmetic: str, layout: Layout = "nhwc"
    ) -> Problem:
        """Return the problem in one of ``ARITHMETICS``: a dtype, or tf32 or tf32x3 of float32."""
        if arithmetic in ("tf32", "tf32x3"):
            return cls(geometry, direction, "float32", layout, arithmetic)  # type: ignore[arg-type]
        return cls(geometry, direction, arithmetic, layout)

    @classmethod
    def from_key(cls, key: str) -> Problem:
        """Return the problem that ``key`` names.

        Raises:
            ValueError: if it names none, or a layer that cannot exist.
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


# Activations that a kernel can apply; "gelu" is the exact form, "gelu_tanh" the approximation.
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
# Activations whose derivative is a function of their result; the others need the argument.
FROM_RESULT = frozenset({"relu", "relu6", "leaky_relu", "sigmoid", "tanh"})


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalization with given statistics, as a kernel applies it to each channel.

        (value - mean) weight / sqrt(variance + eps) + bias

    ``weight`` and ``bias`` say which of the two tensors exist; ``dtype`` is that of all tensors.
    """

    dtype: str
    eps: float
    weight: bool = True
    bias: bool = True


@dataclass(frozen=True)
class Epilogue:
    """The operations that the forward kernel applies to its sums before storing them.

        y = pool(activation(norm(x * w + bias) + residual))

    Every part is optional; with ``residual_after`` the residual is added to the activation's
    result. ``pool`` is the maximum of 2x2 windows at stride 2. For the gradient, ``kept`` also
    stores the activation's argument at each element of y, and ``offsets`` the place of each maximum
    in its window.

    Raises:
        ValueError: if the activation does not exist, if ``offsets`` is set without a pool, or
            ``kept`` without an activation.
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
            raise ValueError("offsets require a pool")
        if self.kept and self.activation is None:
            raise ValueError("kept requires an activation")

    @property
    def from_result(self) -> bool:
        """True if y determines the activation's derivative, so that nothing else must be stored."""
        if self.residual and self.residual_after:
            return False
        return self.activation in FROM_RESULT and self.slope >= 0


PLAIN = Epilogue()
BIAS = Epilogue(bias=True)


Planes = TypeVar("Planes", PoolGeometry, AdaptiveGeometry)


@dataclass(frozen=True)
class _PoolPass(Generic[Planes]):
    """One pass of a pool with a geometry of either kind."""

    geometry: Planes
    direction: Literal["fprop", "dgrad"]
    dtype: str = "float16"
    layout: Layout = "nhwc"


@dataclass(frozen=True)
class PoolProblem(_PoolPass[PoolGeometry]):
    """One pass of one pooling layer."""

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def key(self) -> str:
        return f"pool_{self.direction}/{self.dtype}/{self.layout}/{self.geometry.key}"


@dataclass(frozen=True)
class AdaptiveProblem(_PoolPass[AdaptiveGeometry]):
    """One pass of one adaptive pool, or a gather by index between planes of two sizes."""
