"""Tests that ``explain`` names what then runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import tconv
from tconv.launch import interpreting, recorded
from tests.devices import DEVICE


def test_names_what_then_runs() -> None:
    layer, x = tconv.Conv2d(3, 6, 5, stride=2, padding=1), torch.randn(2, 3, 15, 13)
    layer, x = layer.to(DEVICE), x.to(DEVICE)
    explanation = tconv.explain(layer, x)
    with recorded() as log:
        layer(x).sum().backward()
    (direction, choice), *_ = explanation.choices
    assert direction == "fprop"
    forward = [launch for launch in log if launch.constants.get("BLOCK_M") == choice.tile.block_m]
    assert forward
    if interpreting():
        assert forward[0].kernel == f"fprop.{choice.family}_fprop"
    assert explanation.geometry.key == "n2c3h15w13-k6f5x5-s2x2-p1x1-d1x1-g1"
    if interpreting():
        assert "interpreter" in str(explanation)
    assert "heuristic" in str(explanation)
    assert "not implicit_gemm_tma: 3 channels of float32 are not a multiple of 16" in str(
        explanation
    )


def test_pools_and_geometries() -> None:
    pool = tconv.explain(tconv.MaxPool2d(3, 2), torch.randn(1, 4, 9, 9, device=DEVICE))
    assert [direction for direction, _ in pool.choices] == ["fprop", "dgrad"]
    layer = tconv.ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2)
    assert [direction for direction, _ in tconv.explain(layer).choices] == [
        "fprop",
        "dgrad",
        "wgrad",
    ]


def test_errors_name_the_value() -> None:
    with pytest.raises(TypeError, match="not Linear"):
        tconv.explain(torch.nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="needs the input"):
        tconv.explain(tconv.Conv2d(2, 3, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks about a machine without a GPU")
def test_without_the_interpreter_cpu_tensors_go_to_torch_and_explain_states_it() -> None:
    code = """
import sys, torch, tconv
from tconv.launch import recorded
assert not [name for name in sys.modules if name.startswith("tconv.emulator")]  # not asked for
layer, x = tconv.Conv2d(3, 6, 3), torch.randn(2, 3, 9, 9, requires_grad=True)
with recorded() as log:
    y = tconv.MaxPool2d(2)(layer(x))
    y.sum().backward()
assert not log and x.grad.shape == x.shape
print(tconv.explain(layer, x))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "torch's own CPU operators" in done.stdout


LAYERS: dict[str, tuple[torch.nn.Module, tuple[int, ...], str]] = {
    "Conv1d": (tconv.Conv1d(4, 6, 3, padding="same"), (2, 4, 9), "n2c4h1w9-k6f1x3"),
    "Conv2d circular": (
        tconv.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9, 9), "n1c4h11w11-k6f3x3",
    ),
    "ConvTranspose2d": (tconv.ConvTranspose2d(6, 4, 3, 2), (2, 6, 4, 4), "n2c4h9w9-k6f3x3-s2x2"),
    "ConvTranspose1d": (tconv.ConvTranspose1d(6, 4, 3, 2), (6, 4), "n1c4h1w9-k6f1x3-s1x2"),
    "AvgPool2d": (tconv.AvgPool2d(2), (2, 4, 8, 8), "n2c4h8w8-f2x2"),
    "AvgPool1d": (tconv.AvgPool1d(2), (2, 4, 8), "n2c4h1w8-f1x2-s1x2"),
    "MaxPool1d": (tconv.MaxPool1d(3, 2, 1), (4, 8), "n1c4h1w8-f1x3-s1x2-p0x1"),
    "AdaptiveMaxPool2d with indices": (
        tconv.AdaptiveMaxPool2d(3, return_indices=True), (2, 4, 7, 9), "n2c4h7w9-to3x3",
    ),
    "Subsample2d Conv": (tconv.Subsample2d(4), (2, 4, 8, 8), "n2c4h8w8-k4f2x2-s2x2-p0x0-d1x1-g4"),
    "AdaptiveMaxPool2d": (tconv.AdaptiveMaxPool2d((3, None)), (4, 7, 9), "n1c4h7w9-to3x9"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_is_explained_as_it_runs(name: str) -> None:
    layer, size, key = LAYERS[name]
    x = torch.randn(size, device=DEVICE)
    explanation = tconv.explain(layer.to(DEVICE), x)
    assert explanation.geometry.key.startswith(key)
    assert explanation.transposed == ("Transpose" in name)
    assert ("its forward pass is dgrad" in str(explanation)) == explanation.transposed
    with recorded() as log:
        layer(x)
    choice = dict(explanation.choices)["dgrad" if explanation.transposed else "fprop"]
    if "Conv" in name:
        assert choice.tile.block_m in {launch.constants.get("BLOCK_M") for launch in log}
    else:
        assert choice.family in {launch.kernel.split(".")[0] for launch in log}


def test_an_unpool_is_explained_as_it_runs() -> None:
    """Its output size is the smallest that fits, as without ``output_size`` in a call."""
    x = torch.randn(2, 4, 5, 6, device=DEVICE).contiguous(memory_format=torch.channels_last)
    layer = tconv.MaxUnpool2d(3, 2)
    explanation = tconv.explain(layer, x)
    assert explanation.geometry.key == "n2c4h5w6-to11x13"
    indices = torch.arange(30, device=DEVICE).view(5, 6).expand(2, 4, 5, 6)
    with recorded() as log:
        layer(x, indices)
    choice = dict(explanation.choices)["fprop"]
    (picking,) = [launch for launch in log if launch.kernel == "adaptive_pool.pick_by_index"]
    assert picking.kernel.startswith(choice.family)
    assert picking.constants["BLOCK_M"] == choice.tile.block_m
