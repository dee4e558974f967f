"""Run a choice's compiled code on an emulated GPU and compare its results with the reference.

Runs in worker processes with ``gate.environment``: the emulated GPU is fixed when the library is
imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune import gate
from autotune.gate import Verdict
from tconv.cost.estimate import Resources
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tile
from tconv_workers import Failure, Task, Workers

if TYPE_CHECKING:
    from tconv.emulator import Copies

# late copies expose a missing wait, early ones a buffer reused too soon
FILLED: tuple[Copies, ...] = ("late", "early")
LEFT_OUT = ("instructions_by_opcode",)  # counters too long for a row of the store
WHOLE_FLOPS = 4e6  # problems up to this size run unscaled
SECONDS = 120.0  # for one choice, compiling included


@dataclass(frozen=True)
class Emulation:
    """A choice for a problem, the geometry it was run on, and the result.

    ``resources`` are those of its compiled matrix kernel, if requested.
    """

    problem: Problem
    choice: Choice
    geometry: str
    verdict: Verdict
    resources: Resources | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        verdict = self.verdict
        found: dict[str, Any] = {
            "problem": self.problem.key,
            "family": self.choice.family,
            "tile": str(self.choice.tile),
            "geometry": self.geometry,
            "passed": verdict.passed,
            "error": verdict.error if math.isfinite(verdict.error) else None,
            "detail": verdict.detail,
            "faults": list(map(dict, verdict.faults)),
            "counters": dict(verdict.counters or {}),
        }
        if self.resources is not None:
            found["resources"] = vars(self.resources)
        return found


def check(problem: Problem, choice: Choice) -> Verdict:
    """Return the verdict on a scaled-down geometry, which takes about a second."""
    small, tile = gate.scaled_down(problem, choice)
    return check_as_posed(small, replace(choice, tile=tile))


def check_as_posed(problem: Problem, choice: Choice) -> Verdict:
    """Return the verdict on ``problem`` unscaled, run once per copy timing in ``FILLED``.

    Raises:
        tconv.emulator.NotCovered: for an instruction that the emulator does not know.
    """
    worst: Verdict | None = None
    for filled in FILLED:
        verdict = _check(problem, choice, filled)
        if not verdict.passed:
            return verdict
        if worst is None or verdict.error > worst.error:
            worst = verdict
    assert worst is not None
    return worst


def _check(problem: Problem, choice: Choice, filled: Copies) -> Verdict:
    from tconv import emulator

    with emulator.copies_filled(filled), emulator.launches() as launched:
        try:
            verdict = gate.check_on(problem, choice, "cpu")
        except emulator.Fault as fault:
            text, faults = f"{fault} (copies fill {filled})", (fault.as_dict(),)
            return Verdict(False, math.inf, text, "emulated", faults=faults)
    total = emulator.Counters()
    for each in launched:
        total.add(each.counters)
    counted = {name: value for name, value in total.as_dict().items() if name not in LEFT_OUT}
    counters = {"results": problem.results, **counted}
    return replace(verdict, checked="emulated", counters=counters)


def emulate_here(
    problem: Problem, choice: Choice, target: Target, with_resources: bool = False
) -> Emulation:
    """Emulate ``choice`` in this process, at full size if ``problem`` is small."""
    posed, tile = problem, choice.tile
    if problem.geometry.flops > WHOLE_FLOPS:
        posed, tile = gate.scaled_down(problem, choice)
    verdict = check_as_posed(posed, replace(choice, tile=tile))
    resources = None
    if with_resources:
        from autotune.compile import compile_choice

        resources = compile_choice(problem, choice, target).resources
    return Emulation(problem, choice, posed.geometry.key, verdict, resources)


def emulate(
    chosen: Sequence[tuple[Problem, Choice]],
    target: Target,
    workers: int = 1,
    with_resources: bool = False,
) -> Iterator[Emulation]:
    """Emulate the choices in worker processes, in order of completion; errors become verdicts."""
    tasks = [
        Task(place, emulate_here, (problem, choice, target, with_resources))
        for place, (problem, choice) in enumerate(chosen)
    ]
    with Workers(workers, gate.environment(target)) as pool:
        for task, result, _ in pool.run(tasks, SECONDS):
            if isinstance(result, Emulation):
                yield result
                continue
            assert isinstance(result, Failure)
            problem, choice = task.arguments[:2]
            failed = Verdict(False, math.inf, f"{result.reason}: {result.detail}", "emulated")
            yield Emulation(problem, choice, problem.geometry.key, failed)


def read_choices(path: Path) -> list[tuple[Problem, Choice]]:
    """Read the problems and choices from a JSON file that ``emulate --json`` printed.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds anything else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["problems"]
        return [
            (Problem.from_key(each["problem"]), Choice(each["family"], Tile.parse(each["tile"])))
            for each in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not what emulate --json prints: {error!r}") from error
