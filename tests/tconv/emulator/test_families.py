"""Tests of every family's compiled code on an emulated GPU: passes, dtypes, layouts, epilogues.

On a CUDA GPU, ``test_on_gpu.py`` runs the same layers at full size.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn import functional

from autotune import emulate
from tconv.cost.space import candidates
from tconv.families import FAMILIES
from tconv.functional import conv2d, conv2d_pool
from tconv.geometry import PASSES, Pass
from tconv.launch import emulated, recorded
from tconv.problem import Layout, Problem
from tconv.tile import Choice
from tests.devices import DEVICE
from tests.tconv.test_on_gpu import ARITHMETICS, LAYERS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not emulated(), reason="needs an emulated GPU"),
]
TILES = 2  # drawn from the tuner's space for each family, pass, dtype and layout


def drawn(family: str, direction: Pass, arithmetic: str, layout: Layout, warps: int = 0) -> Any:
    """Return problems with tiles from the tuner's space, with ``warps`` warps if not 0."""
    target = emulated()
    assert target is not None
    chance = random.Random(f"{family} {direction} {arithmetic} {layout}")
    layers = list(LAYERS.values())
    chance.shuffle(layers)
    found: list[tuple[Problem, Choice]] = []
    for shape in layers:
        problem = Problem.of(shape, direction, arithmetic, layout)
        if FAMILIES[family].unserved(problem, target) is not None:
            continue
        own = [each for each in candidates(problem, target) if each.family == family]
        own = [each for each in own if warps in (0, each.tile.warps)]
        if own:
            found.append((problem, chance.choice(own)))
        if len(found) == TILES:
            break
    return found


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("arithmetic", [*ARITHMETICS, "float32"])
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_the_tuner(family: str, direction: Pass, arithmetic: str, layout: Layout) -> None:
    found = drawn(family, direction, arithmetic, layout)
    if not found:
        pytest.skip("serves none of the layers so")
    for problem, choice in found:
        verdict = emulate.check(problem, choice)
        assert verdict.passed, (problem.key, choice, verdict)
        assert verdict.checked == "emulated"
        assert verdict.counters is not None
        assert verdict.counters["instructions"] > 0


@pytest.mark.parametrize("arithmetic", ["float16", "tf32"])
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_flattened_reductions_with_eight_warps(
    family: str, direction: Pass, arithmetic: str
) -> None:
    """Triton is reported to miscompile these for some shapes (pytorch issue 173068)."""
    found = drawn(family, direction, arithmetic, "nhwc", warps=8)
    if not found:
        pytest.skip("has no tile of eight warps")
    for problem, choice in found:
        verdict = emulate.check(problem, choice)
        assert verdict.passed, (problem.key, choice, verdict)


@pytest.mark.parametrize("epilogue", ["relu", "residual", "pool", "gelu"])  # erf branches
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_fused_epilogues_and_their_gradients(
    epilogue: str, groups: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)

    def tensor(*size: int) -> torch.Tensor:
        form = torch.channels_last if len(size) == 4 else torch.contiguous_format
        values = torch.randn(size, generator=generator).to(DEVICE, dtype)
        return values.contiguous(memory_format=form).requires_grad_()

    x, w, bias = tensor(2, 16, 10, 12), tensor(32, 16 // groups, 3, 3), tensor(32)
    beside = tensor(2, 32, 10, 12).detach()
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, w, bias)]
    plain = functional.conv2d(*exact_inputs, padding=1, groups=groups)
    with recorded() as log:
        if epilogue == "pool":
            y = conv2d_pool(x, w, bias, padding=1, groups=groups, activation="relu")
            exact = functional.max_pool2d(plain.relu(), 2)
        elif epilogue == "gelu":
            y = conv2d(x, w, bias, padding=1, groups=groups, activation="gelu")
            exact = functional.gelu(plain)
        elif epilogue == "residual":
            y = conv2d(x, w, bias, padding=1, groups=groups, activation="relu", residual=beside)
            exact = (plain + beside.double()).relu()
        else:
            y = conv2d(x, w, bias, padding=1, groups=groups, activation="relu")
            exact = plain.relu()
    assert log
    bound = 2e-2 if dtype is torch.float16 else 1e-4
    torch.testing.assert_close(y.double(), exact, rtol=bound, atol=bound)
    dy = torch.randn(y.shape, generator=generator).to(DEVICE, dtype)
    gradients = torch.autograd.grad(y, (x, w, bias), dy)
    wanted = torch.autograd.grad(exact, exact_inputs, dy.double())
    for ours, theirs in zip(gradients, wanted, strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        # If float16 rounds a small value to 0, the gradients of ReLU and maximum differ.
        assert error < (5e-2 if dtype is torch.float16 else 1e-3), error
