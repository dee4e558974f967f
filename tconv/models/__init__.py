"""Networks built of our modules, and what the tuner needs to know of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tconv.models.lenet import lenet5
from tconv.models.trace import conv_layers, torch_twin
from tconv.models.vgg import vgg16

BUILDERS: dict[str, Callable[..., nn.Module]] = {"lenet5": lenet5, "vgg16": vgg16}

# The volume each network was designed for: channels, height, width.
INPUT_VOLUMES: dict[str, tuple[int, int, int]] = {"lenet5": (1, 32, 32), "vgg16": (3, 224, 224)}

__all__ = ["BUILDERS", "INPUT_VOLUMES", "conv_layers", "lenet5", "torch_twin", "vgg16"]
