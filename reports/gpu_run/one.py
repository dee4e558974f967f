"""Run one pass of one layer for a profiler: ``python -m reports.gpu_run.one KEY``."""

from __future__ import annotations

from typing import Annotated

import torch

from autotune.measure import inputs
from tconv.command_line import command_line
from tconv.extras import extra
from tconv.launch import target_for
from tconv.ops.conv_run import compute
from tconv.problem import Problem
from tconv.select import choose

with extra("reports"):
    import typer


def main(
    key: Annotated[str, typer.Argument(help="a problem's key: fprop/float16/nhwc/n64c3...")],
    repeats: Annotated[int, typer.Option(min=1, help="runs that the profiler sees")] = 1,
) -> None:
    """Compile, then run between the profiler's start and stop."""
    try:
        problem = Problem.from_key(key)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors = inputs(problem, str(device))
    choice = choose(problem, target_for(device))
    compute(problem, choice, **tensors)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    for _ in range(repeats):
        compute(problem, choice, **tensors)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    typer.echo(f"{problem.key}: {choice.family} {choice.tile} ({choice.ground})")


if __name__ == "__main__":
    with command_line():
        typer.run(main)
