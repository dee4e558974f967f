"""What one inference of LeNet-5 costs the host, eager and compiled: the driver is faked.

    python -m benchmarks.host_network

Ours are really compiled for sm_90 and run as on a GPU, down to a launch that does nothing. Torch's
own ways run on ``meta`` tensors, for which every operator is dispatched and nothing is computed.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import host_call
from tconv.compiler import tconv_backend
from tconv.launch import recorded
from tconv.models.command import Backend, build

BATCH = 64
SIZE = (BATCH, 1, 32, 32)


def networks() -> tuple[nn.Module, nn.Module]:
    """LeNet-5 of our modules and of torch's, in half precision, channels_last, for inference."""
    made = [build("lenet5", backend, 0) for backend in (Backend.tconv, Backend.torch)]
    ours, theirs = (
        network.eval().half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in made
    )
    return ours, theirs


def ways(ours: nn.Module, theirs: nn.Module) -> dict[str, tuple[Any, Tensor]]:
    """Each way to call the network, with its input."""
    x = torch.zeros(SIZE, dtype=torch.float16).to(memory_format=torch.channels_last)
    bare, nothing = copy.deepcopy(theirs).to("meta"), x.to("meta")
    options = {"rest": "eager"}
    return {
        "tconv modules, eager": (ours, x),
        "torch.compile, backend tconv": (
            torch.compile(theirs, backend=tconv_backend, options=options), x
        ),
        "torch modules, eager": (bare, nothing),
        "torch.compile, backend eager": (torch.compile(bare, backend="eager"), nothing),
        "torch.compile, backend aot_eager": (torch.compile(bare, backend="aot_eager"), nothing),
    }  # fmt: skip


def measure(calls: int) -> dict[str, tuple[float, int]]:
    """Microseconds of one inference and the kernels that it launches, for each way."""
    found = {}
    for name, (call, x) in ways(*networks()).items():
        with torch.inference_mode():
            call(x)
            with recorded() as log:
                call(x)
            found[name] = host_call.microseconds(lambda call=call, x=x: call(x), calls), len(log)
    return found


def main(calls: Annotated[int, typer.Option(help="of each way, fifteen times over")] = 200) -> None:
    """Print the table."""
    host_call.install()
    title = f"Host cost of LeNet-5, batch {BATCH}, driver faked (torch {torch.__version__})"
    table = Table("way", "microseconds", "launches of ours", title=title)
    for name, (cost, launches) in measure(calls).items():
        table.add_row(name, f"{cost:.1f}", str(launches))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
