"""Run every kernel once, on small layers: ``python -m reports.gpu_run.small [--seed N]``.

Meant for compute-sanitizer, which slows a kernel down a hundredfold. Results are still compared
with the fp64 reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import torch

from autotune.gate import check_on
from reports.bench.cases import PoolCase
from reports.bench.sides import sides
from tconv import functional
from tconv.command_line import command_line
from tconv.extras import extra
from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry, PoolGeometry
from tconv.launch import recorded, target_for
from tconv.problem import PoolProblem, Problem
from tconv.target import Target
from tconv.tile import Choice

with extra("reports"):
    import typer

# Odd sizes, more than one block along an axis, and few programs.
LAYERS = {
    "3x3": ConvGeometry(2, 32, 13, 11, 48, 3, 3, pad_h=1, pad_w=1),
    "stride 2": ConvGeometry(2, 32, 14, 12, 32, 3, 3, 2, 2, 1, 1),
    "1x1": ConvGeometry(1, 64, 9, 7, 40, 1, 1),
    "three channels": ConvGeometry(2, 3, 21, 19, 16, 5, 5, 2, 2, 2, 2),
    "grouped": ConvGeometry(2, 32, 11, 9, 32, 3, 3, pad_h=1, pad_w=1, groups=8),
    "depthwise": ConvGeometry(2, 24, 13, 11, 48, 3, 3, pad_h=1, pad_w=1, groups=24),
    "dilated": ConvGeometry(1, 16, 15, 14, 16, 3, 3, 1, 1, 2, 2, 2, 2),
}
POOLS = {
    "2x2": PoolGeometry(2, 24, 12, 10, 2, 2, 2, 2),
    "3x3": PoolGeometry(2, 24, 13, 11, 3, 3, 2, 2, 1, 1),
}


def problems(target: Target) -> Iterator[tuple[str, Problem, Choice]]:
    """Yield each layer's passes for each family that supports them, in both memory formats."""
    for name, shape in LAYERS.items():
        for direction in PASSES:
            for layout in ("nhwc", "nchw"):
                problem = Problem(shape, direction, "float16", layout)  # type: ignore[arg-type]
                for kind, family in FAMILIES.items():
                    if family.unserved(problem, target) is None:
                        choice = Choice(kind, family.heuristic(problem, target))
                        yield f"{name} {direction} {layout} {kind}", problem, choice


def run_all(
    device: torch.device, seed: int, share: tuple[int, int] = (1, 1)
) -> tuple[set[str], list[str]]:
    """Return the launched kernels and the failures; ``share`` is (1, 4) to (4, 4), for example."""
    wrong: list[str] = []
    number, count = share
    with recorded() as launches:
        for name, problem, choice in islice(problems(target_for(device)), number - 1, None, count):
            verdict = check_on(problem, choice, str(device))
            if not verdict.passed:
                wrong.append(f"{name}: {verdict.detail}")
        if number < count:  # the rest belongs to the last share
            return {launch.kernel for launch in launches}, wrong
        _epilogues(device)
        for name, shape in POOLS.items():
            for direction in ("fprop", "dgrad"):
                case = PoolCase("small", name, PoolProblem(shape, direction, "float16"))  # type: ignore[arg-type]
                side = sides(case, device, seed)
                if not torch.allclose(side.ours().double(), side.wanted(), rtol=1e-2, atol=1e-2):
                    wrong.append(f"pool {name} {direction}: not the reference's result")
    return {launch.kernel for launch in launches}, wrong


def _epilogues(device: torch.device) -> None:
    """Run fused epilogues forward and backward, average-pool, subsampling, and double backward."""
    x = torch.randn(2, 16, 12, 10, device=device).to(memory_format=torch.channels_last)
    w, bias = torch.randn(16, 16, 3, 3, device=device), torch.randn(16, device=device)
    for leaf in (x, w, bias):
        leaf.requires_grad_()
    for compute in (functional.conv2d, functional.conv2d_pool):
        y = compute(x, w, bias, padding=1, activation="relu")
        grads = torch.autograd.grad(y.square().sum(), (x, w, bias), create_graph=True)
        torch.autograd.grad(torch.stack([grad.square().sum() for grad in grads]).sum(), (x, w))
    greatest, _ = functional.max_pool2d(x, 2, return_indices=True)
    means = functional.avg_pool2d(x, 2) + greatest
    (grad,) = torch.autograd.grad(means.square().sum(), x, create_graph=True)
    torch.autograd.grad(grad.square().sum(), x)


def main(
    seed: Annotated[int, typer.Option(help="seed of the inputs")] = 0,
    share: Annotated[str, typer.Option(help="share of the kernels, for example 1/4")] = "1/1",
) -> None:
    """Run every kernel once and compare it with the reference."""
    number, _, count = share.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 0 < int(number) <= int(count)):
        raise typer.BadParameter(f"{share!r} is not a share such as 1/4")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    kernels, wrong = run_all(device, seed, (int(number), int(count)))
    typer.echo(f"{len(kernels)} kernels: {', '.join(sorted(kernels))}")
    for line in wrong:
        typer.echo(f"wrong: {line}")
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
