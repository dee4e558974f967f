"""Tests of ``convert`` on models of every kind: outputs, gradients, state, report."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tconv
from tconv.launch import recorded
from tests.devices import DEVICE


def conv_bn_relu(inputs: int, outputs: int, **window: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **window),  # type: ignore[arg-type]
            nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]  # fmt: skip


def vgg() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1),
              nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]  # fmt: skip
    return nn.Sequential(nn.Sequential(*layers), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 5))


def vgg_bn() -> nn.Module:
    return nn.Sequential(*conv_bn_relu(3, 8), *conv_bn_relu(8, 8), nn.MaxPool2d(2), nn.Flatten())


class Residual(nn.Module):
    """ResNet's basic block, which uses its ReLU twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(3, 6, 1, 2, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.down(x))


class Inverted(nn.Module):
    """MobileNetV2's block: expansion, depthwise convolution, projection, with ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 3, 1, bias=False), nn.BatchNorm2d(3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


def resnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(),
                         nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU())  # fmt: skip


class Shared(nn.Module):
    """A network that calls one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(self.conv(x)))  # type: ignore[no-any-return]


class Untraceable(nn.Module):
    """A network whose control flow depends on values, and that uses a chain's inner result."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return self.features(x).mean() + self.features[0](x).mean()  # type: ignore[no-any-return]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg, "vgg_bn": vgg_bn, "resnet": Residual, "mobilenet_v2": Inverted,
    "resnext": resnext, "shared": Shared, "untraceable": Untraceable, "functional": Functional,
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]().to(DEVICE, torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
    return model, torch.randn(2, 3, 12, 12, dtype=torch.float64, device=DEVICE)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_state_equal_torchs(name: str, training: bool) -> None:
    theirs, x = made(name)
    theirs.train(training)
    ours = copy.deepcopy(theirs)
    parameters = dict(ours.named_parameters())
    report = tconv.convert(ours)
    assert report.model is ours
    assert dict(ours.named_parameters()) == parameters  # the same objects
    assert [m.training for m in ours.modules()] == [m.training for m in theirs.modules()]
    with recorded() as log:
        y = ours(x)
    assert log  # our kernels ran
    expected = theirs(x)
    assert_close(y, expected)
    gradients = [torch.autograd.grad(out.square().sum(), list(model.parameters()))
                 for out, model in ((y, ours), (expected, theirs))]  # fmt: skip
    for got, wanted in zip(*gradients, strict=True):
        assert_close(got, wanted, rtol=1e-6, atol=1e-8)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert_close(ours.eval()(x), theirs.eval()(x))
        assert_close(ours.train()(x), theirs.train()(x))


def test_copies_and_pickles() -> None:
    model, x = made("vgg_bn")
    tconv.convert(model.eval())
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is tconv.Conv2d
        assert_close(other(x), expected)


def test_hooks_are_kept_and_see_the_same_values() -> None:
    model, x = made("vgg")
    twin = copy.deepcopy(model)
    seen: list[list[Tensor]] = [[], []]
    for either, log in zip((model, twin), seen, strict=True):
        either[0][0].register_forward_hook(lambda m, args, out, log=log: log.append(out.detach()))
        either[0][3].register_forward_hook(lambda m, args, out, log=log: log.append(out.clone()))
    tconv.convert(model)
    assert_close(model(x), twin(x))
    assert len(seen[0]) == 2
    assert_close(*seen)


def test_a_scripted_part_is_left() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), scripted).to(DEVICE)
    x = torch.randn(1, 3, 8, 8, device=DEVICE)
    expected = model(x)
    report = tconv.convert(model)
    assert_close(model(x), expected)
    assert [(entry.name, entry.note) for entry in report.left] == [
        ("2", "it is scripted: its code is fixed")
    ]


class Special(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.ConvTranspose3d(3, 4, 3), "three dimensions"),
        (nn.Conv3d(3, 4, 3), "three dimensions"),
        (nn.LPPool2d(2, 2), "no kernel here"),
        (nn.Conv2d(3, 4, 3, dtype=torch.complex64), "complex64"),
        (Special(3, 4, 3), "subclass"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_unsupported_modules_are_left_and_named(module: nn.Module, reason: str) -> None:
    kind = type(module)
    report = tconv.convert(nn.Sequential(nn.Identity(), module))
    assert type(module) is kind
    assert not report.changed
    assert [entry.name for entry in report.left] == ["1"]
    assert reason in report.left[0].note


WIDER: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "ConvTranspose2d": (nn.ConvTranspose2d(3, 4, 3, 2, output_padding=1), (2, 3, 5, 4)),
    "Conv1d": (nn.Conv1d(3, 4, 3, padding=2, padding_mode="reflect"), (2, 3, 9)),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 4, 3, 2), (2, 3, 9)),
    "LazyConv2d": (nn.LazyConv2d(4, 3), (2, 3, 5, 4)),
    "LazyConv1d": (nn.LazyConv1d(4, 3, padding="same"), (2, 3, 9)),
    "LazyConvTranspose2d": (nn.LazyConvTranspose2d(4, 3, groups=1), (2, 3, 5, 4)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((1, None)), (2, 3, 5, 4)),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d(2), (2, 3, 5, 4)),
    "MaxPool1d": (nn.MaxPool1d(3, 2, 1), (2, 3, 9)),
    "AvgPool1d": (nn.AvgPool1d(3, 2, 1), (2, 3, 9)),
    "LazyConvTranspose1d": (nn.LazyConvTranspose1d(4, 3), (2, 3, 9)),
}


@pytest.mark.parametrize("name", WIDER)
def test_every_kind_is_converted(name: str) -> None:
    """State and results equal torch's; a lazy module is converted at its first call."""
    theirs, size = WIDER[name]
    ours = copy.deepcopy(theirs)
    assert str(tconv.convert(ours)).endswith(f"(the model): {name}")
    x = torch.randn(size, device=DEVICE)
    ours, theirs = ours.to(DEVICE), copy.deepcopy(theirs).to(DEVICE)
    with recorded() as log:
        ours(x)  # our kernels compute a lazy module's first call too
    assert log
    theirs(x)
    assert type(ours) is getattr(tconv, name.removeprefix("Lazy"))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_a_quantised_convolution_is_left() -> None:
    module = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    report = tconv.convert(nn.Sequential(module))
    assert report.left[0].note == "Conv2d computes in integers"


def test_a_model_without_convolutions_is_unchanged() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    report = tconv.convert(model)
    assert report.model is model
    assert type(model[0]) is nn.Linear
    assert str(report).startswith("nothing to convert")


def test_a_single_module_and_a_non_module() -> None:
    conv = nn.Conv2d(3, 4, 3)
    assert "(the model): Conv2d" in str(tconv.convert(conv))
    assert type(conv) is tconv.Conv2d
    assert not tconv.convert(conv).changed  # a second call changes nothing
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not str"):
        tconv.convert("model")  # type: ignore[arg-type]
