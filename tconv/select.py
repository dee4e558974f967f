"""Choice of the kernel family and tile for a problem.

Three tables are consulted in order: the user's winners for this GPU, the table shipped for it, and
the user's predictions for its architecture. The layer's own entry in any of them comes first, then
a tuner if one is registered, then the entry of the layer's nearest other size. Otherwise the cost
model chooses, and prefers a kernel in use that is nearly as fast.
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
from tconv.plan_caches import forget_plans
from tconv.problem import AdaptiveProblem, PoolProblem, Problem
from tconv.shared_kernels import pixels_of, shared_choice, size_of
from tconv.target import TARGETS, Target
from tconv.tile import Choice, Ground, Tile
from tconv.winners import Winner, load_table, shipped_table, user_table

SIZES = re.compile(r"(?<=/)n[0-9]+|(?<=[0-9])h[0-9]+w[0-9]+")  # sizes in a problem's key
FURTHEST_SIZE = 4.0  # largest ratio of output pixels at which a winner serves another size


@dataclass(frozen=True)
class Source:
    """A table's winners, and the target for which they were found."""

    ground: Ground
    path: Path
    winners: dict[str, Winner]
    target: Target

    @cached_property
    def keys_by_layer(self) -> dict[str, list[str]]:
        """Keys of the winners, grouped by the key without batch and image size."""
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
        # Splits and programs' shares depend on the number of processors predicted for.
        known = TARGETS.get(target.arch, target)
        predicted_for = replace(target, processors=known.processors)
        places.append(("predicted", user_table(target.arch), predicted_for))
    return tuple(
        Source(ground, path, load_table(path), legal_on) for ground, path, legal_on in places
    )


def _tuned(problem: Problem, source: Source) -> Choice | None:
    """Return the table's choice for ``problem``, or None; warn about an entry that cannot run.

    Anyone may have written the table, so an illegal tile must not stop the layer.
    """
    if not source.winners:
        return None
    # Every kernel serves both layouts of a geometry, so one's winner is a good guess for the other.
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
                f"rule {rule!r} and is ignored; tuning the layer again replaces it",
                stacklevel=2,
            )
    return None


def _tuned_nearby(problem: Problem, source: Source) -> Choice | None:
    """Return the legal winner of the layer at the nearest other size, or None."""
    if not source.winners:
        return None
    pixels, found = max(1, pixels_of(problem)), []
    for key in source.keys_by_layer.get(_sizeless(problem.key), ()):
        try:
            other = Problem.from_key(key)
        except ValueError:  # written by another version
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
    """Return the kernel family and tile for ``problem`` on ``target``."""
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
            return shared_choice(problem, target)
    return heuristic(problem, target)


def heuristic(problem: Problem, target: Target) -> Choice:
    """Return the choice for an untuned problem: the cost model's best, or a neighbour's winner.

    The neighbour is used where the GPU's calibration found it the better guide. No model applies
    to the interpreter, where the largest blocks are cheapest.
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
    """Return the choice for an empty problem, to which neither model nor tables apply.

    The result is empty or zero. ``implicit_gemm`` writes the zeros through pointers; TMA cannot
    describe an empty tensor.
    """
    shape = problem.geometry
    names = ("batch", "in_channels", "out_channels")
    # Count one channel per group where the groups have none.
    least = {"batch": 1, "in_channels": shape.groups, "out_channels": shape.groups}
    full = replace(shape, **{name: getattr(shape, name) or least[name] for name in names})
    tile = FAMILIES["implicit_gemm"].heuristic(replace(problem, geometry=full), target)
    return Choice("implicit_gemm", replace(tile, splits=1))


def forget() -> None:
    """Clear all caches, so that the next choice reads the tables again."""
    choose.cache_clear()
    calibrated.cache_clear()
    _sources.cache_clear()
    shared_kernels.forget()
    forget_plans()


def choose_again() -> None:
    """Make choices and plans anew, from the same tables and the kernels that are in use now."""
    choose.cache_clear()
    forget_plans()


Tuner = Callable[[Problem, Target], "Choice | None"]
_tuners: list[Tuner] = []


def when_untuned(tune: Tuner) -> Callable[[], None]:
    """Register ``tune`` to choose for problems that no table holds; it may return None.

    Returns a function that unregisters it. Both clear the choices made before.
    """

    def undo() -> None:
        _tuners[:] = [other for other in _tuners if other is not tune]
        forget()

    _tuners.insert(0, tune)
    forget()
    return undo


def _pool_tile(problem: PoolProblem | AdaptiveProblem, target: Target) -> Tile:
    """Return a pool's tile, outputs x channels; neighbouring threads read neighbouring memory."""
    shape = problem.geometry
    pixels = shape.batch * shape.out_h * shape.out_w
    if problem.direction == "dgrad":
        pixels = shape.batch * shape.in_h * shape.in_w
    if target.backend == "interpreter":
        block_n = power_of_two(shape.channels, 1, 128)
        return Tile(power_of_two(pixels, 16, (1 << 19) // block_n), block_n, 1, stages=1, warps=4)
    block_n = power_of_two(shape.channels, 1, 64) if problem.layout == "nhwc" else 1
    return Tile(power_of_two(pixels, 16, 1024 // block_n), block_n, 1, stages=1, warps=4)
