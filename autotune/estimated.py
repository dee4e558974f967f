"""Executed counts of the emulated GPU beside the cost model's estimates, launch by launch.

The executed counts are the warp instructions of the PTX, prologue and stores included, and the
bytes of global memory that threads or boxes access. The estimates are the instructions of the
model's loop and of the sums across threads after it, and the bytes that a program fetches and
writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from autotune import gate
from autotune.counted import MOVED
from tconv.cost.work import work_of
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tiles
from tconv_workers import Task, Workers

SECONDS = 120.0  # for one launch, compiling included


@dataclass(frozen=True)
class Row:
    """Executed and estimated counts of one launch."""

    problem: str
    family: str
    tile: str
    instructions: int  # issued by warps
    estimated_instructions: float
    global_bytes: int  # read and written by threads and boxes
    estimated_bytes: float
    bank_conflicts: float | None  # excess wavefronts of shared memory over necessary ones

    @property
    def instruction_ratio(self) -> float:
        return self.instructions / self.estimated_instructions

    @property
    def byte_ratio(self) -> float:
        return self.global_bytes / self.estimated_bytes

    def as_json(self) -> dict[str, object]:
        ratios = {"instruction_ratio": self.instruction_ratio, "byte_ratio": self.byte_ratio}
        return asdict(self) | {name: round(ratio, 3) for name, ratio in ratios.items()}


def count_here(problem: Problem, choice: Choice, target: Target) -> Row:
    """Run ``choice`` on this process's emulated GPU; counts of its longest launch.

    Raises:
        AssertionError: if the result is wrong.
    """
    from tconv import emulator

    with emulator.launches() as launched:
        verdict = gate.check_on(problem, choice, "cpu")
    assert verdict.passed, (problem.key, choice, verdict)
    found = max(
        (each.counters.as_dict() for each in launched), key=lambda counts: counts["instructions"]
    )
    work = work_of(problem, FAMILIES[choice.family], Tiles.of([choice.tile]), target)
    per_warp = work.programs * (work.steps * work.instructions + work.end_instructions)
    moved = work.programs * (work.steps * work.fetched_bytes + work.written_bytes)
    ideal = found["shared_ideal_wavefronts"]
    return Row(
        problem.key,
        choice.family,
        str(choice.tile),
        found["instructions"],
        float((per_warp * work.warps)[0]),
        sum(found[name] for name in MOVED),
        float(moved[0]),
        found["bank_conflicts"] / ideal if ideal else None,
    )


def count(cases: Sequence[tuple[Problem, Choice]], target: Target) -> Iterator[Row]:
    """Yield a row for each case that ``target`` serves, in the order given.

    Raises:
        RuntimeError: if a launch fails.
    """
    served = [(problem, choice) for problem, choice in cases
              if FAMILIES[choice.family].unserved(problem, target) is None]  # fmt: skip
    tasks = [Task(place, count_here, (*case, target)) for place, case in enumerate(served)]
    with Workers(1, gate.environment(target)) as pool:
        for task, result, _ in pool.run(tasks, SECONDS):
            if not isinstance(result, Row):
                raise RuntimeError(f"{task.arguments[:2]}: {result}")
            yield result
