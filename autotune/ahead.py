"""Compile the kernels of suites ahead of their use: ``python -m autotune compile``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autotune.suites import suite
from tconv.aot.plan import Plans, launches_of, planned
from tconv.aot.warm_up import WarmUp, compile_all
from tconv.families import FAMILIES
from tconv.geometry import Pass
from tconv.launch import Launch
from tconv.models import BUILDERS, INPUT_VOLUMES
from tconv.problem import Problem
from tconv.select import choose
from tconv.target import Target


def compile_suites(
    suites: Sequence[str],
    passes: Sequence[Pass],
    dtype: str,
    batch: int,
    target: Target,
    workers: int,
    progress: bool = True,
) -> WarmUp:
    """Compile the kernels of all ``suites`` for ``target``, as ``tconv.warm_up`` does.

    A model is planned as a whole, in channels_last; in training mode if ``passes`` has a gradient.
    A suite of single layers is planned layer by layer, without bias.
    """
    found: list[Launch] = []
    for name in suites:
        of = _of_model if name in BUILDERS else _of_layers
        found += of(name, passes, dtype, batch, target)
    return compile_all(launches_of([tuple(found)]), target, workers, progress)


def _of_model(
    name: str, passes: Sequence[Pass], dtype: str, batch: int, target: Target
) -> list[Launch]:
    with torch.device("meta"):
        model = BUILDERS[name]()
    model.train(tuple(passes) != ("fprop",)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = getattr(torch, "float32" if dtype.startswith("tf32") else dtype)
    size = (batch, *INPUT_VOLUMES[name])
    with torch.backends.cudnn.flags(allow_tf32=dtype == "tf32"):
        return planned(model, [size], [plain], passes, target, torch.channels_last)


def _of_layers(
    name: str, passes: Sequence[Pass], dtype: str, batch: int, target: Target
) -> list[Launch]:
    plans: Plans = []
    for layer in suite(name, batch):
        for direction in passes:
            problem = Problem.of(layer.geometry, direction, dtype)
            choice = choose(problem, target)
            plans.append(FAMILIES[choice.family].plan(problem, choice.tile, target).launches)
    return launches_of(plans)
