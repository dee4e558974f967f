"""Tests that the networks have the sizes given by the lecture and by torchvision."""

from __future__ import annotations

import io
import re

import pytest
import torch
import typer
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

import tconv
from tconv.geometry import ConvGeometry
from tconv.launch import interpreting, recorded
from tconv.models import (
    BUILDERS,
    INPUT_VOLUMES,
    conv_layers,
    describe,
    lenet5,
    lenet5_1998,
    summary,
    torch_twin,
    vgg16,
)
from tconv.models import __main__ as command
from tconv.models.lenet import C3_TABLE, TableConv2d

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


def test_lenet5_has_the_papers_parameters() -> None:
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


def test_conv_layers_finds_torchs_own_and_repeated_and_same_padded_layers() -> None:
    shared = nn.Conv2d(4, 4, (3, 2), padding="same", groups=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, dilation=2), shared, nn.ReLU(), shared)
    (_, first), (name, second), third = conv_layers(model, (2, 3, 17, 18))
    assert first == ConvGeometry(2, 3, 17, 18, 4, 3, 3, 2, 2, dilation_h=2, dilation_w=2)
    # Even extents need one column more on the right; torch pads it before the convolution.
    assert (second.out_h, second.out_w, second.groups) == (first.out_h, first.out_w, 2)
    assert third == (name, second)


def test_conv_layers_leaves_the_model_unchanged() -> None:
    model = lenet5()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    conv_layers(model, (1, 1, 32, 32))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_torch_twin_has_only_torchs_modules_and_the_same_weights() -> None:
    model = lenet5()
    twin = torch_twin(model)
    theirs, ours = twin.get_submodule("c3"), model.get_submodule("c3")
    assert type(theirs) is nn.Conv2d
    assert type(ours) is tconv.Conv2d
    assert type(twin.get_submodule("s2")) is nn.MaxPool2d
    assert list(twin.state_dict()) == list(model.state_dict())
    assert torch.equal(theirs.weight, ours.weight)
    assert theirs.weight is not ours.weight


# Parameters and FLOPs of one image's forward pass; torchvision's, where it has the network.
SIZES = {
    "alexnet": (61_100_840, 1.43e9),
    "alexnet_2012": (60_965_224, 1.45e9),
    "convnetjs_cifar10": (22_466, 7.9e6),
    "lenet5": (61_706, 0.85e6),
    "lenet5_1998": (60_850, 0.85e6),
    "mobilenet_v2": (3_504_872, 0.62e9),
    "resnet50": (25_557_032, 8.2e9),
    "vgg11": (132_863_336, 15.2e9),
    "vgg11_bn": (132_868_840, 15.2e9),
    "vgg13": (133_047_848, 22.6e9),
    "vgg13_bn": (133_053_736, 22.7e9),
    "vgg16": (138_357_544, 31.0e9),
    "vgg16_bn": (138_365_992, 31.0e9),
    "vgg19": (143_667_240, 39.3e9),
    "vgg19_bn": (143_678_248, 39.3e9),
}
# The first, a middle and the last of torchvision's keys, and their number.
KEYS = {
    "alexnet": (16, "features.0.weight", "classifier.1.weight", "classifier.6.bias"),
    "mobilenet_v2": (314, "features.0.0.weight", "features.2.conv.3.weight", "classifier.1.bias"),
    "resnet50": (320, "conv1.weight", "layer2.0.downsample.1.running_var", "fc.bias"),
    "vgg11": (22, "features.0.weight", "features.18.bias", "classifier.6.bias"),
    "vgg19_bn": (118, "features.0.weight", "features.50.running_mean", "classifier.6.bias"),
}
# The lecture's table: output volume, parameters, connections.
LECTURE = {
    "c1": ("6x28x28", 156, 122_304),
    "s2": ("6x14x14", 12, 5_880),
    "c3": ("16x10x10", 1_516, 151_600),
    "s4": ("16x5x5", 32, 2_000),
    "c5": ("120x1x1", 48_120, 48_120),
    "f6": ("84", 10_164, 10_164),
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return BUILDERS[name]()


def test_sizes_are_listed_for_all_networks() -> None:
    assert SIZES.keys() == BUILDERS.keys() == INPUT_VOLUMES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_work(name: str) -> None:
    found = summary(on_meta(name), batch=3)
    expected, flops = SIZES[name]
    assert found.parameters == parameters(on_meta(name)) == expected
    assert found.flops == pytest.approx(3 * flops, rel=0.03)
    assert found.rows[-1].output_volume in ("10", "1000")
    assert (found.network, found.batch) == (name, 3)


@pytest.mark.parametrize("name", KEYS)
def test_torchvisions_weights_would_load(name: str) -> None:
    count, *some = KEYS[name]
    keys = list(on_meta(name).state_dict())
    assert len(keys) == count
    assert (keys[0], keys[-1]) == (some[0], some[2])
    assert some[1] in keys


@pytest.mark.parametrize("name", ["alexnet", "resnet50", "vgg13_bn", "mobilenet_v2"])
def test_weights_and_results_are_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    theirs = getattr(models, name)(num_classes=7).eval()
    ours = BUILDERS[name](num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch_twin(ours)(x), theirs(x))


def test_lenet5_1998_is_the_lectures() -> None:
    rows = {row.name: row for row in summary(lenet5_1998()).rows}
    for name, expected in LECTURE.items():
        row = rows[name]
        assert (row.output_volume, row.parameters, row.connections) == expected
    assert {rows[name].kind for name in ("act1", "act3", "act5", "act6")} == {"Tanh"}
    kinds = {row.kind for row in summary(lenet5_1998(activation="sigmoid")).rows}
    assert "Sigmoid" in kinds


def test_the_command_describes_a_network() -> None:
    run = CliRunner(env={"COLUMNS": "140"}).invoke
    app = typer.Typer()
    app.command()(command.main)
    done = run(app, ["lenet5_1998", "--batch", "2"])
    assert done.exit_code == 0
    assert "122,304" in done.output  # C1's connections
    for wrong, words in (["lenet6"], "lenet5_1998"), (["lenet5", "--dtype", "float8"], "bfloat16"):
        refused = run(app, wrong)
        assert refused.exit_code == 2
        assert words in refused.output


def test_describe_prints_the_lectures_table() -> None:
    text = io.StringIO()
    describe(lenet5_1998(), console=Console(file=text, width=140))
    for name, (volume, count, connections) in LECTURE.items():
        pattern = rf"{name} .*{volume} +{count:,} +{connections:,} "
        assert re.search(pattern, text.getvalue()), (pattern, text.getvalue())


def test_summary_of_any_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 5, padding=2), nn.ReLU(inplace=True))
    with pytest.raises(ValueError, match="input_volume"):
        summary(model)
    found = summary(model, (3, 32, 32), batch=2, dtype=torch.float16)
    conv, relu = found.rows
    assert (conv.hyperparameters, conv.output_volume) == ("K=10 F=5 S=1 P=2", "10x32x32")
    assert (conv.parameters, conv.connections) == (760, 76 * 32 * 32 * 10)
    assert (conv.activation_bytes, relu.activation_bytes) == (2 * 2 * 10 * 32 * 32, 0)
    with pytest.raises(ValueError, match="does not take 4x32x32"):
        summary(model, (4, 32, 32))
    tied = nn.Sequential(shared := nn.Conv2d(3, 3, 1), shared)
    assert summary(tied, (3, 4, 4)).parameters == 12  # shared parameters are counted once


