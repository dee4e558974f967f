"""LeNet-5: as LeCun et al. described it in 1998, and as it is built today."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tconv.models.registry import network
from tconv.modules import Conv2d, MaxPool2d, Subsample2d

C3Way = Literal["direct", "aggregated", "full", "table"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}

# Table I of the paper: the maps of S2 that each map of C3 sees. Three neighbours, four
# neighbours, two and two, and at last all six.
C3_TABLE = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (4, 5, 0),
    (5, 0, 1),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (3, 4, 5, 0),
    (4, 5, 0, 1),
    (5, 0, 1, 2),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)


class _ByTable:
    """Mixin that gives a convolution module a connection table: see ``TableConv2d``."""

    place: Tensor  # of each kept weight plane among out_channels x in_channels

    def __init__(self, in_channels: int, table: Sequence[Sequence[int]], kernel_size: int) -> None:
        for filter, seen in enumerate(table):
            if not seen or len(set(seen)) < len(seen):
                raise ValueError(f"filter {filter} sees channels {list(seen)}: each once, not none")
            if not all(0 <= channel < in_channels for channel in seen):
                raise ValueError(f"filter {filter} sees {list(seen)} of {in_channels} channels")
        super().__init__(in_channels, len(table), kernel_size)  # type: ignore[call-arg]
        pairs = [filter * in_channels + channel
                 for filter, seen in enumerate(table) for channel in seen]  # fmt: skip
        self.register_buffer("place", torch.tensor(pairs), persistent=False)  # type: ignore[attr-defined]
        # Drawn as torch draws a filter's weights: uniform within 1/sqrt(its inputs).
        spread = [(len(seen) * kernel_size**2) ** -0.5 for seen in table for _ in seen]
        drawn = 2 * torch.rand(len(pairs), kernel_size, kernel_size) - 1
        self.weight = nn.Parameter(drawn * torch.tensor(spread)[:, None, None])

    def dense_weight(self) -> Tensor:
        """(filters, in_channels, F, F), zero where a filter does not see a channel."""
        filters, channels = self.out_channels, self.in_channels  # type: ignore[attr-defined]
        extent = self.weight.shape[1:]
        flat = self.weight.new_zeros(filters * channels, *extent)
        return flat.index_copy(0, self.place, self.weight).view(filters, channels, *extent)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.dense_weight(), self.bias)  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        pairs = f"{len(self.weight)} of {self.in_channels * self.out_channels} pairs"  # type: ignore[attr-defined]
        return f"{super().extra_repr()}, {pairs}"  # type: ignore[misc]


class TableConv2d(_ByTable, Conv2d):  # type: ignore[misc]
    """A convolution in which each filter sees the channels that a table gives it.

        y[n, k] = bias[k] + sum over c in table[k] of x[n, c] * w[k, c]

    Only the weights that the table names exist: ``weight`` is (pairs, F, F), in the table's order.
    They are laid out among zeros and one dense kernel runs: on a few channels that costs less than
    gathering them. So an infinity in a channel that a filter does not see makes a NaN of its sum
    (zero times infinity), as with masked weights.

    Args:
        in_channels: of the input.
        table: for each filter the channels it sees, each once.
        kernel_size: F, the extent of a filter.

    Raises:
        ValueError: for a filter that sees nothing, a channel twice, or one that does not exist.

    >>> layer = TableConv2d(6, C3_TABLE, 5)
    >>> layer(torch.zeros(1, 6, 14, 14)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([1, 16, 10, 10]), 1516)
    """


class TorchTableConv2d(_ByTable, nn.Conv2d):  # type: ignore[misc]
    """``TableConv2d`` on torch's own convolution, to compare with."""


