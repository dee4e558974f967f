"""From a problem to the kernel and tile that serve it.

In order: the user's own table of measured winners, the table shipped for this GPU, the
user's predictions for this architecture; of each the layer's own entry, then that of its nearest
other size. At last what the cost model finds best, or a kernel in use that is nearly as good.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path

from tconv import shared_kernels
from tconv.cost.cheapest import cheapest
from tconv.cost.constants import calibrated
from tconv.cost.neighbour import neighbours_choice
from tconv.cost.space import broken_rule
from tconv.families import FAMILIES, serves
from tconv.geometry import power_of_two
from tconv.problem import AdaptiveProblem, PoolProblem, Problem
from tconv.shared_kernels import pixels_of, shared_choice, size_of
from tconv.target import TARGETS, Target
from tconv.tile import Choice, Ground, Tile
from tconv.winners import Winner, load_table, shipped_table, user_table

SIZES = re.compile(r"(?<=/)n[0-9]+|(?<=[0-9])h[0-9]+w[0-9]+")  # within a problem's key
FURTHEST_SIZE = 4.0  # ratio of output pixels, up to which a winner serves another size


@dataclass(frozen=True)
class Source:
    """A table's winners, and the machine that they were legal on when they were found."""

    ground: Ground
    path: Path
    winners: dict[str, Winner]
    target: Target

    @cached_property
    def keys_by_layer(self) -> dict[str, list[str]]:
        """Keys of the winners by their keys without batch and image size."""
        found: dict[str, list[str]] = {}
        for key in self.winners:
            found.setdefault(_sizeless(key), []).append(key)
        return found


def _sizeless(key: str) -> str:
    return SIZES.sub("", key)


@cache
def _sources(target: Target) -> tuple[Source, ...]:
    places: list[tuple[Ground, Path, Target]] = [
        ("tuned", user_table(target.name), target),
        ("shipped", shipped_table(target.name), target),
    ]
    if target.name != target.arch:
        # Splits and shares of programs follow the processors of the product predicted for.
        known = TARGETS.get(target.arch, target)
        predicted_for = replace(target, processors=known.processors)
        places.append(("predicted", user_table(target.arch), predicted_for))
    return tuple(
        Source(ground, path, load_table(path), legal_on) for ground, path, legal_on in places
    )


def _tuned(problem: Problem, source: Source) -> Choice | None:
    """What a table holds for ``problem``, where it can run; an entry that cannot is named.

    A table is a file that anyone may have written: a tile that no GPU can take must not bring a
    layer down.
    """
    # Every kernel serves both layouts of a geometry: what won for one is a good guess.
    for key in dict.fromkeys((problem.key, replace(problem, layout="nhwc").key)):
        winner = source.winners.get(key)
        if winner is None or not serves(winner.family, problem, source.target):
            continue
        ground: Ground = "predicted" if winner.kind == "predicted" else source.ground
        choice = Choice(winner.family, winner.tile, ground)
        if (rule := broken_rule(choice, problem, source.target)) is None:
            return choice
        if key == problem.key:
            warnings.warn(
                f"{source.path}: the winner of {key}, {choice.family} {choice.tile}, breaks the "
                f"rule {rule!r} and is passed over; tuning it again puts it right",
                stacklevel=2,
            )
    return None


def _tuned_nearby(problem: Problem, source: Source) -> Choice | None:
    """The winner of the layer's nearest other size, where it can run for this one."""
    pixels, found = max(1, pixels_of(problem)), []
    for key in source.keys_by_layer.get(_sizeless(problem.key), ()):
        try:
            other = Problem.from_key(key)
        except ValueError:  # of another version's making
            continue
        apart = abs(math.log(max(1, pixels_of(other)) / pixels))
        if other != problem and apart <= math.log(FURTHEST_SIZE):
            found.append((apart, key, size_of(other)))
    for _, key, size in sorted(found):
        winner = source.winners[key]
        ground: Ground = "predicted" if winner.kind == "predicted" else source.ground
        choice = Choice(winner.family, winner.tile, ground, at=size)
        if broken_rule(choice, problem, source.target) is None:
            return choice
    return None


