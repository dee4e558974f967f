"""Run a network on images: ``python -m tconv.models.infer --model vgg16 --data synthetic``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from tconv.command_line import command_line
from tconv.extras import extra
from tconv.graphs import graphed as as_graph
from tconv.models import checkpoint, command
from tconv.models.checkpoint import CheckpointError
from tconv.models.command import DTYPES, Backend
from tconv.models.data import DATASETS, DataError, Images, load, prepared
from tconv.models.train import append_row

with extra("train"):
    import typer
    from rich.console import Console
    from rich.progress import track

WARM_UPS = 3  # batches that are run before the clock counts


def classes_of(content: dict[str, Any] | None, images: Images) -> int:
    """Scores of an image: the checkpoint's, the weights' last layer's, or the dataset's."""
    if content is None:
        return images.classes
    if "classes" in content:
        return int(content["classes"])
    *_, last = content["model"].values()
    return int(last.shape[0])


def main(
    model: Annotated[str, typer.Option(help="network", callback=command.check_network)],
    weights: Annotated[
        Path | None, typer.Option(help="a checkpoint of train, or a state_dict")
    ] = None,
    data: Annotated[
        str, typer.Option(help=", ".join(DATASETS), callback=command.check_data)
    ] = "digits",
    path: Annotated[Path | None, typer.Option(help="folder of the dataset")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images at a time")] = 64,
    count: Annotated[int | None, typer.Option(min=1, help="at most so many images")] = None,
    dtype: Annotated[
        str, typer.Option(help="of weights and activations", callback=command.check_dtype)
    ] = "float32",
    backend: Annotated[
        str, typer.Option(help=command.BACKENDS, callback=command.check_backend)
    ] = "tconv.compile",
    channels_last: Annotated[bool, typer.Option(help="memory format")] = True,
    graphed: Annotated[bool, typer.Option(help="run a batch as one CUDA graph")] = False,
    seed: Annotated[int, typer.Option(help="of weights and split")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    log: Annotated[Path | None, typer.Option(help="CSV file, to which a row is added")] = None,
) -> None:
    """Scores of a dataset's test images: accuracy, and images a second."""
    console = Console(highlight=False, soft_wrap=True)
    command.check_path(data, path)
    place = command.device_named(device)
    if graphed and place.type != "cuda":
        raise typer.BadParameter("--graphed needs a CUDA device")
    if log is not None and not log.parent.is_dir():
        raise typer.BadParameter(f"--log: there is no folder {log.parent}")
    try:
        volume = command.volume_for(model, data)
        images = load(data, path, seed, volume)
        content = None if weights is None else checkpoint.read(weights)
        network = _network(model, content, weights, Backend(backend), seed, images)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network.to(place, DTYPES[dtype]).to(memory_format=layout)  # type: ignore[call-overload]
        network.eval()
        console.print(
            f"{model}: {sum(p.numel() for p in network.parameters()):,} parameters, "
            f"{'random weights' if weights is None else weights}; convolutions and pools run on "
            f"{command.where(Backend(backend), place)}",
            markup=False,
        )

        def given(x: Tensor) -> Tensor:
            x = prepared(x.to(place, DTYPES[dtype]), volume)
            return x.contiguous(memory_format=layout)

        share, seconds, seen = _measured(network, images, batch, count, given, graphed, console)
    except (DataError, CheckpointError, ValueError) as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from error
    rate = batch / seconds
    console.print(
        f"accuracy {share:.1%} of {seen:,} images; {1e3 * seconds:.3f} ms a batch of {batch}, "
        f"median; {rate:.0f} images/s"
    )
    if log is not None:
        append_row(log, {"model": model, "mode": "infer", "batch": batch, "dtype": dtype,
                         "backend": backend, "device": str(place), "ms": 1e3 * seconds,
                         "images_per_s": rate, "accuracy": share})  # fmt: skip
        console.print(f"log: {log}", markup=False)


def _network(
    name: str,
    content: dict[str, Any] | None,
    weights: Path | None,
    backend: Backend,
    seed: int,
    images: Images,
) -> nn.Module:
    if content is not None and content.get("network", name) != name:
        raise CheckpointError(f"{weights}: its network is {content['network']!r}, not {name!r}")
    network = command.build(name, backend, seed, classes_of(content, images))
    if content is not None and weights is not None:
        checkpoint.load_weights(network, content, weights)
    return network


def _measured(
    network: nn.Module,
    images: Images,
    batch: int,
    count: int | None,
    given: Callable[[Tensor], Tensor],
    graphed: bool,
    console: Console,
) -> tuple[float, float, int]:
    """Share of right answers, the median seconds of a full batch, and how many images."""
    seen = min(images.counts[1], count or images.counts[1])
    loader = DataLoader(Subset(images.test, list(range(seen))), batch)
    run: Callable[[Tensor], Tensor] = network
    right, times = 0, []
    with torch.no_grad():
        first = given(next(iter(loader))[0])
        if graphed:
            run = as_graph(network, first)
        for _ in range(WARM_UPS if first.is_cuda else 1):
            run(first)
        hidden = not console.is_terminal
        for x, y in track(loader, "inference", console=console, disable=hidden):
            x = given(x)
            odd = graphed and len(x) != len(first)
            _wait(x)
            start = time.perf_counter()
            scores = network(x) if odd else run(x)
            _wait(x)
            if len(x) == len(first):
                times.append(time.perf_counter() - start)
            right += int((scores.argmax(1).cpu() == y).sum())
    return right / seen, statistics.median(times) * batch / len(first), seen


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    with command_line():
        typer.run(main)
