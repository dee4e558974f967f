"""``python -m tests.fuzz --minutes 10``: what fails is made small and printed, to be kept."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from typing import Annotated, Any

import typer

ROUND = 60  # cases of one seed
WARM_UP = 10  # rounds until the caches are filled
KINDS = ("operators", "families", "models")


@dataclass
class Found:
    """What one process found: cases by kind and name, and the small ones that failed."""

    computed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)  # the case, and its error
    held: list[float] = field(default_factory=list)  # MiB after each round

    def add(self, other: Found) -> None:
        self.computed += other.computed
        self.refused += other.refused
        known = {error for _, error in self.failed}
        self.failed += [(case, error) for case, error in other.failed if error not in known]


def fuzz(kind: str, seed: int, seconds: float) -> Found:
    """Check rounds of cases from ``seed`` on, for so many seconds and one case more."""
    import torch

    from tconv import interpreter_bfloat16
    from tconv.launch import interpreting
    from tests import interpreter_speed

    torch.set_num_threads(1)
    if interpreting():
        interpreter_bfloat16.mend()
        interpreter_speed.hasten()
    found, end = Found(), monotonic() + seconds
    while monotonic() < end and not found.failed:
        _round(kind, seed, found, end)
        found.held.append(held())
        seed += 1
    return found


def held() -> float:
    """MiB that this process holds: of the GPU's memory where it has one, else of the machine's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * os.sysconf("SC_PAGE_SIZE") / 2**20


def _round(kind: str, seed: int, found: Found, end: float) -> None:
    """Check the cases of one seed; none begins after ``end`` unless one has failed before."""
    import hypothesis
    from hypothesis import HealthCheck, given, settings

    drawn, check, name_of = _kind(kind)
    last: list[Any] = []
    failing = False

    @hypothesis.seed(seed)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(drawn)
    def one(case: Any) -> None:
        nonlocal failing
        if monotonic() >= end and not failing:
            return
        last[:] = [case]
        try:
            counter = found.computed if check(case) else found.refused
        except Exception:
            failing = True  # the case is still made small, however long that takes
            raise
        counter[name_of(case)] += 1

    try:
        one()
    except Exception as error:  # the last case is the smallest
        found.failed.append((repr(last[0]), f"{type(error).__name__}: {error}"))


def _kind(kind: str) -> tuple[Any, Callable[[Any], bool], Callable[[Any], str]]:
    """What is drawn, how it is checked, and under which name it is counted."""
    from tests.fuzz import families, models, operators

    if kind == "models":
        return models.models(), models.check, lambda case: case.name
    if kind == "operators":
        return operators.calls(), operators.check, lambda call: call.operator
    return families.works(), families.check, lambda work: f"{work.family} {work.direction}"


def main(
    minutes: Annotated[float, typer.Option(min=0.01, help="how long, on every process")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="to begin from; by default another each time")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = os.cpu_count() or 1,
    kind: Annotated[
        str | None, typer.Option(help="operators, families or models; by default all")
    ] = None,
) -> None:
    """Random calls, kernels and edited models against torch and the reference in fp64."""
    if kind not in (None, *KINDS):
        raise typer.BadParameter(f"no kind {kind!r}; there are: {', '.join(KINDS)}")
    begin = int(time()) if seed is None else seed
    kinds = KINDS if kind is None else (kind,)
    workers = max(workers, len(kinds))
    whole = Found()
    with ProcessPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(fuzz, kinds[n % len(kinds)], begin + 1_000_000 * n, 60 * minutes)
            for n in range(workers)
        ]
        for number, job in enumerate(jobs):
            found = job.result()
            whole.add(found)
            early, late = found.held[min(WARM_UP, len(found.held) - 1)], found.held[-1]
            typer.echo(
                f"process {number}: {early:.0f} MiB held after warming up, "
                f"{late:.0f} MiB in the end"
            )
    for name in sorted({*whole.computed, *whole.refused}):
        typer.echo(
            f"{name}: {whole.computed[name]} right, {whole.refused[name]} refused as they must be"
        )
    total = whole.computed.total() + whole.refused.total()
    typer.echo(f"{total} cases from seed {begin}, {whole.computed.total()} of them computed")
    for case, error in whole.failed:
        typer.echo(f"\nfailed: {error}\n  {case}\n  keep it in tests/fuzz/found.py, under a name")
    if whole.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported
    from tconv.command_line import command_line

    with command_line():
        typer.run(main)
