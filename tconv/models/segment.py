"""Train a U-Net to tell shapes apart, pixel by pixel: ``python -m tconv.models.segment``.

The images are made on the spot: a disc and a square of random size, place and brightness on noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from tconv import svg
from tconv.command_line import command_line
from tconv.extras import extra
from tconv.models import command
from tconv.models.command import Backend
from tconv.models.trace import torch_twin
from tconv.models.unet import UNet

with extra("train"):
    import typer
    from matplotlib.figure import Figure
    from rich.console import Console

CLASSES = ("background", "disc", "square")


# ---- data -----------------------------------------------------------------------------------


def shapes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 1, size, size) of a disc and a square on noise, and each pixel's class.

    A disc's radius, and half a square's side, are an eighth to a quarter of the image's size; the
    square hides what it covers of the disc.
    """

    def drawn(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    axis = torch.arange(size, dtype=torch.float32)
    rows, columns = axis[:, None], axis[None, :]
    images = 0.25 * torch.randn(count, 1, size, size, generator=generator)
    classes = torch.zeros(count, size, size, dtype=torch.int64)
    for number in range(1, len(CLASSES)):
        radius = drawn(size / 8, size / 4, count)[:, None, None]
        centre = drawn(size / 5, size - size / 5, 2, count)[..., None, None]
        down, across = (rows - centre[0]).abs(), (columns - centre[1]).abs()
        inside = down.square() + across.square() <= radius.square()
        if CLASSES[number] == "square":
            inside = (down <= radius) & (across <= radius)
        bright = drawn(0.7, 1.3, count)[:, None, None]
        images[:, 0] = torch.where(inside, images[:, 0] * 0.5 + bright, images[:, 0])
        classes = torch.where(inside, number, classes)
    return images, classes


def intersection_over_union(found: Tensor, wanted: Tensor) -> list[float]:
    """Pixels of a shape that are found and wanted, over those that are either; per shape.

    >>> intersection_over_union(torch.tensor([1, 1, 0, 2]), torch.tensor([1, 0, 0, 2]))
    [0.5, 1.0]
    """
    shares = []
    for number in range(1, len(CLASSES)):
        both = ((found == number) & (wanted == number)).sum()
        either = ((found == number) | (wanted == number)).sum()
        shares.append(float(both) / max(1, int(either)))
    return shares


# ---- training -------------------------------------------------------------------------------


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, classes: Tensor
) -> float:
    """One update of the weights; the mean cross-entropy of a pixel before it, in nats."""
    optimizer.zero_grad(set_to_none=True)
    loss = functional.cross_entropy(network(images), classes)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def evaluated(network: nn.Module, images: Tensor) -> Tensor:
    """Each pixel's likeliest class."""
    network.eval()
    with torch.no_grad():
        return network(images).argmax(1)  # type: ignore[no-any-return]


def picture(images: Tensor, wanted: Tensor, found: Tensor) -> Figure:
    """A row for each image: the image, its classes, and those that were found."""
    figure = Figure(figsize=(6, 2 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    titles = ("image", "shapes", "found")
    for row, parts in zip(axes, zip(images[:, 0], wanted, found, strict=True), strict=True):
        for place, title, part in zip(row, titles, parts, strict=True):
            place.imshow(part.cpu().numpy(), cmap="gray" if title == "image" else "viridis")
            place.set_title(title)
            place.set_axis_off()
    return figure


def main(
    size: Annotated[int, typer.Option(min=8, help="of the images, a multiple of 4")] = 24,
    steps: Annotated[int, typer.Option(min=1, help="updates of the weights")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="images a step")] = 16,
    width: Annotated[int, typer.Option(min=1, help="channels of the first level")] = 8,
    lr: Annotated[float, typer.Option(min=0.0, help="Adam's highest learning rate")] = 0.02,
    backend: Annotated[
        str, typer.Option(help=command.BACKENDS, callback=command.check_backend)
    ] = "tconv",
    seed: Annotated[int, typer.Option(help="of weights and images")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    save: Annotated[
        Path | None, typer.Option("--picture", help="of test images, .svg or .png")
    ] = None,
) -> None:
    """Train a small U-Net on discs and squares, and say how well it finds them."""
    if size % 4:
        raise typer.BadParameter(f"--size is {size}; it must be a multiple of 4")
    console, place = Console(highlight=False, soft_wrap=True), command.device_named(device)
    torch.manual_seed(seed)
    network: nn.Module = UNet(1, len(CLASSES), width)
    if Backend(backend) is not Backend.tconv:
        network = command.with_backend(torch_twin(network), Backend(backend))
    network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    console.print(
        f"U-Net: {sum(p.numel() for p in network.parameters()):,} parameters; convolutions and "
        f"pools run on {command.where(Backend(backend), place)}"
    )
    tests, wanted = (each.to(place) for each in shapes(32, size, generator))
    tests = tests.contiguous(memory_format=torch.channels_last)
    for step in range(1, steps + 1):
        images, classes = (each.to(place) for each in shapes(batch, size, generator))
        images = images.contiguous(memory_format=torch.channels_last)
        network.train()
        loss = train_step(network, optimizer, images, classes)
        schedule.step()
        if step % 20 == 0 or step == steps:
            shares = intersection_over_union(evaluated(network, tests), wanted)
            named = ", ".join(
                f"{name} {share:.2f}" for name, share in zip(CLASSES[1:], shares, strict=True)
            )
            console.print(f"step {step}/{steps}  loss {loss:.4f}  IoU: {named}")
    if save is not None:
        drawn = picture(tests[:3], wanted[:3], evaluated(network, tests[:3]))
        svg.save(drawn, save, "shapes that a U-Net was trained to find")
        console.print(f"picture: {save}", markup=False)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
