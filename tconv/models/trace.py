"""What a model is made of: its convolution layers, and its twin in torch's own modules."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tconv.aot.plan import shell
from tconv.convert import TWINS
from tconv.geometry import ConvGeometry, PoolGeometry
from tconv.models.lenet import TableConv2d, TorchTableConv2d
from tconv.modules import Subsample2d
from tconv.ops.pool_check import max_pool_arguments, pool_geometry


def conv_layers(
    model: nn.Module, input_shape: tuple[int, int, int, int]
) -> list[tuple[str, ConvGeometry]]:
    """Every call of a Conv2d (ours and torch's), in order, by the module's name.

    A copy of the model runs once on the meta device, so nothing is computed and the model
    stays as it is. A module that is called twice is listed twice. A convolution by a table is
    listed as the dense one that it runs as.

    Args:
        model: any module that takes one tensor.
        input_shape: (batch, channels, height, width).
    """
    found = traced(model, input_shape)
    return [(name, shape) for name, shape in found if isinstance(shape, ConvGeometry)]


def traced(
    model: nn.Module, input_shape: tuple[int, int, int, int]
) -> list[tuple[str, ConvGeometry | PoolGeometry]]:
    """Every call of a Conv2d and of a MaxPool2d, in order, as ``conv_layers`` lists the former."""
    ghost = on_meta(model).eval()
    layers: list[tuple[str, ConvGeometry | PoolGeometry]] = []

    def watch(name: str, module: nn.Conv2d | nn.MaxPool2d) -> None:
        def note(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            shape = tuple(arguments[0].shape)
            if isinstance(module, nn.Conv2d):
                layers.append((name, geometry_of(module, shape)))
            else:
                layers.append((name, _pool_geometry(module, shape)))

        module.register_forward_pre_hook(note)

    for name, module in ghost.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            watch(name, module)
    dtype = next((p.dtype for p in ghost.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        ghost(torch.empty(input_shape, device="meta", dtype=dtype))
    return layers


def on_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes only: VGG-16's half GB is not copied."""
    return shell(model, lambda tensor: torch.empty_like(tensor, device="meta"))


def geometry_of(module: nn.Conv2d, x_shape: tuple[int, ...]) -> ConvGeometry:
    """The layer as computed: padding that is not symmetric zeros happens before it."""
    batched = (1, *x_shape) if len(x_shape) == 3 else x_shape
    left, right, top, bottom = module._reversed_padding_repeated_twice
    pad_h, pad_w = (min(top, bottom), min(left, right))
    if module.padding_mode != "zeros":
        pad_h = pad_w = 0
    in_h = batched[2] + top + bottom - 2 * pad_h
    in_w = batched[3] + left + right - 2 * pad_w
    stride, dilation = module.stride, module.dilation
    return ConvGeometry.from_torch(
        (batched[0], batched[1], in_h, in_w),
        (module.out_channels, module.in_channels // module.groups, *module.kernel_size),
        (stride[0], stride[1]),
        (pad_h, pad_w),
        (dilation[0], dilation[1]),
        module.groups,
    )


def _pool_geometry(module: nn.MaxPool2d, x_shape: tuple[int, ...]) -> PoolGeometry:
    x = torch.empty(x_shape, device="meta")
    numbers = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    return pool_geometry(x_shape, *max_pool_arguments(x, *numbers))


def torch_twin(model: nn.Module) -> nn.Module:
    """A copy with the same weights in which torch's own modules stand where ours stood."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        plain = _plain(module)
        if plain is None:
            continue
        if not name:
            return plain
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, plain)
    return twin


def _plain(module: nn.Module) -> nn.Module | None:
    """torch's module in place of ``module``, with its very parameters; None to leave it."""
    for ours, theirs in TORCHS.items():
        if isinstance(module, ours):
            plain: nn.Module = object.__new__(theirs)
            # Ours are subclasses without state of their own: all of it carries over, hooks too.
            plain.__dict__ = dict(module.__dict__)
            return plain
    return None


class TorchSubsample2d(Subsample2d):
    """``Subsample2d`` on torch's own average-pool, to compare with."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mean = nn.functional.avg_pool2d(input, self.kernel_size)
        return mean * self.weight[:, None, None] + self.bias[:, None, None]


# The first that fits counts, so that a special case stands before the rule.
TORCHS: dict[type[nn.Module], type[nn.Module]] = {
    TableConv2d: TorchTableConv2d,
    Subsample2d: TorchSubsample2d,
    **{ours: theirs for theirs, ours in TWINS.items()},
}
