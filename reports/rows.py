"""Typed rows of a report's tables.

A row's class declares its columns. ``attrs`` converts and validates each value, computed or read,
when a row is made: by the column's own converter and validator, else by those of its type.

``layers.csv`` has one row per layer and pass, ``trials.csv`` one per tried candidate in the order
of the tuner's ranking, ``space.csv`` the number of tiles left by each rule, ``map.csv`` the model's
figure for each block shape, ``networks.csv`` whole networks, ``operators.csv`` their time by
operator, ``memory.csv`` each layer's memory. Writing and reading a row changes nothing, because
collectors first round figures with ``rounded``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args, overload

from autotune.columns import by_type
from autotune.trial import Check
from tconv.extras import extra
from tconv.geometry import PASSES, ConvGeometry, Pass, PoolGeometry
from tconv.problem import ARITHMETICS, ITEMSIZE, Problem
from tconv.tile import Tile
from tconv.winners import Kind

with extra("reports"):
    import attrs
    from attrs import field
    from attrs.validators import and_, ge, in_, instance_of, lt, matches_re, min_len, optional

DIGITS = 4  # significant digits of every figure in a table
MODES = ("inference", "training")


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: None) -> None: ...
def rounded(value: float | None) -> float | None:
    """Round ``value`` to the digits that a table shows.

    >>> rounded(0.123456), rounded(98765.4)
    (0.1235, 98770.0)
    """
    return None if value is None else float(f"{value:.{DIGITS}g}")


def number_text(value: float) -> str:
    """Format a figure as in tables, CSV files and pages.

    >>> [number_text(value) for value in (0.1235, 98770.0, 0.00000123, 12.0)]
    ['0.1235', '98770', '1.23e-06', '12']
    """
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{DIGITS}g}"
    return f"{value:.8f}".rstrip("0").rstrip(".") if value != int(value) else str(int(value))


def pair_text(down: int, across: int) -> str:
    """Format a hyperparameter of both axes: ``1`` if they agree, else ``1x2``."""
    return str(down) if down == across else f"{down}x{across}"


def pair_of(text: str) -> tuple[int, int]:
    """Parse the output of ``pair_text``."""
    down, _, across = text.partition("x")
    return int(down), int(across or down)


def problem_key(cell: str) -> str:
    """Return ``cell`` as ``Problem.key`` writes it."""
    return Problem.from_key(cell).key


def tile_text(cell: str) -> str:
    """Return ``cell`` as a tile is written."""
    return str(Tile.parse(cell))


def none_if_empty(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a converter that gives None for an empty cell or None, else applies ``convert``."""
    return lambda cell: None if cell is None or cell == "" else convert(cell)


COUNT: Any = and_(ge(0), lt(10**15))
FIGURE: Any = and_(ge(0), lt(math.inf))  # rejects NaN, too
EXTENT = matches_re(r"\d{1,9}(x\d{1,9})?")
MAY_BE_EMPTY = instance_of(str)
RULES: dict[Any, dict[str, Any]] = {
    str: {"validator": min_len(1)},
    int: {"converter": int, "validator": COUNT},
    int | None: {"converter": none_if_empty(int), "validator": optional(COUNT)},
    float: {"converter": float, "validator": FIGURE},
    float | None: {"converter": none_if_empty(float), "validator": optional(FIGURE)},
    Pass: {"validator": in_(PASSES)},
    Kind: {"validator": in_(get_args(Kind))},
    Check: {"validator": in_(get_args(Check))},
}
BY_TYPE = by_type(RULES)


