"""A trial: one candidate for one problem, and its outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from autotune.columns import by_type
from tconv.cost.estimate import Resources
from tconv.extras import extra
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.tile import Choice, Tile
from tconv.winners import Kind

with extra("tune"):
    from attrs import field, frozen
    from attrs.validators import and_, gt, in_, instance_of, lt, optional

Check = Literal["", "interpreted", "emulated", "gpu"]
"""How a result was checked: source interpreted, or code emulated or on a GPU; "" if it was not."""

FINITE: Any = and_(instance_of((int, float)), gt(-math.inf), lt(math.inf))
RULES: dict[Any, dict[str, Any]] = {
    str: {"validator": instance_of(str)},
    int | None: {"validator": optional(instance_of(int))},
    float: {"validator": FINITE},
    float | None: {"validator": optional(FINITE)},
    Kind: {"validator": in_(get_args(Kind))},
    Check: {"validator": in_(get_args(Check))},
}


@frozen(field_transformer=by_type(RULES))
class Trial:
    """One candidate for one problem on one target.

    ``milliseconds`` is a median if ``kind`` is measured. If it is predicted, it is the model's
    figure, based on the compiled code's resources. It is None if the candidate failed.

    Raises:
        ValueError: for an invalid value.
        TypeError: for a value of another type.
    """

    target: str
    problem: Problem
    family: str = field(validator=in_(FAMILIES))
    tile: Tile
    kind: Kind
    status: str  # "ok", or why it failed: "spills", "shared memory", "wrong result", ...
    milliseconds: float | None = None
    p20: float | None = None
    p80: float | None = None
    first_milliseconds: float | None = None  # time before the finalists' contest, if there was one
    turn: int | None = None  # its place in the search, from 0
    ranked_milliseconds: float | None = None  # the model's figure before compilation
    resources: Resources | None = None
    occupancy: float | None = None  # resident warps, as a share of a multiprocessor's capacity
    error_fp64: float | None = None  # largest error against fp64, over the largest value
    checked: Check = ""  # how error_fp64 was found
    counters: Mapping[str, Any] | None = field(  # of an emulated GPU
        default=None, hash=False, validator=optional(instance_of(dict))
    )
    detail: str = ""  # the compiler's or the gate's message, shortened
    versions: str = ""  # torch, triton, driver
    source: str = ""  # hash of the kernels' source
    seconds: float = 0.0  # time the trial took

    @property
    def searched(self) -> float | None:
        """The milliseconds that the search used, which a continued run uses again."""
        return self.milliseconds if self.first_milliseconds is None else self.first_milliseconds

    @property
    def choice(self) -> Choice:
        return Choice(self.family, self.tile)
