"""Compiled models of many architectures equal torch's: outputs, gradients, buffers, graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tconv
from tconv.launch import recorded
from tests.tconv.compiler.architectures import ARCHITECTURES

# What the report says of each, in evaluation: every convolution and pool with its links.
EXPECTED = {
    "unet": ["first.0: conv2d + batch_norm + relu", "pool: max_pool2d",
             "second.0: conv2d + batch_norm + relu", "up: conv_transpose2d",
             "last.0: conv2d + batch_norm + relu", "head: conv2d"],
    "dcgan": ["main.0: conv_transpose2d + batch_norm + relu",
              "main.3: conv_transpose2d + batch_norm + relu", "main.6: conv_transpose2d + tanh"],
    "linknet": ["first.0: conv2d + batch_norm + relu", "second.0: conv2d + batch_norm + relu",
                "narrow.0: conv2d + batch_norm + relu",
                "full: conv_transpose2d + batch_norm + relu + add", "wide.0: conv2d + batch_norm",
                "up.0: conv_transpose2d + batch_norm + add + relu", "last: conv_transpose2d"],
    "wave_decoder": ["up: conv_transpose1d + batch_norm + leaky_relu",
                     "block: conv1d + batch_norm + add + silu", "gate: conv1d + tanh + add"],
    "convnext_block": ["stem: conv2d", "depthwise: conv2d"],
    "mbconv_se": ["expand.0: conv2d + batch_norm + silu", "depthwise.0: conv2d + batch_norm + silu",
                  "adaptive_avg_pool2d: adaptive_avg_pool2d",
                  "squeeze: conv2d + silu", "excite: conv2d + sigmoid",
                  "project: conv2d + batch_norm + add"],
    "densenet": ["layers.0.2: conv2d", "layers.1.2: conv2d", "layers.2.2: conv2d",
                 "transition.0: conv2d", "transition.1: avg_pool2d"],
    "inception": ["stem.0.0: conv2d + batch_norm + relu", "stem.1: max_pool2d",
                  "one.0: conv2d + batch_norm + relu", "three.0: conv2d + batch_norm + relu",
                  "pooled.0: max_pool2d", "pooled.1: conv2d + relu"],
    "shufflenet": ["branch.0.0: conv2d + batch_norm + relu", "branch.1: conv2d + batch_norm",
                   "branch.3.0: conv2d + batch_norm + relu"],
    "squeezenet": ["stem.0: conv2d + relu + max_pool2d", "squeeze: conv2d + relu",
                   "one: conv2d + relu", "three: conv2d + relu"],
    "aspp": [*(f"branches.{i}.0: conv2d + batch_norm + relu" for i in range(3)), "project: conv2d"],
    "vae": ["encode.0: conv2d + leaky_relu", "mean: conv2d + add", "spread: conv2d",
            "decode.0: conv_transpose2d + leaky_relu", "decode.2: conv2d + sigmoid"],
    "reflection_generator": ["first.1: conv2d + relu", "block.0: conv2d", "block.3: conv2d",
                             "last.1: conv2d + tanh"],
    "siamese": ["tower.0: conv2d + relu + max_pool2d", "tower.3: conv2d"] * 2,
    "fpn": ["low.0: conv2d + batch_norm + relu", "high.0: conv2d + batch_norm + relu",
            "side_high: conv2d", "side_low: conv2d + add", "smooth: conv2d"],
    "resnext": ["reduce.0: conv2d + batch_norm + relu", "grouped.0: conv2d + batch_norm + relu",
                "widen.0: conv2d + batch_norm + add + relu", "shortcut.0: conv2d + batch_norm"],
    "replknet_block": ["large: conv2d + batch_norm + add + relu", "small: conv2d + batch_norm",
                       "point: conv2d + add"],
    "mobilenet_v2": ["expand.0: conv2d + batch_norm + relu6",
                     "depthwise.0: conv2d + batch_norm + relu6",
                     "project.0: conv2d + batch_norm + add"],
    "mobilenet_v3": ["expand.0: conv2d + batch_norm + hardswish",
                     "depthwise.0: conv2d + batch_norm + hardswish", "squeeze: conv2d + relu",
                     "excite: conv2d + hardsigmoid", "project.0: conv2d + batch_norm"],
    "vgg_bn": ["features.0: conv2d + batch_norm + relu + max_pool2d",
               "features.4: conv2d + batch_norm + relu + max_pool2d"],
    "lenet": ["c1: conv2d + relu + max_pool2d", "c3: conv2d + sigmoid", "avg_pool2d: avg_pool2d",
              "c5: conv2d + tanh"],
}  # fmt: skip
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def compiled_twin(
    model: nn.Module, rest: str = "eager", **options: object
) -> tuple[nn.Module, nn.Module]:
    """A copy of ``model``, and the same copy compiled by our backend."""
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    return twin, torch.compile(twin, backend="tconv", options={"rest": rest}, **options)


def built(name: str, training: bool, memory_format: str) -> tuple[nn.Module, Tensor]:
    """A network in float64 with running statistics of its own, and an input."""
    torch.manual_seed(0)
    build, shape = ARCHITECTURES[name]
    model = build().double().train()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        model(x)  # running statistics other than 0 and 1
    form = FORMATS[memory_format]
    x = x.to(memory_format=form) if x.dim() == 4 else x
    return model.train(training).to(memory_format=form), x


def flat(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def strides(tensor: Tensor) -> list[int]:
    """The strides of the axes that have more than one element; of others any stride is right."""
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def assert_same(ours: nn.Module, theirs: nn.Module, got: object, expected: object) -> None:
    """Outputs, gradients of parameters and buffers are equal."""
    for y, z in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(y, z)
        assert strides(y) == strides(z)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(
                p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}"
            )
    for b, c in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(b, c)


def trained_alike(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] = Tensor.sum
) -> nn.Module:
    """Run a compiled copy forward and backward beside ``model``; return the copy."""
    twin, compiled = compiled_twin(model)
    got, expected = compiled(x), model(x)
    for y in (got, expected):
        loss(y).backward()
    assert_same(twin, model, got, expected)
    return twin


def hold(name: str, training: bool, memory_format: str) -> None:
    """Forward and backward of a compiled network, beside torch's own; one graph; our kernels."""
    model, x = built(name, training, memory_format)
    twin, compiled = compiled_twin(model)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch._dynamo.utils.counters.clear()
    with recorded() as launches:
        got = compiled(mine)
    assert launches
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    expected = model(theirs)
    sum((y * y).sum() for y in flat(got)).backward()
    sum((y * y).sum() for y in flat(expected)).backward()
    assert_same(twin, model, got, expected)
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_evaluation_with_gradients_equals_torch(name: str) -> None:
    hold(name, training=False, memory_format="channels_last")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_evaluation_on_contiguous_tensors_equals_torch(name: str) -> None:
    hold(name, training=False, memory_format="contiguous")


@pytest.mark.thorough
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_equals_torch(name: str, memory_format: str) -> None:
    hold(name, training=True, memory_format=memory_format)


@pytest.mark.parametrize("name", ["resnext", "vgg_bn", "lenet", "dcgan"])
def test_a_training_step_equals_torch(name: str) -> None:
    hold(name, training=True, memory_format="contiguous")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_report_lists_what_a_reader_expects(name: str) -> None:
    """Without gradients; the report says which operations each kernel computes."""
    model, x = built(name, training=False, memory_format="contiguous")
    twin, compiled = compiled_twin(model)
    with torch.no_grad():
        assert_same(twin, model, compiled(x), model(x))
    (graph,) = tconv.report(twin).graphs
    assert [str(entry).partition(" (")[0] for entry in graph.served] == EXPECTED[name]
    assert not graph.left
    assert tconv.report(compiled).graphs == (graph,)
