"""One row of what the tuner found out: a problem, a tile, and how it fared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tconv.cost.estimate import Resources
from tconv.problem import Problem
from tconv.tile import Choice, Tile
from tconv.winners import Kind

Check = Literal["", "interpreted", "emulated", "gpu"]
"""How a result was checked: its kernel's source in Triton's interpreter, its compiled code on an
emulated GPU or on the GPU; not at all."""


@dataclass(frozen=True)
class Trial:
    """One candidate for one problem on one target.

    ``milliseconds`` is a median where ``kind`` is measured and the model's figure, from the
    compiled code's resources, where it is predicted; None when the candidate failed.
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
    first_milliseconds: float | None = None  # before the finalists' contest, where there was one
    turn: int | None = None  # its place in the search, from 0
    ranked_milliseconds: float | None = None  # the model's figure before compilation
    resources: Resources | None = None
    occupancy: float | None = None  # warps resident, as a share of what a processor holds
    error_fp64: float | None = None  # largest error against fp64, over the largest value
    checked: Check = ""  # how error_fp64 was found
    counters: Mapping[str, Any] | None = field(default=None, hash=False)  # of an emulated GPU
    detail: str = ""  # the compiler's or the gate's own words, shortened
    versions: str = ""  # torch, triton, driver
    source: str = ""  # hash of the kernels' source
    seconds: float = 0.0  # what the trial cost

    @property
    def searched(self) -> float | None:
        """The milliseconds that the search was told, so that a run that goes on takes its path."""
        return self.milliseconds if self.first_milliseconds is None else self.first_milliseconds

    @property
    def choice(self) -> Choice:
        return Choice(self.family, self.tile)
