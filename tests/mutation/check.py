"""The mutation check: runs each kernel's tests on its mutants and reports the outcomes."""

from __future__ import annotations

import functools
import gc
from collections import ChainMap, Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import pytest
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from tests.mutation.mutants import Mutant
from tests.mutation.run import Forks, Outcome, limits, run_tests


@dataclass
class Kernel:
    """One kernel with its tests, its mutants and their outcomes."""

    name: str
    tests: tuple[str, ...]  # prefixes of its tests' ids
    mutants: Sequence[Mutant]
    same: Sequence[str] = ()  # reasons of the mutants left out as equivalent
    items: list[pytest.Item] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of each test on the unchanged kernel
    caught: dict[Mutant, Outcome] = field(default_factory=dict)
    survived: list[Mutant] = field(default_factory=list)

    def choose(self, items: Sequence[pytest.Item], usual: Outcome) -> None:
        """Select its tests among the collected; each prefix must match one that launches it."""
        for test in self.tests:
            found = [item for item in items if item.nodeid.startswith(test)]
            found = [item for item in found if self.name in usual.launched[item.nodeid]]
            if not found:
                raise pytest.UsageError(f"no test that begins with {test} launches {self.name}")
            self.items += [item for item in found if item not in self.items]
        self.seconds = {item.nodeid: usual.seconds[item.nodeid] for item in self.items}

    def ordered(self) -> list[pytest.Item]:
        """Return the tests, ordered by mutants caught per second, most first."""
        catches = Counter(outcome.failed for outcome in self.caught.values())
        return sorted(self.items, key=lambda i: self.seconds[i.nodeid] / (1 + catches[i.nodeid]))


class Check:
    """Pytest plugin that runs each kernel's tests on its mutants instead of the test session."""

    def __init__(self, kernels: Sequence[Kernel], workers: int, console: Console) -> None:
        self.kernels, self.workers, self.console = kernels, workers, console
        self.forks = Forks()
        self.broken = ""  # the test that fails on unchanged kernels

    @property
    def sound(self) -> bool:
        """True if the tests pass on unchanged kernels and every mutant was caught."""
        ran = all(len(k.caught) == len(k.mutants) for k in self.kernels)
        return ran and not self.broken

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config._tmp_path_factory.getbasetemp()  # one folder for all forks
        if usual := self._usual(session.items):
            for kernel in self.kernels:
                kernel.choose(session.items, usual)
            self._warm()
            self._run()
        return True

    def _usual(self, items: Sequence[pytest.Item]) -> Outcome | None:
        """Return the outcome on unchanged kernels; if a test fails, print it and return None."""
        wanted = tuple(chain.from_iterable(kernel.tests for kernel in self.kernels))
        named = [item for item in items if item.nodeid.startswith(wanted)]
        shares = [named[i :: self.workers] for i in range(self.workers)]
        for share in filter(None, shares):
            self.forks.start(None, functools.partial(run_tests, share, None, {}))
        outcomes = [self.forks.next()[1] for _ in list(self.forks.running)]
        for outcome in outcomes:
            if outcome.failed:
                self.broken = f"{outcome.failed} fails as it is: {outcome.why}"
                return None
        return Outcome(
            seconds=dict(ChainMap(*(outcome.seconds for outcome in outcomes))),
            launched=dict(ChainMap(*(outcome.launched for outcome in outcomes))),
        )

    def _warm(self) -> None:
        """Run one test, so that one-time work is done before forking."""
        for kernel in self.kernels:
            run_tests(kernel.ordered()[:1], None, {})
        gc.collect()
        gc.freeze()  # else each fork's collector would copy these objects' pages

    def _run(self) -> None:
        for kernel in self.kernels:
            self.console.print(f"{kernel.name}: {len(kernel.mutants)} mutants", markup=False)
            for mutant in kernel.mutants:
                while len(self.forks.running) >= self.workers:
                    self._take()
                seconds = limits(kernel.seconds)
                task = functools.partial(run_tests, kernel.ordered(), mutant, seconds)
                self.forks.start((kernel, mutant), task)
        while self.forks.running:
            self._take()

    def _take(self) -> None:
        (kernel, mutant), outcome = self.forks.next()
        if outcome.failed:
            kernel.caught[mutant] = outcome
        else:
            kernel.survived.append(mutant)
            self.console.print(survivor_text(kernel, mutant), markup=False, soft_wrap=True)


def survivor_text(kernel: Kernel, mutant: Mutant) -> str:
    """Return lines that locate a surviving mutant."""
    return f"survives in {kernel.name}: {mutant.rule}, line {mutant.line}: {mutant.name}"


# ---- output ---------------------------------------------------------------------------------

KINDS = ("values", "memory", "error", "hangs")


def kind(outcome: Outcome) -> str:
    """Return how a mutant was detected."""
    if outcome.why == "hangs":
        return "hangs"
    if "AccessError" in outcome.why:
        return "memory"
    wrong = outcome.why.startswith(("AssertionError", "assert"))
    return "values" if wrong else "error"


def table(kernels: Sequence[Kernel]) -> Table:
    """Return a table with a row per kernel and the totals."""
    name = Column("kernel", no_wrap=True)
    made = Table(name, title="Mutants, and what gave them away", box=SIMPLE_HEAD)
    for column in ("mutants", "caught", *KINDS, "same", "survived"):
        made.add_column(column, justify="right")
    sums = Counter[str]()
    for kernel in kernels:
        kinds = Counter(map(kind, kernel.caught.values()))
        numbers = {
            "mutants": len(kernel.mutants) + len(kernel.same),
            "caught": len(kernel.caught),
            **{each: kinds[each] for each in KINDS},
            "same": len(kernel.same),
            "survived": len(kernel.survived),
        }
        sums.update(numbers)
        made.add_row(kernel.name, *map(str, numbers.values()))
    made.add_section()
    made.add_row("all", *(str(sums[str(column.header)]) for column in made.columns[1:]))
    return made


def report(kernels: Sequence[Kernel], console: Console) -> None:
    """Print the table, the reasons for equivalent mutants, and the survivors."""
    console.print(table(kernels))
    for why, count in Counter(why for kernel in kernels for why in kernel.same).most_common():
        console.print(f"{count} equivalent: {why}", markup=False, soft_wrap=True)
    for kernel in kernels:
        for mutant in kernel.survived:
            console.print(survivor_text(kernel, mutant), markup=False, soft_wrap=True)