class Copied(nn.Module):
    """Maps copied where they grow, taken at intervals where they shrink: map j is map jC/K.

    >>> Copied(6, 16).source.tolist()
    [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5]
    """

    source: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        source = torch.arange(out_channels) * in_channels // out_channels
        self.register_buffer("source", source, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return input.index_select(1, self.source)


def c3_layer(way: C3Way) -> tuple[nn.Module, int]:
    """C3, six maps to sixteen filters, and how many maps it yields.

    direct
        Each filter sees one map, maps being copied to sixteen: a convolution in sixteen groups.
    aggregated
        Each filter sums over all six maps: today's convolution, one dense kernel.
    full
        Each map with sixteen filters of its own, not summed: depthwise, channel multiplier 16.
    table
        The paper's: each filter sums over the maps that ``C3_TABLE`` gives it.

    Raises:
        ValueError: for another way.
    """
    if way == "direct":
        steps = OrderedDict(copied=Copied(6, 16), conv=Conv2d(16, 16, 5, groups=16))
        return nn.Sequential(steps), 16
    if way == "aggregated":
        return Conv2d(6, 16, 5), 16
    if way == "full":
        return Conv2d(6, 6 * 16, 5, groups=6), 6 * 16
    if way == "table":
        return TableConv2d(6, C3_TABLE, 5), 16
    raise ValueError(f"c3 is {way!r}; there are: direct, aggregated, full, table")


@network((1, 32, 32))
def lenet5_1998(
    num_classes: int = 10, activation: str = "tanh", c3: C3Way = "table"
) -> nn.Sequential:
    """LeNet-5 of LeCun, Bottou, Bengio and Haffner (1998), with a linear output layer.

    From (batch, 1, 32, 32) to (batch, num_classes) scores. Output volumes, trainable parameters
    and connections, with the paper's table for C3:

        C1  6 filters 5x5          6x28x28     156      122,304
        S2  mean of 2x2, w and b   6x14x14     12       5,880
        C3  16 filters 5x5, table  16x10x10    1,516    151,600
        S4  mean of 2x2, w and b   16x5x5      32       2,000
        C5  120 filters 5x5        120x1x1     48,120   48,120
        F6  84                     84          10,164   10,164

    Args:
        num_classes: scores of an image.
        activation: ``tanh`` or ``sigmoid``, after every C and F layer.
        c3: how C3 links its maps, see ``c3_layer``.

    Raises:
        ValueError: for an activation or a way that does not exist.

    >>> model = lenet5_1998()
    >>> [sum(p.numel() for p in model.get_submodule(name).parameters())
    ...  for name in ("c1", "s2", "c3", "s4", "c5", "f6")]
    [156, 12, 1516, 32, 48120, 10164]
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; there are: {', '.join(ACTIVATIONS)}")
    between, (linked, maps) = ACTIVATIONS[activation], c3_layer(c3)
    layers: list[tuple[str, nn.Module]] = [
        ("c1", Conv2d(1, 6, 5)),
        ("act1", between()),
        ("s2", Subsample2d(6)),
        ("c3", linked),
        ("act3", between()),
        ("s4", Subsample2d(maps)),
        ("c5", Conv2d(maps, 120, 5)),
        ("act5", between()),
        ("flatten", nn.Flatten()),
        ("f6", nn.Linear(120, 84)),
        ("act6", between()),
        ("output", nn.Linear(84, num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


@network((1, 32, 32))
def lenet5(num_classes: int = 10, c3: C3Way = "aggregated") -> nn.Sequential:
    """LeNet-5 as it is built today: max-pool, ReLU, and a C3 that sees all six maps.

    From (batch, 1, 32, 32) to (batch, num_classes) scores. Output volumes and parameters:

        C1  6 filters 5x5    6x28x28     156    S2  2x2 max-pool  6x14x14
        C3  16 filters 5x5   16x10x10    2,416  S4  2x2 max-pool  16x5x5
        C5  120 filters 5x5  120x1x1     48,120
        F6  84               84          10,164
        output               10          850

    Args:
        num_classes: scores of an image.
        c3: how C3 links its maps, see ``c3_layer``.

    >>> sum(parameter.numel() for parameter in lenet5().parameters())
    61706
    """
    linked, maps = c3_layer(c3)
    layers: list[tuple[str, nn.Module]] = [
        ("c1", Conv2d(1, 6, 5)),
        ("relu1", nn.ReLU()),
        ("s2", MaxPool2d(2)),
        ("c3", linked),
        ("relu3", nn.ReLU()),
        ("s4", MaxPool2d(2)),
        ("c5", Conv2d(maps, 120, 5)),
        ("relu5", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("f6", nn.Linear(120, 84)),
        ("relu6", nn.ReLU()),
        ("output", nn.Linear(84, num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
