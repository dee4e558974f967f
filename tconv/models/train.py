"""Train a network on real digits: ``python -m tconv.models.train --model lenet5``."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn import functional

from tconv.models import BUILDERS, torch_twin
from tconv.models.digits import Digits, load_digits
from tconv.ops.launch import interpreting, runs_triton

Ticker = Callable[[int, float], None]  # batches done in this epoch, loss of the last


class Backend(str, Enum):
    """Whose convolution and max-pool run."""

    tconv = "tconv"
    torch = "torch"


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave; a row of the log."""

    epoch: int
    loss: float  # mean cross-entropy over the epoch's images, in nats
    test_accuracy: float  # share of test images
    seconds: float  # training alone
    batch_losses: tuple[float, ...] = field(default=(), repr=False)


def build(name: str, backend: Backend, seed: int, num_classes: int = 10) -> nn.Module:
    """The named network; both backends start from the same weights for the same seed."""
    torch.manual_seed(seed)
    model = BUILDERS[name](num_classes=num_classes)
    return torch_twin(model) if backend is Backend.torch else model


def input_channels(model: nn.Module) -> int:
    """Channels that the first convolution takes."""
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def batches(
    x: torch.Tensor, y: torch.Tensor, batch: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All images once, in a new order for each call."""
    order = torch.randperm(len(x), generator=generator)
    for chosen in order.split(batch):
        yield x[chosen], y[chosen]


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> float:
    """One update of the weights; returns the cross-entropy before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int = 256) -> float:
    """Share of images whose highest score is their label."""
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(part.to(device)).argmax(1).cpu() == labels).sum())
            for part, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
    return right / len(x)


def train(
    model: nn.Module,
    digits: Digits,
    *,
    epochs: int = 3,
    batch: int = 64,
    learning_rate: float = 5e-3,
    seed: int = 0,
    device: torch.device | None = None,
    tick: Ticker = lambda done, loss: None,
) -> Iterator[Epoch]:
    """Train with Adam, a result an epoch. The order of images follows from ``seed``."""
    device = device or torch.device("cpu")
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, epochs + 1):
        model.train()
        start, losses, weighted = time.perf_counter(), [], 0.0
        for x, y in batches(digits.train_x, digits.train_y, batch, generator):
            losses.append(step(model, optimizer, x.to(device), y.to(device)))
            weighted += losses[-1] * len(x)
            tick(len(losses), losses[-1])
        seconds = time.perf_counter() - start
        share = accuracy(model, digits.test_x, digits.test_y)
        loss = weighted / len(digits.train_x)
        yield Epoch(number, loss, share, seconds, tuple(losses))


def where(backend: Backend, device: torch.device) -> str:
    """On what the convolutions run, in words."""
    if backend is Backend.torch:
        return f"torch's own operators on {_device_name(device)}"
    if not runs_triton(device):
        return "torch's CPU operators (set TRITON_INTERPRET=1 to run the Triton kernels here)"
    if device.type == "cpu" and interpreting():
        return "the Triton kernels, in Triton's interpreter on the CPU"
    return f"the Triton kernels on {_device_name(device)}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{name!r} cannot be used: {reason}") from error
    return device


def _known_model(name: str) -> str:
    if name not in BUILDERS:
        raise typer.BadParameter(f"no model {name!r}; there are: {', '.join(BUILDERS)}")
    return name


def _known_backend(name: str) -> str:
    if name not in (known := [backend.value for backend in Backend]):
        raise typer.BadParameter(f"no backend {name!r}; there are: {', '.join(known)}")
    return name


def write_log(path: Path, epochs: Iterable[Epoch], **run: object) -> None:
    """One CSV row an epoch, led by the run's settings."""
    columns = [f.name for f in fields(Epoch) if f.name != "batch_losses"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*run, *columns], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**run, **asdict(epoch)} for epoch in epochs)


def _watched(
    console: Console, total: int, epochs: int, run: Callable[[Ticker], Iterator[Epoch]]
) -> list[Epoch]:
    """Run under a progress bar and print each epoch's result as it comes."""
    done: list[Epoch] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Without a terminal there is nothing to redraw: the lines alone are printed.
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task("epoch 1", total=total)

        def tick(count: int, loss: float) -> None:
            progress.update(task, completed=count, description=f"loss {loss:.4f}")

        for epoch in run(tick):
            done.append(epoch)
            console.print(
                f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4f}  "
                f"test accuracy {epoch.test_accuracy:.1%}  {epoch.seconds:.1f} s"
            )
    return done


def main(
    model: Annotated[str, typer.Option(help=" or ".join(BUILDERS), callback=_known_model)],
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch: Annotated[int, typer.Option(min=1, help="images a step")] = 64,
    lr: Annotated[float, typer.Option(min=0.0, help="Adam's learning rate")] = 5e-3,
    backend: Annotated[str, typer.Option(help="tconv or torch", callback=_known_backend)] = "tconv",
    seed: Annotated[int, typer.Option(help="of weights, split and order")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    log: Annotated[Path | None, typer.Option(help="CSV file, a row an epoch")] = None,
) -> None:
    """Train a network on scikit-learn's 1,797 handwritten digits, enlarged to 32x32."""
    console = Console(highlight=False, soft_wrap=True)
    place, library = _device(device), Backend(backend)
    if log is not None and not log.parent.is_dir():
        raise typer.BadParameter(f"--log: there is no folder {log.parent}")
    network = build(model, library, seed)
    try:
        digits = load_digits(input_channels(network), seed)
    except ImportError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(1) from error
    console.print(
        f"{model}: {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{len(digits.train_x):,} digits to learn from, {len(digits.test_x)} to test; "
        f"convolutions and pools run on {where(library, place)}"
    )
    steps = -(-len(digits.train_x) // batch)

    def run(tick: Ticker) -> Iterator[Epoch]:
        settings = {"epochs": epochs, "batch": batch, "learning_rate": lr, "seed": seed}
        return train(network, digits, device=place, tick=tick, **settings)  # type: ignore[arg-type]

    done = _watched(console, steps, epochs, run)
    if log is not None:
        write_log(log, done, model=model, backend=backend, device=str(place), batch=batch)
        console.print(f"log: {log}")
    seconds = sum(epoch.seconds for epoch in done) / epochs
    console.print(f"test accuracy {done[-1].test_accuracy:.1%}, {seconds:.1f} s an epoch")


if __name__ == "__main__":
    typer.run(main)
