"""Train a network: ``python -m tconv.models.train --model lenet5``.

On several GPUs: ``torchrun --nproc-per-node 2 -m tconv.models.train ...``.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import torch

from tconv.command_line import command_line
from tconv.extras import extra
from tconv.models import checkpoint, command
from tconv.models.checkpoint import CheckpointError
from tconv.models.command import DTYPES, Backend
from tconv.models.data import DATASETS, DataError, load
from tconv.models.training import OPTIMIZERS, Epoch, Ranks, Settings, Trainer, joined

with extra("train"):
    import typer
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

LOGGED = [f.name for f in fields(Epoch) if f.name != "batch_losses"]
check_optimizer = command.one_of("optimizer", OPTIMIZERS)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add an epoch to the log; its heading first where the file is new."""
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def _writable(option: str, path: Path | None, resumes: bool) -> None:
    """Refuse a folder that is missing, and to write over what a run has left."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{option}: there is no folder {path.parent}")
    if path.exists() and not resumes:
        raise typer.BadParameter(
            f"{option}: {path} exists; go on from it with --resume, or name another file"
        )


def main(
    model: Annotated[str, typer.Option(help="network", callback=command.check_network)],
    data: Annotated[
        str, typer.Option(help=", ".join(DATASETS), callback=command.check_data)
    ] = "digits",
    path: Annotated[Path | None, typer.Option(help="folder of the dataset")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="in all, those before a break too")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="at most so many an epoch")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images a step")] = 64,
    optimizer: Annotated[
        str, typer.Option(help=", ".join(OPTIMIZERS), callback=check_optimizer)
    ] = "adam",
    lr: Annotated[float | None, typer.Option(min=0.0, help="learning rate")] = None,
    augment: Annotated[bool, typer.Option(help="mirror, and shift by up to 2 pixels")] = False,
    dtype: Annotated[
        str, typer.Option(help="of activations (autocast)", callback=command.check_dtype)
    ] = "float32",
    backend: Annotated[
        str, typer.Option(help=command.BACKENDS, callback=command.check_backend)
    ] = "tconv",
    channels_last: Annotated[bool, typer.Option(help="memory format")] = True,
    graphed: Annotated[bool, typer.Option(help="run a step as one CUDA graph")] = False,
    seed: Annotated[int, typer.Option(help="of weights, split and order")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    loaders: Annotated[int, typer.Option(min=0, help="processes that read images")] = 0,
    log: Annotated[Path | None, typer.Option(help="CSV file, a row an epoch")] = None,
    save: Annotated[Path | None, typer.Option("--checkpoint", help="written each epoch")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from --checkpoint, where it exists")
    ] = False,
) -> None:
    """Train a network on real digits, MNIST, CIFAR-10, a folder of images, or noise."""
    console = Console(highlight=False, soft_wrap=True)
    settings = Settings(epochs, batch, optimizer, lr, DTYPES[dtype], channels_last, augment,
                        graphed, steps, seed, loaders)  # fmt: skip
    if resume and save is None:
        raise typer.BadParameter("--resume goes on from --checkpoint: name it")
    command.check_path(data, path)
    cuda = command.device_named(device).type == "cuda"
    if graphed and not cuda:
        raise typer.BadParameter("--graphed needs a CUDA device")
    try:
        with joined(cuda) as ranks:
            if ranks.first:
                _writable("--log", log, resume)
                _writable("--checkpoint", save, resume)
            place = command.device_named(device, ranks.local)
            if place.type == "cuda":
                torch.cuda.set_device(place)
            images = load(data, path, seed, command.volume_for(model, data))
            network = command.build(model, Backend(backend), seed, images.classes)
            volume = command.volume_for(model, data)
            trainer = Trainer(network, images, volume, settings, place, ranks)
            head = {"network": model, "classes": images.classes}
            if resume and save is not None and save.exists():
                _go_on(trainer, save, head)
            note = {"model": model, "backend": backend, "device": str(place), "batch": batch,
                    "dtype": dtype}  # fmt: skip
            if ranks.first:
                console.print(
                    f"{model}: {sum(p.numel() for p in network.parameters()):,} parameters, "
                    f"{images.counts[0]:,} images to learn from, {images.counts[1]:,} to test; "
                    f"convolutions and pools run on {command.where(Backend(backend), place)}"
                )
            _run(trainer, console, ranks, log, save, head, note)
            del trainer  # it holds the group that ends here
    except (DataError, CheckpointError, ValueError) as error:
        console.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from error


def _go_on(trainer: Trainer, path: Path, head: dict[str, Any]) -> None:
    content = checkpoint.read(path)
    for name, wanted in head.items():
        if content.get(name) != wanted:
            raise CheckpointError(
                f"{path}: its {name} is {content.get(name)!r}, this training's is {wanted!r}"
            )
    try:
        trainer.restore(content)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _run(
    trainer: Trainer,
    console: Console,
    ranks: Ranks,
    log: Path | None,
    save: Path | None,
    head: dict[str, Any],
    note: dict[str, Any],
) -> None:
    """Train under a progress bar; each epoch is printed, logged and saved as it ends."""
    settings = trainer.settings
    steps = -(-trainer.images.counts[0] // settings.batch)
    steps = steps if settings.steps is None else min(steps, settings.steps)
    began, last = trainer.done, None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Without a terminal there is nothing to redraw: the lines alone are printed.
    hidden = not console.is_terminal or not ranks.first
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=hidden) as progress:
        task = progress.add_task(f"epoch {began + 1}", total=steps)

        def tick(count: int, loss: float) -> None:
            words = f"epoch {trainer.done + 1}, loss {loss:.4f}"
            progress.update(task, completed=count, description=words)

        for epoch in trainer.epochs(tick):
            last = epoch
            if not ranks.first:
                continue
            console.print(
                f"epoch {epoch.epoch}/{settings.epochs}  loss {epoch.loss:.4f}  "
                f"test accuracy {epoch.test_accuracy:.1%}  {epoch.seconds:.1f} s"
            )
            if save is not None:
                checkpoint.save(save, {**head, **trainer.state()})
            if log is not None:
                row = {key: value for key, value in asdict(epoch).items() if key in LOGGED}
                append_row(log, {**note, **row})
    if not ranks.first:
        return
    if last is None:
        console.print(f"nothing to do: {began} of {settings.epochs} epochs are done")
        return
    if log is not None:
        console.print(f"log: {log}", markup=False)
    if save is not None:
        console.print(f"checkpoint: {save}", markup=False)
    console.print(f"test accuracy {last.test_accuracy:.1%}, {last.images_per_s:.0f} images/s")


if __name__ == "__main__":
    with command_line():
        typer.run(main)
