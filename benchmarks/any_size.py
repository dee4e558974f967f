"""What changing the image size costs: kernels to compile, time to choose, predicted time lost.

    python -m benchmarks.any_size [--json]

The 23 distinct convolutions of ResNet-50, forward, batch 1, float16, chosen for sm_90 at 40 random
image sizes from 160 to 640, one size after another as a server meets them. A kernel counts when
its binary is another one for Triton (``Launch.identity``); helpers count as well. The time lost is
predicted: that of each choice against the best for its size alone. Choosing is timed by the
processor's clock. Nothing is compiled and no GPU is needed.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import replace

from autotune.suites import suite
from benchmarks.figures import print_figures
from tconv.cost.cheapest import cheapest
from tconv.cost.model import predict_all
from tconv.families import FAMILIES
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.select import choose, forget
from tconv.target import DEFAULT_TARGET, TARGETS

SMALLEST, LARGEST, SIZES, SEED = 160, 640, 40, 0
NATIVE = 224  # the image size that the suite's layers are of


def sizes(count: int = SIZES, seed: int = SEED) -> list[int]:
    """Different image sizes, in the order in which they are met."""
    return random.Random(seed).sample(range(SMALLEST, LARGEST + 1), count)


def layers_at(size: int) -> list[ConvGeometry]:
    """The layers for images of ``size``: a layer that halves its image rounds up."""
    found = [layer.geometry for layer in suite("resnet50", 1)]
    shrunk = [(g, NATIVE // g.in_h) for g in found]
    return [replace(g, in_h=-(-size // by), in_w=-(-size // by)) for g, by in shrunk]


def measure(met: Sequence[int]) -> dict[str, object]:
    """All figures, by name, for image sizes in the order ``met``."""
    target = TARGETS[DEFAULT_TARGET]
    forget()
    known: set[Hashable] = set()
    new: list[int] = []
    milliseconds, losses = [], []
    for size in met:
        before = len(known)
        for geometry in layers_at(size):
            problem = Problem(geometry, "fprop")
            began = time.process_time()
            choice = choose(problem, target)
            milliseconds.append(1e3 * (time.process_time() - began))
            plan = FAMILIES[choice.family].plan(problem, choice.tile, target)
            known.update(launch.identity for launch in plan.launches)
            mine, least = predict_all(problem, [choice, cheapest(problem, target)], target)
            losses.append(float(mine / least))
        new.append(len(known) - before)
    return {
        "kernels": len(known),
        "kernels_by_size": new,
        "choose_ms_median": statistics.median(milliseconds),
        "choose_seconds_first_size": sum(milliseconds[: len(milliseconds) // len(met)]) / 1e3,
        "choose_seconds": sum(milliseconds) / 1e3,
        "loss_geomean": math.exp(statistics.fmean(map(math.log, losses))) - 1,
        "loss_worst": max(losses) - 1,
        "sizes": list(met),
    }


def main(arguments: list[str]) -> None:
    print_figures(__doc__.splitlines()[0], lambda: measure(sizes()), arguments, number=".4g")


if __name__ == "__main__":
    main(sys.argv[1:])