@lru_cache(maxsize=4096)
def choose(problem: Problem | PoolProblem | AdaptiveProblem, target: Target) -> Choice:
    """The kernel and tile for ``problem`` on ``target``."""
    if not isinstance(problem, Problem):
        return Choice("max_pool", _pool_tile(problem, target))
    if problem.geometry.is_empty:
        return _of_nothing(problem, target)
    if target.backend != "interpreter":
        for source in _sources(target):
            if (found := _tuned(problem, source)) is not None:
                return found
        for tune in _tuners:
            if (found := tune(problem, target)) is not None:
                return found
        for source in _sources(target):
            if (found := _tuned_nearby(problem, source)) is not None:
                return found
        if calibrated(target).untuned == "model":
            return shared_choice(problem, target, cheapest)
    return heuristic(problem, target)


def heuristic(problem: Problem, target: Target) -> Choice:
    """The kernel and tile of a problem that was never tuned: what the cost model finds best.

    Where the GPU's calibration found tuned neighbours a better guide, the nearest one's winner.
    In the interpreter no model holds: large blocks of addresses cost least there.
    """
    if target.backend == "interpreter":
        return Choice("implicit_gemm", FAMILIES["implicit_gemm"].heuristic(problem, target))
    if calibrated(target).untuned == "neighbour":
        tables = (source.winners for source in reversed(_sources(target)))
        winners = {key: winner for table in tables for key, winner in table.items()}
        if (found := neighbours_choice(problem, winners, target)) is not None:
            return found
    return cheapest(problem, target)


def _of_nothing(problem: Problem, target: Target) -> Choice:
    """The choice for an empty problem, of which no model holds and no table tells.

    The result is empty or zero. The general family writes zeros, through pointers: tensor memory
    access has no boxes of an empty tensor.
    """
    shape = problem.geometry
    names = ("batch", "in_channels", "out_channels")
    # Of groups without channels, each gets one.
    least = {"batch": 1, "in_channels": shape.groups, "out_channels": shape.groups}
    full = replace(shape, **{name: getattr(shape, name) or least[name] for name in names})
    tile = FAMILIES["implicit_gemm"].heuristic(replace(problem, geometry=full), target)
    return Choice("implicit_gemm", replace(tile, splits=1))


def forget() -> None:
    """Read the tables anew at the next choice."""
    choose.cache_clear()
    calibrated.cache_clear()
    _sources.cache_clear()
    shared_kernels.forget()
    forget_plans()


def choose_again() -> None:
    """Make choices and plans anew, from the same tables and the kernels that are in use now."""
    choose.cache_clear()
    forget_plans()


def forget_plans() -> None:
    """Make plans anew from the same choices."""
    for clear in _when_forgotten:
        clear()


Tuner = Callable[[Problem, Target], "Choice | None"]
_tuners: list[Tuner] = []


def when_untuned(tune: Tuner) -> Callable[[], None]:
    """Ask ``tune`` for the choice of a problem that no table holds; None leaves it to the model.

    Returns a function that takes this back. What was chosen before is chosen anew.
    """

    def undo() -> None:
        _tuners[:] = [other for other in _tuners if other is not tune]
        forget()

    _tuners.insert(0, tune)
    forget()
    return undo


_when_forgotten: list[Callable[[], None]] = []


def when_forgotten(clear: Callable[[], None]) -> None:
    """Have ``clear`` called by ``forget``: it empties a cache of what choices led to."""
    _when_forgotten.append(clear)


def _pool_tile(problem: PoolProblem | AdaptiveProblem, target: Target) -> Tile:
    """Outputs x channels; neighbouring threads take what lies side by side in memory."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "dgrad":
        pixels = shape.batch * shape.in_h * shape.in_w
    if target.backend == "interpreter":
        block_n = power_of_two(shape.channels, 1, 128)
        return Tile(power_of_two(pixels, 16, (1 << 19) // block_n), block_n, 1, stages=1, warps=4)
    block_n = power_of_two(shape.channels, 1, 64) if problem.layout == "nhwc" else 1
    return Tile(power_of_two(pixels, 16, 1024 // block_n), block_n, 1, stages=1, warps=4)