@attrs.frozen(field_transformer=BY_TYPE)
class LayerRow:
    """One pass of one layer with the best choice found for it; None means unknown.

    ``dtype`` is the arithmetic (``tf32`` if operands are rounded to it). ``kind`` says whether
    ``tconv_ms`` was measured, or predicted by the model from compiled code.
    """

    suite: str
    layer: str
    direction: Pass  # column "pass"
    dtype: str = field(validator=in_(ARITHMETICS))
    batch: int
    in_channels: int
    in_h: int
    in_w: int
    filters: int | None
    filter_h: int
    filter_w: int
    stride: str = field(validator=EXTENT)
    padding: str = field(validator=EXTENT)
    dilation: str = field(validator=EXTENT)
    groups: int
    family: str
    tile: str = field(converter=tile_text)
    kind: Kind
    tconv_ms: float | None = None
    tconv_ms_p20: float | None = None
    tconv_ms_p80: float | None = None
    cudnn_nhwc_ms: float | None = None
    cudnn_nchw_ms: float | None = None
    tflops: float | None = None
    gbps: float | None = None
    roofline_share: float | None = None
    error_fp64: float | None = None
    cudnn_error_fp64: float | None = None

    @property
    def geometry(self) -> ConvGeometry:
        """The convolution's geometry, for a row with filters."""
        assert self.filters is not None, self
        window = (*pair_of(self.stride), *pair_of(self.padding), *pair_of(self.dilation))
        volume = (self.batch, self.in_channels, self.in_h, self.in_w)
        return ConvGeometry(
            *volume, self.filters, self.filter_h, self.filter_w, *window, self.groups
        )

    @property
    def pool(self) -> PoolGeometry:
        """The pool's geometry, for a row without filters."""
        assert self.filters is None, self
        volume = (self.batch, self.in_channels, self.in_h, self.in_w)
        window = (*pair_of(self.stride), *pair_of(self.padding), *pair_of(self.dilation))
        return PoolGeometry(*volume, self.filter_h, self.filter_w, *window)

    @property
    def output_volume(self) -> str:
        """The output volume as CxHxW."""
        if self.filters is not None:
            return self.geometry.output_volume
        return f"{self.in_channels}x{self.pool.out_h}x{self.pool.out_w}"

    @property
    def times_nhwc(self) -> float | None:
        """Speed-up over torch's operator on channels_last tensors."""
        return _ratio(self.cudnn_nhwc_ms, self.tconv_ms)

    @property
    def times_nchw(self) -> float | None:
        """Speed-up over torch's operator on contiguous tensors."""
        return _ratio(self.cudnn_nchw_ms, self.tconv_ms)

    @property
    def epilogue(self) -> str:
        """The kernel's epilogue, in the form of its suite's suffix: ``relu+pool``."""
        return self.suite.partition("+")[2]

    @property
    def least_bytes(self) -> int:
        """Fewest bytes that the pass can move; of a fused pool's y, only the pooled part."""
        if self.filters is None:
            return self.pool.least_bytes(ITEMSIZE[self.dtype])
        shape, problem = self.geometry, self.problem
        if "pool" not in self.epilogue:
            return problem.least_bytes
        pooled = shape.batch * shape.out_channels * (shape.out_h // 2) * (shape.out_w // 2)
        return problem.least_bytes - problem.itemsize * (shape.y_elements - pooled)

    @property
    def problem(self) -> Problem:
        return Problem.of(self.geometry, self.direction, self.dtype)


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs and ours else None


@attrs.frozen(field_transformer=BY_TYPE)
class TrialRow:
    """One candidate for one problem.

    ``kind`` says whether ``ms`` was measured or predicted. ``ranked_ms`` is the model's figure
    before compilation. ``status`` is ``ok`` or the reason for failure. A row without ``error_fp64``
    was never checked and cannot win; ``checked`` says how the error was found. ``bound`` is the
    resource that limits the tile according to the model, and ``waves`` how often its programs fill
    the GPU. The emulated columns were counted on a GPU emulator that ran the compiled code for a
    scaled-down copy of the problem.
    """

    problem: str = field(converter=problem_key)
    family: str
    tile: str = field(converter=tile_text)
    kind: Kind
    status: str
    ranked_ms: float | None = None
    ms: float | None = None
    error_fp64: float | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    occupancy: float | None = None
    instructions: int | None = None
    programs: int | None = None
    waves: float | None = None
    bound: str = field(default="", validator=MAY_BE_EMPTY)
    checked: Check = ""
    emulated_instructions: float | None = None  # per result
    emulated_kinds: str = field(default="", validator=MAY_BE_EMPTY)  # most frequent, per result
    emulated_global_bytes: float | None = None  # per result
    emulated_sectors: float | None = None  # per request
    emulated_bank_conflicts: float | None = None  # over the necessary passes
    emulated_tma_bytes: float | None = None  # per result
    emulated_barriers: float | None = None  # per program


@attrs.frozen(field_transformer=BY_TYPE)
class SpaceRow:
    """Number of a problem's tiles left by ``rule``; rules apply in the order of the rows."""

    problem: str = field(converter=problem_key)
    rule: str
    remaining: int


@attrs.frozen(field_transformer=BY_TYPE)
class MapRow:
    """The model's best figure before compilation over all tiles of one block shape."""

    problem: str = field(converter=problem_key)
    block_m: int
    block_n: int
    tile: str = field(converter=tile_text)
    ranked_ms: float


@attrs.frozen(field_transformer=BY_TYPE)
class NetworkRow:
    """A whole network: ``ms`` is the median of a batch's inference or of a training step.

    ``peak_mib`` is the peak memory, weights included. ``backend`` names the kernels and how they
    were launched.
    """

    model: str
    mode: str = field(validator=in_(MODES))
    batch: int
    dtype: str = field(validator=in_(ARITHMETICS))
    backend: str
    ms: float
    images_per_s: float
    peak_mib: float | None = None


@attrs.frozen(field_transformer=BY_TYPE)
class OperatorRow:
    """Device time that a network's step spends in one kind of operator."""

    model: str
    mode: str = field(validator=in_(MODES))
    batch: int
    dtype: str = field(validator=in_(ARITHMETICS))
    backend: str
    operator: str
    ms: float


@attrs.frozen(field_transformer=BY_TYPE)
class MemoryRow:
    """Peak memory of one layer's forward and backward pass, its tensors included."""

    suite: str
    layer: str
    operator: str  # convolution or max-pool
    dtype: str = field(validator=in_(ARITHMETICS))
    batch: int
    tconv_peak_mib: float
    torch_peak_mib: float


@attrs.frozen(field_transformer=BY_TYPE)
class CauseRow:
    """Known cause of a layer pass's speed, written by hand."""

    suite: str
    layer: str
    direction: Pass  # column "pass"
    dtype: str = field(validator=in_(ARITHMETICS))
    cause: str


@attrs.frozen(field_transformer=BY_TYPE)
class CompilerRow:
    """One Triton version's code for a winner, and whether its result is correct.

    Resources are those of the code compiled for the problem itself; the emulated figures were
    counted for a scaled-down copy.
    """

    problem: str = field(converter=problem_key)
    family: str
    tile: str = field(converter=tile_text)
    triton: str
    result: str = field(validator=in_(("passed", "failed")))
    error_fp64: float | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    instructions: int | None = None
    emulated_instructions: float | None = None  # per result
    emulated_global_bytes: float | None = None  # per result
    emulated_sectors: float | None = None  # per request
    emulated_bank_conflicts: float | None = None  # over the necessary passes
    emulated_barriers: float | None = None  # per program
    detail: str = field(default="", validator=MAY_BE_EMPTY)
