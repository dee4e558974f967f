"""The networks have the sizes that the lecture and torchvision give them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tconv
from tconv.geometry import ConvGeometry
from tconv.models import BUILDERS, INPUT_VOLUMES, conv_layers, lenet5, torch_twin, vgg16

LENET_PARAMETERS = {"c1": 156, "c3": 2416, "c5": 48120, "f6": 10164, "output": 850}
# Filters, and the side of the input, of VGG-16's convolutions; keys as in torchvision.
VGG_LAYERS = {
    0: (64, 224),
    2: (64, 224),
    5: (128, 112),
    7: (128, 112),
    10: (256, 56),
    12: (256, 56),
    14: (256, 56),
    17: (512, 28),
    19: (512, 28),
    21: (512, 28),
    24: (512, 14),
    26: (512, 14),
    28: (512, 14),
}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("layer", LENET_PARAMETERS)
def test_lenet5_layer_has_the_lectures_parameters(layer: str) -> None:
    assert parameters(lenet5().get_submodule(layer)) == LENET_PARAMETERS[layer]


def test_lenet5_as_a_whole() -> None:
    model = lenet5(num_classes=7)
    assert parameters(model) == 61706 - 3 * 85
    assert isinstance(model.c1, tconv.Conv2d)
    assert isinstance(model.s2, tconv.MaxPool2d)
    assert torch_twin(model)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_vgg16_has_torchvisions_parameters_and_keys() -> None:
    with torch.device("meta"):
        model = vgg16()
    assert parameters(model) == 138_357_544
    names = [f"features.{index}" for index in VGG_LAYERS]
    names += [f"classifier.{index}" for index in (0, 3, 6)]
    keys = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert list(model.state_dict()) == keys
    assert model.features[28].weight.shape == (512, 512, 3, 3)


def test_conv_layers_of_lenet5() -> None:
    assert conv_layers(lenet5(), (64, 1, 32, 32)) == [
        ("c1", ConvGeometry(64, 1, 32, 32, 6, 5, 5)),
        ("c3", ConvGeometry(64, 6, 14, 14, 16, 5, 5)),
        ("c5", ConvGeometry(64, 16, 5, 5, 120, 5, 5)),
    ]


def test_conv_layers_of_vgg16() -> None:
    with torch.device("meta"):
        model = vgg16()
    expected, in_channels = [], 3
    for index, (filters, side) in VGG_LAYERS.items():
        shape = ConvGeometry(8, in_channels, side, side, filters, 3, 3, pad_h=1, pad_w=1)
        expected.append((f"features.{index}", shape))
        in_channels = filters
    assert conv_layers(model, (8, 3, 224, 224)) == expected


def test_conv_layers_sees_torchs_own_and_repeated_and_same_padded_layers() -> None:
    shared = nn.Conv2d(4, 4, (3, 2), padding="same", groups=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, dilation=2), shared, nn.ReLU(), shared)
    (_, first), (name, second), third = conv_layers(model, (2, 3, 17, 18))
    assert first == ConvGeometry(2, 3, 17, 18, 4, 3, 3, 2, 2, dilation_h=2, dilation_w=2)
    # Even extents need one column more on the right; torch pads it before the convolution.
    assert (second.out_h, second.out_w, second.groups) == (first.out_h, first.out_w, 2)
    assert third == (name, second)


def test_conv_layers_leaves_the_model_alone() -> None:
    model = lenet5()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    conv_layers(model, (1, 1, 32, 32))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_torch_twin_holds_no_module_of_ours_and_the_same_weights() -> None:
    model = lenet5()
    twin = torch_twin(model)
    theirs, ours = twin.get_submodule("c3"), model.get_submodule("c3")
    assert type(theirs) is nn.Conv2d
    assert type(ours) is tconv.Conv2d
    assert type(twin.get_submodule("s2")) is nn.MaxPool2d
    assert list(twin.state_dict()) == list(model.state_dict())
    assert torch.equal(theirs.weight, ours.weight)
    assert theirs.weight is not ours.weight


def test_every_builder_names_its_input_volume() -> None:
    assert BUILDERS.keys() == INPUT_VOLUMES.keys()
