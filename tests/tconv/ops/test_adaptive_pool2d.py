"""Tests of adaptive pools and max-unpool against torch: values, gradients, indices, samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing import assert_close

import tconv
from tconv import functional
from tconv.functional import adaptive_avg_pool2d, adaptive_max_pool2d, max_pool2d, max_unpool2d
from tconv.geometry import AdaptiveGeometry
from tconv.launch import recorded
from tconv.ops.adaptive_pool2d import adaptive_launch, index_launch
from tconv.ops.layout import memory_format
from tconv.problem import AdaptiveProblem, Layout
from tconv.tile import Tile
from tests.devices import DEVICE

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import ErrorInput

pytest.importorskip("expecttest", reason="torch's samples need expecttest")

from tests import torchs_samples

plain = torch.nn.functional
CASES: dict[str, tuple[tuple[int, ...], Any]] = {
    "uneven": ((2, 3, 7, 5), (3, 2)),
    "even": ((1, 2, 4, 6), (2, 3)),
    "enlarged": ((2, 2, 3, 4), (5, 7)),
    "enlarged-downwards": ((1, 2, 2, 6), (7, 3)),
    "global-unbatched": ((3, 6, 5), 1),
    "one-axis-stays": ((2, 3, 5, 4), (None, 3)),
    "zero-batch": ((0, 3, 5, 4), 2),
}
POOLS: dict[str, Callable[..., Any]] = {"avg": adaptive_avg_pool2d, "max": adaptive_max_pool2d}


def random(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("name", CASES)
def test_as_torch(name: str, kind: str) -> None:
    size, output_size = CASES[name]
    theirs = getattr(plain, f"adaptive_{kind}_pool2d")
    for layout in ("nhwc", "nchw") if len(size) == 4 else ("nchw",):
        x = random(*size)
        if layout == "nhwc":
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        with recorded() as log:
            y = POOLS[kind](x, output_size)
            dy = random(*y.shape)
            (dx,) = torch.autograd.grad(y, x, dy)
        expected = theirs(x, output_size)
        assert_close(y, expected)
        assert y.stride() == expected.stride() or not x.numel()
        assert_close(dx, torch.autograd.grad(expected, x, dy)[0])
        kernels = [f"adaptive_pool.adaptive_{kind}_{each}" for each in ("fprop", "dgrad")]
        assert [launch.kernel for launch in log] == kernels * bool(x.numel())


@pytest.mark.parametrize("kind", POOLS)
def test_an_empty_result_is_torchs(kind: str) -> None:
    """Its gradient is zero, where torch refuses to compute one."""
    x = random(2, 3, 5, 4).requires_grad_()
    y = POOLS[kind](x, (0, 2))
    assert_close(y, getattr(plain, f"adaptive_{kind}_pool2d")(x, (0, 2)))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert_close(dx, torch.zeros_like(x))


def test_indices_are_torchs() -> None:
    """The first of equal maxima, the last NaN, and the first element of a window of only -inf."""
    x = torch.zeros(1, 3, 5, 4, device=DEVICE)
    x[0, 1, 1:3, 2] = torch.nan
    x[0, 2] = -torch.inf
    ours, theirs = (compute(x, (2, 3), True)
                    for compute in (adaptive_max_pool2d, plain.adaptive_max_pool2d))  # fmt: skip
    assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("maximum", [False, True], ids=["avg", "max"])
def test_many_programs(layout: Layout, maximum: bool) -> None:
    """Small tiles that divide no axis, so that every edge of the grid is tested."""
    x = random(2, 7, 9, 8).contiguous(memory_format=memory_format(layout)).requires_grad_()
    compute = plain.adaptive_max_pool2d if maximum else plain.adaptive_avg_pool2d
    exact = compute(x, (4, 3))
    dy = random(*exact.shape).contiguous(memory_format=memory_format(layout))
    (exact_dx,) = torch.autograd.grad(exact, x, dy)
    y, dx = torch.full_like(exact, torch.nan), torch.full_like(x, torch.nan)
    tensors = {"x": x, "y": y, "dy": dy, "dx": dx}
    tensors["indices"] = torch.full_like(exact, -1, dtype=torch.int64)
    for direction in ("fprop", "dgrad"):
        geometry = AdaptiveGeometry(2, 7, 9, 8, 4, 3)
        problem = AdaptiveProblem(geometry, direction, "float64", layout)  # type: ignore[arg-type]
        launch = adaptive_launch(problem, Tile(8, 4, 1), maximum)
        assert launch.grid[0] > 3
        launch.run(tensors)
    assert_close((y, dx), (exact, exact_dx))


def unpooled(compute: Callable[..., Tensor], x: Tensor, indices: Tensor) -> Tensor:
    return compute(x, indices, 3, 2, 1, output_size=(7, 9))


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_unpool_is_torchs(channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    image = random(2, 3, 7, 9).contiguous(memory_format=form)
    x, indices = max_pool2d(image, 3, 2, 1, return_indices=True)
    x = x.requires_grad_()
    with recorded() as log:
        y = unpooled(max_unpool2d, x, indices)
        dy = random(*y.shape)
        (dx,) = torch.autograd.grad(y, x, dy)
    kernels = [launch.kernel.partition(".")[2] for launch in log]
    assert kernels == ["claim_by_index", "pick_by_index", "pick_by_index"]
    expected = unpooled(plain.max_unpool2d, x, indices)
    assert_close(y, expected)
    assert_close(dx, torch.autograd.grad(expected, x, dy)[0])


@pytest.mark.parametrize("tile", [Tile(8, 4, 1), Tile(4, 8, 1)], ids=["tall", "wide"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_indices_in_many_programs(layout: Layout, tile: Tile) -> None:
    """Small tiles that divide no axis; indices outside a plane are neither read nor claimed."""
    geometry = AdaptiveGeometry(2, 7, 3, 5, 4, 3)  # planes of 15, indices of 12
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(-2, 17, (2, 7, 4, 3), generator=generator).to(DEVICE)
    source = random(2, 7, 3, 5)
    inside = (indices >= 0) & (indices < 15)
    picked = source.flatten(2).gather(2, indices.clamp(0, 14).flatten(2)).view_as(indices)
    claimed = torch.full((2, 7, 15), -1, device=DEVICE)
    for place in range(12):  # a later place takes the claim of an earlier one
        image, channel = inside.flatten(2)[..., place].nonzero().T
        claimed[image, channel, indices.flatten(2)[image, channel, place]] = place
    form = memory_format(layout)
    tensors = {name: tensor.contiguous(memory_format=form) for name, tensor in {
        "indices": indices, "source": source, "claims": torch.full((2, 7, 3, 5), -1, device=DEVICE),
        "target": source.new_full((2, 7, 4, 3), torch.nan),
    }.items()}  # fmt: skip
    problem = AdaptiveProblem(geometry, "fprop", "float64", layout)
    for claim in (False, True):
        launch = index_launch(problem, tile, claim)
        assert launch.grid[0] > 3
        launch.run(tensors)
    assert_close(tensors["target"], torch.where(inside, picked, 0.0))
    assert_close(tensors["claims"].flatten(2), claimed)


INDICES = torch.tensor([[[[0, 7], [10, 15]], [[1, 2], [9, 12]]]], device=DEVICE)
SECOND: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "avg": (lambda x: adaptive_avg_pool2d(x, (2, 3)), (1, 2, 3, 4)),
    "max": (lambda x: adaptive_max_pool2d(x, (2, 3)), (1, 2, 3, 4)),
    "unpool": (lambda x: max_unpool2d(x, INDICES, 2), (1, 2, 2, 2)),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_gradients_and_tangents(name: str) -> None:
    compute, size = SECOND[name]
    x = random(*size).requires_grad_()
    assert torch.autograd.gradcheck(compute, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(compute, x, fast_mode=True)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(compute(forward_ad.make_dual(x, x.cos()))).tangent
    ahead, behind = (compute(x + sign * 1e-6 * x.cos()) for sign in (1, -1))
    assert_close(tangent, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


def test_operators_pass_opcheck() -> None:
    x, ops = random(2, 3, 5, 4).requires_grad_(), torch.ops.tconv
    indices = max_pool2d(x, 2, return_indices=True)[1]
    small = random(2, 3, 2, 2).requires_grad_()
    for operator, arguments in (
        (ops.adaptive_avg_pool2d, (x, [2, 3])),
        (ops.adaptive_avg_pool2d_input_grad, (small, x.shape, True)),
        (ops.adaptive_max_pool2d, (x, [2, 3])),
        (ops.pool_pick, (x, indices, False)),
        (ops.max_unpool2d, (small, indices, [5, 4])),
    ):
        results = torch.library.opcheck(operator.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x = random(2, 8, 7, 9, dtype=dtype)
    exact, bound = plain.adaptive_avg_pool2d(x.double(), 3), torch.finfo(dtype).eps
    assert_close(adaptive_avg_pool2d(x, 3).double(), exact, rtol=bound, atol=bound)
    exact = plain.adaptive_max_pool2d(x.double(), 3)
    assert torch.equal(adaptive_max_pool2d(x, 3).double(), exact)  # type: ignore[union-attr]


def test_bad_arguments_are_refused() -> None:
    whole = torch.ones(1, 1, 4, 4, dtype=torch.long, device=DEVICE)
    with pytest.raises(NotImplementedError, match='"adaptive_avg_pool2d" not implemented'):
        adaptive_avg_pool2d(whole, 2)
    x = random(1, 1, 2, 2)
    wrong = torch.tensor([[[[0, 1], [2, 16]]]], device=DEVICE)
    for compute in (max_unpool2d, plain.max_unpool2d):
        with pytest.raises(
            RuntimeError, match=r"max index: 16 \(output volumes are of size 4x4\)$"
        ):
            compute(x, wrong, 2)
        with pytest.raises(RuntimeError, match="int64"):
            compute(x, wrong.int(), 2)


def test_modules_are_torchs() -> None:
    x = random(2, 3, 9, 8)
    y, indices = tconv.MaxPool2d(2, return_indices=True)(x)
    wanted = torch.nn.MaxUnpool2d(2)(y, indices, output_size=x.shape)
    assert_close(tconv.MaxUnpool2d(2)(y, indices, output_size=x.shape), wanted)
    ours, theirs = (source.AdaptiveMaxPool2d((2, None), return_indices=True)
                    for source in (tconv, torch.nn))  # type: ignore[attr-defined]  # fmt: skip
    assert_close(ours(x), theirs(x))


# ---- torch's samples ------------------------------------------------------------------------

STEPS = {"adaptive_avg_pool2d": 1, "adaptive_max_pool2d": 3, "max_unpool2d": 19,
         "max_pool1d": 41, "avg_pool1d": 1}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_opinfo_samples(name: str) -> None:
    """Values and gradients of a fraction of torch's samples."""
    taken = torchs_samples.samples(name, torch.float32, DEVICE)[:: STEPS[name]]
    for sample in taken:
        x, theirs = (sample.input.detach().requires_grad_() for _ in range(2))
        with recorded() as log:
            result = getattr(functional, name)(x, *sample.args, **sample.kwargs)
        expected = getattr(plain, name)(theirs, *sample.args, **sample.kwargs)
        assert_close(result, expected)
        y, exact = (r[0] if isinstance(r, tuple) else r for r in (result, expected))
        assert log or not y.numel()
        dy = torch.arange(y.numel(), device=DEVICE).view(y.shape).float()
        (dx,) = torch.autograd.grad(y, x, dy)
        assert_close(dx, torch.autograd.grad(exact, theirs, dy)[0])


ERRORS: dict[str, ErrorInput] = {
    f"{name}-{number}": error
    for name in STEPS
    for number, error in enumerate(torchs_samples.errors(name))
}


@pytest.mark.parametrize("key", ERRORS)
def test_opinfo_errors(key: str) -> None:
    sample, error = ERRORS[key].sample_input, ERRORS[key]
    compute = getattr(functional, key.split("-")[0])
    with pytest.raises(error.error_type, match=error.error_regex):
        compute(sample.input, *sample.args, **sample.kwargs)
