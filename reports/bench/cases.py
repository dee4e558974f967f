"""The cases to measure: each pass of each layer of the suites, fused epilogues, and pools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from autotune.suites import Layer, PoolLayer, pools, suite
from tconv.geometry import Pass
from tconv.problem import PoolProblem, Problem

# Epilogues of a convolution's forward pass, as suffixes of the suite's name.
EPILOGUES = ("", "+relu", "+relu+pool")


@dataclass(frozen=True)
class ConvCase:
    """One pass of a convolution; ``epilogue`` is one of ``EPILOGUES``, applied after a bias."""

    suite: str
    layer: str
    problem: Problem
    epilogue: str = ""

    @property
    def name(self) -> str:
        return f"{self.suite}{self.epilogue} {self.layer} {self.problem.direction}"


@dataclass(frozen=True)
class PoolCase:
    """One pass of a max-pool."""

    suite: str
    layer: str
    problem: PoolProblem

    @property
    def name(self) -> str:
        return f"{self.suite} {self.layer} {self.problem.direction}"


Case = ConvCase | PoolCase


def cases(
    suites: Iterable[str], passes: Sequence[Pass], dtypes: Iterable[str], batch: int
) -> Iterator[Case]:
    """Yield the cases of ``suites``, dtype by dtype; ``tf32`` and ``tf32x3`` are float32.

    VGG's forward passes are also measured with their epilogues, and with the pool where the network
    has one.
    """
    for dtype in dtypes:
        for name in suites:
            layers, pooled = suite(name, batch), pools(name, batch)
            for layer in layers:
                for direction in passes:
                    yield ConvCase(name, layer.name, Problem.of(layer.geometry, direction, dtype))
            if name.startswith("vgg") and "fprop" in passes:
                yield from _ended(layers, dtype)
            yield from _pools(pooled, passes, dtype)


def _ended(layers: Sequence[Layer], dtype: str) -> Iterator[Case]:
    for epilogue in EPILOGUES[1:]:
        for layer in layers:
            if layer.pooled or "pool" not in epilogue:
                problem = Problem.of(layer.geometry, "fprop", dtype)
                yield ConvCase(layer.suite, layer.name, problem, epilogue)


def _pools(pooled: Sequence[PoolLayer], passes: Sequence[Pass], dtype: str) -> Iterator[Case]:
    plain = "float32" if dtype.startswith("tf32") else dtype
    if dtype == "tf32x3":
        return  # a maximum has no products, so float32's row covers every precision
    for layer in pooled:
        for direction in passes:
            if direction != "wgrad":
                kind: Literal["fprop", "dgrad"] = direction
                yield PoolCase(layer.suite, layer.name, PoolProblem(layer.geometry, kind, plain))
