"""The lecture's 3x3 filters on a picture, or what a trained LeNet-5 sees in it.

python -m tconv.models.gallery photo.jpg
python -m tconv.models.gallery photo.jpg --activations
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

from tconv import functional, svg
from tconv.command_line import command_line
from tconv.extras import extra

with extra("train"):
    import matplotlib as mpl
    import typer
    from matplotlib.figure import Figure
    from rich.console import Console

PICTURE = Path(__file__).parent / "pictures" / "house.png"  # drawn by tconv.models.house
LONGEST_SIDE = 512  # pixels; larger pictures are shrunk
NO_BREAK = "\u00a0"  # a space that a page does not fold into its neighbours
TITLE = 2.1  # inches that the longest title of a filter takes
DIGIT_SIZE = 32  # LeNet-5's input

# The lecture's table: a name, the rows of the filter, and what they are divided by.
FILTERS: dict[str, tuple[list[list[int]], int]] = {
    "identity": ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], 1),
    "edges, diagonal": ([[1, 0, -1], [0, 0, 0], [-1, 0, 1]], 1),
    "edges, four sides": ([[0, 1, 0], [1, -4, 1], [0, 1, 0]], 1),
    "edges, all around": ([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], 1),
    "sharpen": ([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], 1),
    "box blur": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 9),
    "Gaussian blur": ([[1, 2, 1], [2, 4, 2], [1, 2, 1]], 16),
}


class PictureError(ValueError):
    """A file that cannot be read as a picture; the message names it and the reason."""


# ---- pictures -------------------------------------------------------------------------------


def read_picture(path: Path) -> Tensor:
    """(3, height, width) in [0, 1], no side longer than ``LONGEST_SIDE``.

    Any format, mode and orientation that Pillow reads: transparent pixels lie on white, 16-bit
    grey keeps its range, of an animation the first frame counts.

    Raises:
        PictureError: for a file that is missing, no picture, cut short or absurdly large.
    """
    with extra("train"):
        from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
    except FileNotFoundError as error:
        raise PictureError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{path} cannot be read: {error}") from error
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits of grey
        values = np.asarray(picture, dtype=np.float32)
        most = 65535.0 if picture.mode.startswith("I") else max(1.0, float(values.max()))
        grey = Image.fromarray((values / most * 255).clip(0, 255).astype(np.uint8))
        picture = grey.convert("RGB")
    elif picture.has_transparency_data:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    else:
        picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def filtered(picture: Tensor) -> Tensor:
    """(filters, 3, height, width): each of ``FILTERS`` on each colour by itself.

    One depthwise convolution: groups = channels, and as many filters a channel as there are.
    """
    channels = picture.shape[0]
    bank = torch.stack([torch.tensor(rows) / divisor for rows, divisor in FILTERS.values()])
    weight = bank.repeat(channels, 1, 1)[:, None].to(picture.device)
    y = functional.conv2d(picture[None], weight, padding=1, groups=channels)
    return y[0].unflatten(0, (channels, len(bank))).transpose(0, 1)


# ---- drawings -------------------------------------------------------------------------------


def _show(axes: Any, values: Tensor, title: str, **how: Any) -> None:
    axes.imshow(values.cpu().numpy(), interpolation="nearest", **how)
    axes.set_title(title, fontsize=9, loc="center")
    axes.set_axis_off()


def filter_grid(picture: Tensor, width: float = 10.0) -> Figure:
    """Each filter's rows above what it makes of ``picture``; ``width`` in inches."""
    results = filtered(picture).clamp(0, 1)
    columns = max(1, min(4, int(width / TITLE)))
    rows = math.ceil(len(FILTERS) / columns)
    side = width / columns
    aspect = min(2.0, max(0.5, picture.shape[1] / picture.shape[2]))
    with mpl.rc_context(svg.STYLE):
        figure = Figure(figsize=(width, rows * (side * aspect + 0.9)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid:
            axes.set_axis_off()
        for axes, (name, (values, divisor)), result in zip(
            grid, FILTERS.items(), results, strict=False
        ):
            lines = [NO_BREAK.join(f"{value:3d}".replace(" ", NO_BREAK) for value in row)
                     for row in values]  # fmt: skip
            head = name if divisor == 1 else f"{name}: 1/{divisor} of"
            _show(axes, result.permute(1, 2, 0), "\n".join([head, *lines]))
            axes.title.set_fontfamily("monospace")
    return figure


def activation_grid(model: nn.Module, x: Tensor, width: float = 10.0) -> Figure:
    """The filters of a network's first layer, and what every layer makes of ``x``.

    ``x`` is (1, channels, height, width). A row of small pictures for each convolution, ReLU
    aside, and for each pool: its maps, at most sixteen.
    """
    most = 16
    maps: list[tuple[str, Tensor]] = [("input", x[0])]
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):

            def keep(_: nn.Module, __: Any, y: Tensor, name: str = name) -> None:
                shown = y[0].relu()  # of a convolution, what its ReLU lets through
                title = f"{name}: {y.shape[1]}x{y.shape[2]}x{y.shape[3]}"
                if y.shape[1] > most:
                    title += f", the first {most} maps"
                maps.append((title, shown))

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            scores = model.eval()(x)
    finally:
        for handle in handles:
            handle.remove()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    seen = f"filters of the first layer: {tuple(first.weight.shape)}"
    maps.insert(1, (seen, first.weight.detach()[:, 0]))
    share = torch_functional.softmax(scores[0], 0)
    with mpl.rc_context(svg.STYLE):
        figure = Figure(
            figsize=(width, (width / most + 0.45) * len(maps) + 0.4), layout="constrained"
        )
        for row, (part, (name, values)) in enumerate(
            zip(figure.subfigures(len(maps), 1, squeeze=False)[:, 0], maps, strict=True)
        ):
            part.suptitle(name, fontsize=9, x=0.01, ha="left")
            cells = part.subplots(1, most, squeeze=False)[0]
            for axes in cells:
                axes.set_axis_off()
            limits = {"vmin": float(values.min()), "vmax": float(values.max())}
            for axes, value in zip(cells, values[:most], strict=False):
                _show(axes, value, "", cmap="gray" if row < 2 else "viridis", **limits)
        figure.supxlabel(
            f"the network says {int(share.argmax())}, with {float(share.max()):.0%}", fontsize=10
        )
    return figure


# ---- the network ----------------------------------------------------------------------------


def as_digit(picture: Tensor) -> Tensor:
    """(1, 1, 32, 32): the picture in grey, bright on dark, standardised as the digits are."""
    grey = picture.mean(0, keepdim=True)[None]
    x = torch_functional.interpolate(grey, size=(DIGIT_SIZE, DIGIT_SIZE), mode="bilinear",
                                     align_corners=False, antialias=True)  # fmt: skip
    if float(x.mean()) > 0.5:  # ink on paper; the digits are light on dark
        x = 1 - x
    return (x - x.mean()) / x.std().clamp(min=1e-3)


def a_digit() -> Tensor:
    """(1, 1, 32, 32): a digit of the test set."""
    from tconv.models.data import load

    x, _ = load("digits").test[0]
    return x[None]


def trained_lenet(weights: Path | None, epochs: int, console: Console) -> nn.Module:
    """LeNet-5 with the weights of ``weights``; without such a file, trained on digits first.

    Raises:
        PictureError: for a file that holds no weights of LeNet-5.
    """
    from tconv.models.command import Backend, build
    from tconv.models.data import load
    from tconv.models.training import Settings, Trainer

    model = build("lenet5", Backend.tconv, 0)
    if weights is not None and weights.exists():
        try:
            model.load_state_dict(torch.load(weights, weights_only=True))
        except Exception as error:
            raise PictureError(f"{weights} holds no weights of LeNet-5: {error}") from error
        return model
    trainer = Trainer(model, load("digits"), (1, 32, 32), Settings(epochs=epochs))
    for epoch in trainer.epochs():
        console.print(f"epoch {epoch.epoch}/{epochs}: test accuracy {epoch.test_accuracy:.1%}")
    if weights is not None:
        torch.save(model.state_dict(), weights)
        console.print(f"weights: {weights}")
    return model


def main(
    image: Annotated[
        Path | None, typer.Argument(help="A picture; by default one of our own, or a digit.")
    ] = None,
    activations: Annotated[
        bool, typer.Option("--activations", help="What each layer of a trained LeNet-5 sees.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to draw: .svg or .png")] = Path("gallery.svg"),
    width: Annotated[float, typer.Option(min=3.0, max=40.0, help="inches")] = 10.0,
    weights: Annotated[
        Path | None, typer.Option(help="LeNet-5's: read, or written after training.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="of training, without weights")] = 3,
) -> None:
    """Draw the lecture's filters on a picture, or the activation maps of a LeNet-5."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        if activations:
            x = a_digit() if image is None else as_digit(read_picture(image))
            figure = activation_grid(trained_lenet(weights, epochs, console), x, width)
        else:
            figure = filter_grid(read_picture(image or PICTURE), width)
        svg.save(figure, out, "a picture through convolutions")
    except (ValueError, ImportError, OSError) as error:
        console.print(str(error), markup=False)
        raise typer.Exit(1) from error
    console.print(f"{out}", markup=False)


if __name__ == "__main__":
    with command_line():
        typer.run(main)
