"""Networks built from the library's modules, and the inputs that the tuner reads layers from."""

from __future__ import annotations

from tconv.models.alexnet import alexnet, alexnet_2012
from tconv.models.convnetjs import convnetjs_cifar10
from tconv.models.layers import Summary, describe, summary
from tconv.models.lenet import lenet5, lenet5_1998
from tconv.models.mobilenet import mobilenet_v2
from tconv.models.registry import BUILDERS, INPUT_VOLUMES
from tconv.models.resnet import resnet50
from tconv.models.trace import conv_layers, torch_twin, traced
from tconv.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

__all__ = [
    "BUILDERS",
    "INPUT_VOLUMES",
    "Summary",
    "alexnet",
    "alexnet_2012",
    "conv_layers",
    "convnetjs_cifar10",
    "describe",
    "lenet5",
    "lenet5_1998",
    "mobilenet_v2",
    "resnet50",
    "summary",
    "torch_twin",
    "traced",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]
