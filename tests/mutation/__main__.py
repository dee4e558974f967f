"""Command line ``python -m tests.mutation``: every mutant of every kernel must be caught."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

# Set before torch is imported: a fork inherits neither its threads nor a GPU.
os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")

import pytest
import typer
from rich.console import Console

from tconv.command_line import command_line
from tests.mutation import equivalent
from tests.mutation.check import Check, Kernel, kind, report
from tests.mutation.mutants import kernels, mutants, sample, with_helpers
from tests.mutation.oracle import TESTS

EACH = 40  # mutants per kernel, taken from the rules in turn


def prepared(name: str, each: int, recheck: bool) -> Kernel:
    """Return a kernel with its mutants, except those known to be equivalent."""
    reasons = equivalent.read()
    every = [mutant for function in with_helpers(name) for mutant in mutants(function)]
    chosen = sample(every, each) if each else every
    known = {m: equivalent.reason(reasons, name, m.name) for m in chosen}
    left = [mutant for mutant, why in known.items() if recheck or why is None]
    return Kernel(name, TESTS[name], left, [] if recheck else [w for w in known.values() if w])


def main(
    kernel: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given again.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes at a time.")] = os.cpu_count() or 1,
    each: Annotated[int, typer.Option(help="Mutants of each kernel; 0 for all.")] = EACH,
    recheck: Annotated[
        bool, typer.Option(help="Run those too that are known as equivalent.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Write what caught each mutant.")] = None,
) -> None:
    """Break each kernel in many ways; every mutant must be caught by the kernel's tests."""
    began = time.monotonic()
    console = Console(width=max(100, Console().width))  # wide enough for the table
    names = kernel or kernels()
    if unknown := set(names) - set(TESTS):
        raise typer.BadParameter(f"no kernel {sorted(unknown)}; there are {sorted(TESTS)}")
    checked = [prepared(name, each, recheck) for name in names]
    files = sorted({test.partition("::")[0] for one in checked for test in one.tests})
    with tempfile.TemporaryDirectory() as scratch:
        options = ["-m", "", "-q", "-s", "--no-header"]  # thorough tests as well
        options += ["-p", "no:cacheprovider", f"--basetemp={scratch}"]
        check = Check(checked, workers, console)
        code = pytest.main([*options, *files], plugins=[check])
    report(checked, console)
    if check.broken:
        console.print(check.broken, markup=False)
    console.print(f"{time.monotonic() - began:.0f} seconds, {workers} workers")
    if log:
        rows = [
            [
                one.name,
                mutant.rule,
                mutant.name,
                kind(outcome),
                outcome.failed,
                outcome.why,
                outcome.seconds,
            ]
            for one in checked
            for mutant, outcome in one.caught.items()
        ]
        log.write_text(json.dumps(rows, indent=0))
    ran = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    raise typer.Exit(0 if ran and check.sound else 1)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
