"""Summary of a network by layer: volumes, parameters, connections, work, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tconv.extras import extra
from tconv.models.lenet import TableConv2d
from tconv.models.registry import INPUT_VOLUMES, network_name
from tconv.models.trace import geometry_of, on_meta
from tconv.modules import Subsample2d

if TYPE_CHECKING:
    from rich.console import Console

UNFOLDED = 140  # columns
FLOP_PREFIX = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Row:
    """One call of one layer, for one batch."""

    name: str
    kind: str
    hyperparameters: str  # the lecture's K, F, S, P; empty for layers that have none
    output_volume: str  # channels x height x width, of one image
    parameters: int  # trainable; counted at the layer's first call
    connections: int  # an image: products, and one for each bias that is added
    flops: int  # a batch: a product and its sum are two
    activation_bytes: int  # a batch, of the output, where it takes memory of its own


@dataclass(frozen=True)
class Summary:
    """A network's layers in the order of their calls."""

    network: str
    input_volume: str
    batch: int
    dtype: str
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def connections(self) -> int:
        return sum(row.connections for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        return sum(row.activation_bytes for row in self.rows)


def summary(
    model: nn.Module,
    input_volume: tuple[int, int, int] | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Summary:
    """Layers of ``model`` and the resources of each; computes nothing, changes no model.

    A convolution's output is ``(W - F + 2P)/S + 1`` wide. FLOPs are those of the forward pass:
    two for each product of a convolution or a fully connected layer, one for each element that
    another layer writes and each element of a pool's window.

    Args:
        model: any module that takes one tensor.
        input_volume: channels, height, width of an image; None for a network of ours takes the
            one that it was designed for.
        batch: images at a time.
        dtype: of the activations.

    Raises:
        ValueError: where the input volume is not known, or does not fit the model.

    >>> from tconv.models import lenet5_1998
    >>> found = summary(lenet5_1998())
    >>> [(row.name, row.output_volume, row.connections) for row in found.rows][:3]
    [('c1', '6x28x28', 122304), ('act1', '6x28x28', 0), ('s2', '6x14x14', 5880)]
    """
    volume = input_volume or _designed_for(model)
    ghost = on_meta(model).eval()
    rows: list[Row] = []
    counted: set[int] = set()
    for name, module in ghost.named_modules():
        if not list(module.children()):
            module.register_forward_hook(_noting(name or type(module).__name__, rows, counted))
    own = next((p.dtype for p in ghost.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            ghost(torch.empty((batch, *volume), device="meta", dtype=own))
    except (RuntimeError, ValueError) as error:
        shown = "x".join(map(str, volume))
        raise ValueError(f"{_name(model)} does not take {shown}: {error}") from error
    item = torch.empty((), dtype=dtype).element_size()
    sized = tuple(_with_bytes(row, item) for row in rows)
    shown = "x".join(map(str, volume))
    return Summary(_name(model), shown, batch, str(dtype).removeprefix("torch."), sized)


def _name(model: nn.Module) -> str:
    return network_name(model) or type(model).__name__


def _designed_for(model: nn.Module) -> tuple[int, int, int]:
    name = network_name(model)
    if name is None:
        raise ValueError(
            f"{type(model).__name__} is not a network of tconv.models: give input_volume, as in "
            "summary(model, (3, 224, 224))"
        )
    return INPUT_VOLUMES[name]


def _with_bytes(row: Row, itemsize: int) -> Row:
    return Row(**{**row.__dict__, "activation_bytes": row.activation_bytes * itemsize})


def _noting(name: str, rows: list[Row], counted: set[int]) -> Callable[..., None]:
    """A hook that adds a row; ``activation_bytes`` counts elements until the end."""

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not isinstance(inputs[0], Tensor):
            return
        batch = output.shape[0]
        own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, own))
        connections, flops = _work(module, inputs[0], output)
        viewing = isinstance(module, (nn.Flatten, nn.Dropout, nn.Identity))  # in evaluation mode
        in_place = viewing or bool(getattr(module, "inplace", False))
        rows.append(
            Row(
                name=name,
                kind=type(module).__name__,
                hyperparameters=_hyperparameters(module),
                output_volume="x".join(map(str, output.shape[1:])),
                parameters=sum(p.numel() for p in own if p.requires_grad),
                connections=connections // batch,
                flops=0 if viewing else flops,
                activation_bytes=0 if in_place else output.numel(),
            )
        )

    return note


def _work(module: nn.Module, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Connections and FLOPs of a call."""
    if isinstance(module, nn.Conv2d):
        shape = geometry_of(module, tuple(x.shape))
        biased = y.numel() if module.bias is not None else 0
        if isinstance(module, TableConv2d):  # only the pairs that are linked
            pixels = y.numel() // y.shape[1]
            return pixels * module.weight.numel() + biased, shape.flops + biased
        return shape.flops // 2 + biased, shape.flops + biased
    if isinstance(module, nn.Linear):
        products = y.numel() * module.in_features
        biased = y.numel() if module.bias is not None else 0
        return products + biased, 2 * products + biased
    if isinstance(module, Subsample2d):
        window = module.kernel_size**2
        return y.numel() * (window + 1), y.numel() * (window + 2)
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        high, wide = _pair(module.kernel_size)
        return y.numel() * high * wide, y.numel() * high * wide
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return 0, x.numel()
    return 0, y.numel()


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)


def _shortest(value: Any) -> str:
    """``3`` for (3, 3), ``3x5`` for (3, 5)."""
    if isinstance(value, str):
        return value
    first, second = _pair(value)
    return str(first) if first == second else f"{first}x{second}"


def _hyperparameters(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        size = f"K={module.out_channels} F={_shortest(module.kernel_size)}"
        window = f"S={_shortest(module.stride)} P={_shortest(module.padding)}"
        return f"{size} {window}" + (f" g={module.groups}" if module.groups > 1 else "")
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        return f"F={_shortest(module.kernel_size)} S={_shortest(module.stride)}"
    if isinstance(module, Subsample2d):
        return f"F={module.kernel_size} S={module.kernel_size}"
    return ""


def scaled(value: float) -> str:
    """``value`` with three digits and a prefix.

    >>> scaled(30_940_000_000), scaled(12)
    ('30.9 G', '12')
    """
    for factor, prefix in FLOP_PREFIX:
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.0f}"


def describe(
    model: nn.Module,
    input_volume: tuple[int, int, int] | None = None,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    console: Console | None = None,
) -> None:
    """Print ``summary``: of each layer its output volume, parameters, connections, FLOPs, memory.

    >>> from rich.console import Console
    >>> from tconv.models import lenet5_1998
    >>> describe(lenet5_1998(), console=Console(width=100))  # doctest: +ELLIPSIS
    lenet5_1998, input 1x32x32, batch 1, float32
    ...
    """
    with extra("train"):
        from rich.console import Console
        from rich.table import Table
    found = summary(model, input_volume, batch, dtype)
    if console is None:
        console = Console()
        if not console.is_terminal:  # into a file: a row is not folded
            console = Console(width=UNFOLDED)
    console.print(
        f"{found.network}, input {found.input_volume}, batch {found.batch}, {found.dtype}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "kind", "K, F, S, P", "output volume"):
        table.add_column(heading, no_wrap=True)
    for heading in ("parameters", "connections", "FLOPs", "activations, MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(
            row.name,
            row.kind,
            row.hyperparameters,
            row.output_volume,
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.connections:,}" if row.connections else "",
            scaled(row.flops) if row.flops else "",
            f"{row.activation_bytes / 2**20:.3g}" if row.activation_bytes else "",
        )
    table.add_section()
    memory = f"{found.activation_bytes / 2**20:.3g}"
    sums = (f"{found.parameters:,}", f"{found.connections:,}", scaled(found.flops), memory)
    table.add_row("in all", "", "", "", *sums)
    console.print(table)