def test_the_table_is_the_papers() -> None:
    assert sum(map(len, C3_TABLE)) * 25 + 16 == 1516
    assert [len(seen) for seen in C3_TABLE] == 6 * [3] + 9 * [4] + [6]
    assert len({tuple(sorted(seen)) for seen in C3_TABLE}) == 16
    counts = [sum(channel in seen for seen in C3_TABLE) for channel in range(6)]
    assert counts == 6 * [10]  # each map is used equally often
    with pytest.raises(ValueError, match="filter 1 sees"):
        TableConv2d(3, [(0,), (0, 3)], 5)
    with pytest.raises(ValueError, match="each once"):
        TableConv2d(3, [(1, 1)], 5)


def test_a_filter_sees_only_the_maps_in_its_table() -> None:
    torch.manual_seed(0)
    layer = torch_twin(nn.Sequential(TableConv2d(6, C3_TABLE, 5)))[0]
    x = torch.randn(1, 6, 14, 14)
    y = layer(x)
    for channel in range(6):
        changed = x.clone()
        changed[:, channel] += 1
        moved = (layer(changed) - y).abs().amax((0, 2, 3)) > 1e-6
        assert moved.tolist() == [channel in seen for seen in C3_TABLE]
    layer(x).square().sum().backward()
    assert layer.weight.grad.shape == (60, 5, 5)


# Kernels, parameters and maps for each way to connect six maps to sixteen filters.
WAYS = {
    "direct": (16 * 26, 16),
    "aggregated": (2416, 16),
    "full": (96 * 26, 96),
    "table": (1516, 16),
}


@pytest.mark.parametrize("way", WAYS)
def test_c3s_ways_of_connecting(way: str) -> None:
    count, maps = WAYS[way]
    model = lenet5(c3=way)  # type: ignore[arg-type]
    rows = summary(model).rows
    assert parameters(model.get_submodule("c3")) == count
    assert rows[[row.name for row in rows].index("s4")].output_volume == f"{maps}x5x5"
    if interpreting():
        x = torch.randn(1, 1, 32, 32)
        with recorded() as launches:
            scores = model(x)
        assert len(launches) >= 3
        torch.testing.assert_close(scores, torch_twin(model)(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="direct, aggregated, full, table"):
        lenet5(c3="by hand")  # type: ignore[arg-type]


@pytest.mark.interpreter
def test_lenet5_1998_computes_as_torch_does() -> None:
    model = lenet5_1998()
    twin = torch_twin(model)
    x = torch.randn(2, 1, 32, 32)
    with recorded() as launches:
        scores = model(x)
        scores.square().sum().backward()
    assert sum("fprop" in launch.kernel for launch in launches) >= 5  # C1, S2, C3, S4, C5
    expected = twin(x)
    expected.square().sum().backward()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
