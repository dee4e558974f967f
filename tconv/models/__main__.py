"""``python -m tconv.models NETWORK`` prints its layers: volumes, parameters, work, memory."""

from __future__ import annotations

from typing import Annotated

import torch

from tconv.command_line import command_line
from tconv.extras import extra
from tconv.models import BUILDERS, describe
from tconv.problem import ITEMSIZE

with extra("train"):
    import typer


def main(
    network: Annotated[str, typer.Argument(help=", ".join(BUILDERS))],
    batch: Annotated[int, typer.Option(min=1, help="images at a time")] = 1,
    dtype: Annotated[str, typer.Option(help="of the activations")] = "float32",
) -> None:
    """Describe a network as the lecture does, layer by layer."""
    if network not in BUILDERS:
        raise typer.BadParameter(f"no network {network!r}; there are: {', '.join(BUILDERS)}")
    if dtype not in ITEMSIZE:
        raise typer.BadParameter(f"no dtype {dtype!r}; there are: {', '.join(ITEMSIZE)}")
    with torch.device("meta"):
        model = BUILDERS[network]()
    describe(model, batch=batch, dtype=getattr(torch, dtype))


if __name__ == "__main__":
    with command_line():
        typer.run(main)
