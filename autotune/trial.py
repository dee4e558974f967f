"""A trial: one candidate for one problem, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tconv.cost.estimate import Resources
from tconv.problem import Problem
from tconv.tile import Choice, Tile
from tconv.winners import Kind

Check = Literal["", "interpreted", "emulated", "gpu"]
"""How a result was checked: source interpreted, or code emulated or on a GPU; "" if it was not."""


@dataclass(frozen=True)
class Trial:
    """One candidate for one problem on one target.

    ``milliseconds`` is a median if ``kind`` is measured. If it is predicted, it is the model's
    figure, based on the compiled code's resources. It is None if the candidate failed.
    """

    target: str
    problem: Problem
    family: str
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
    counters: Mapping[str, Any] | None = field(default=None, hash=False)  # of an emulated GPU
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
