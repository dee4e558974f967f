"""Benchmark the host's cost of choosing a kernel and tile for ResNet-50's layers, and of import.

    python -m benchmarks.choose [--json]

Nothing is compiled and no GPU is needed: the target is sm_90. A choice is made for each layer at
its own size, as in a program's first call, and then at a new size. Times are CPU times of the
process, which other load affects less than wall-clock times.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace

from autotune.suites import suite
from benchmarks.figures import print_figures
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.select import choose, forget
from tconv.target import DEFAULT_TARGET, TARGETS

BATCH = 1
IMPORTS = 5  # processes that import tconv; the shortest time is reported
SCALE = 1.25  # ratio of the second image size to the first


def layers(scale: float = 1.0) -> list[ConvGeometry]:
    """Return the distinct convolutions of ResNet-50 for images ``scale`` times as large."""
    found = [layer.geometry for layer in suite("resnet50", BATCH)]
    return [replace(g, in_h=round(g.in_h * scale), in_w=round(g.in_w * scale)) for g in found]


def choose_milliseconds(problems: Iterable[Problem]) -> list[float]:
    """Return the milliseconds of CPU time that each choice takes."""
    target, found = TARGETS[DEFAULT_TARGET], []
    for problem in problems:
        began = time.process_time()
        choose(problem, target)
        found.append(1e3 * (time.process_time() - began))
    return found


def import_milliseconds(before: str, module: str) -> float:
    """Return the CPU time of importing ``module`` after those ``before``, in a fresh process."""
    code = (
        f"import time, {before}; began = time.process_time(); import {module}; "
        "print(time.process_time() - began)"
    )
    return 1e3 * min(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True,
                             text=True).stdout)
        for _ in range(IMPORTS)
    )  # fmt: skip


def measure() -> dict[str, float | int]:
    """Return all figures by name."""
    forget()
    found: dict[str, float | int] = {"layers": len(layers())}
    for direction in PASSES:
        for name, scale in (("first", 1.0), ("new_size", SCALE)):
            times = choose_milliseconds(Problem(g, direction) for g in layers(scale))
            found[f"{direction}_{name}_ms_median"] = statistics.median(times)
            found[f"{direction}_{name}_ms_most"] = max(times)
    found["import_ms"] = import_milliseconds("torch, triton", "tconv")
    found["import_planner_ms"] = import_milliseconds("tconv", "tconv.select")  # by the first plan
    return found


def main(arguments: list[str]) -> None:
    print_figures(__doc__.splitlines()[0], measure, arguments, number="8.2f")


if __name__ == "__main__":
    main(sys.argv[1:])
