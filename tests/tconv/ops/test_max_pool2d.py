"""Tests of max-pool against the fp64 reference and torch: values, gradients, operators."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from tconv import reference
from tconv.geometry import PoolGeometry
from tconv.launch import Launch, recorded
from tconv.ops import layout as layouts
from tconv.ops.max_pool2d import dgrad_launch, fprop_launch, max_pool2d, pick_launch
from tconv.ops.pool_check import pool_geometry
from tconv.problem import PoolProblem
from tconv.tile import Tile
from tests.devices import DEVICE

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FPROP, DGRAD, PICK = (f"max_pool.max_pool_{name}" for name in ("fprop", "dgrad", "pick"))
OPERATORS = torch.ops.tconv

CASES = {
    "odd": ((2, 5, 11, 13), {"kernel_size": 3, "stride": 2}),
    "odd-padded": ((2, 5, 11, 13), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "lenet": ((2, 6, 28, 28), {"kernel_size": 2}),
    "overlapping": ((1, 3, 9, 7), {"kernel_size": (3, 4), "stride": 1, "padding": (1, 2)}),
    "gaps": ((3, 3, 13, 11), {"kernel_size": 2, "stride": (5, 3)}),
    "dilated": ((2, 3, 12, 15), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": (2, 3)}),
    "ceil": ((2, 3, 8, 7), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "ceil-gaps": ((1, 2, 7, 9), {"kernel_size": 2, "stride": 3, "dilation": 2, "ceil_mode": True}),
    "one-row": ((1, 3, 1, 17), {"kernel_size": (1, 3), "stride": (1, 2)}),
    "one-channel": ((3, 1, 7, 5), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "global": ((2, 5, 7, 9), {"kernel_size": (7, 9)}),
    "unbatched": ((5, 9, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "zero-batch": ((0, 3, 8, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "tall": (
        (2, 3, 11, 8),
        {"kernel_size": (4, 2), "stride": (2, 1), "padding": (2, 1), "dilation": (1, 2)},
    ),
    "wide": (
        (2, 3, 8, 11),
        {"kernel_size": (2, 4), "stride": (1, 3), "padding": (1, 2), "dilation": (2, 1)},
    ),
    "looped-tall": (
        (1, 2, 13, 7),
        {"kernel_size": (6, 3), "stride": (2, 1), "padding": (3, 1), "dilation": (2, 1)},
    ),
    "looped-wide": (
        (1, 2, 8, 10),
        {"kernel_size": (7, 5), "stride": (1, 2), "padding": (3, 2), "dilation": (2, 3)},
    ),
    "looped-across": ((1, 2, 7, 9), {"kernel_size": (5, 12), "stride": (2, 1), "padding": (2, 6)}),
    "looped": ((1, 2, 35, 6), {"kernel_size": (35, 2), "stride": 1, "padding": (17, 1)}),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def tensor(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    levels: int = 0,
) -> Tensor:
    """Return normal numbers, or integers below ``levels``, so that windows have equal values."""
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator)
    if levels:
        values = torch.randint(levels, shape, generator=generator)
    values = values.to(DEVICE, dtype)
    return values.to(memory_format=memory_format) if len(shape) == 4 else values


def geometry(x: Tensor, **window: Any) -> PoolGeometry:
    size = window["kernel_size"]
    given = (size, window.get("stride", size), window.get("padding", 0), window.get("dilation", 1))
    pairs = [value if isinstance(value, tuple) else (value, value) for value in given]
    return pool_geometry(x.shape, *pairs, window.get("ceil_mode", False))


@contextmanager
def launches(*kernels: str) -> Iterator[None]:
    """Assert that exactly these kernels run."""
    with recorded() as log:
        yield
    assert [launch.kernel for launch in log] == list(kernels)


def compare(x: Tensor, **window: Any) -> None:
    """Compare values, indices, gradient and memory formats with torch's, bit for bit."""
    ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
    some = x.numel() > 0
    with launches(*[FPROP, PICK] * some):
        y, indices = max_pool2d(ours, **window, return_indices=True)
    expected, places = functional.max_pool2d(theirs, **window, return_indices=True)
    assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert_close(indices, places, rtol=0, atol=0)
    assert y.stride() == expected.stride()
    assert indices.stride() == places.stride()
    with torch.no_grad():
        values = max_pool2d(x, **window)
    assert_close(values, y, rtol=0, atol=0, equal_nan=True)

    dy = tensor(tuple(y.shape), y.dtype)
    with launches(*[DGRAD] * some):
        (dx,) = torch.autograd.grad(y, ours, dy)
    (expected,) = torch.autograd.grad(expected, theirs, dy)
    # torch's CPU code adds 16-bit gradients in 16 bits, our kernel in 32.
    short = x.dtype in (torch.float16, torch.bfloat16)
    tolerance = 8 * torch.finfo(x.dtype).eps if short else 1e-6
    assert_close(dx, expected, rtol=tolerance, atol=tolerance)
    assert dx.stride() == expected.stride()


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("shape", "window"), CASES.values(), ids=CASES)
def test_as_torch(
    shape: tuple[int, ...], window: dict[str, Any], memory_format: torch.memory_format
) -> None:
    compare(tensor(shape, memory_format=memory_format), **window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_dtypes_and_equal_values(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = tensor((2, 5, 9, 11), dtype, memory_format, levels=3)
    compare(x, kernel_size=3, stride=2, padding=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["odd-padded", "overlapping", "gaps", "dilated", "ceil"])
def test_as_reference(name: str, dtype: torch.dtype) -> None:
    shape, window = CASES[name]
    x = tensor(shape, dtype, torch.channels_last)
    layer = geometry(x, **window)
    leaf = x.requires_grad_()
    y, indices = max_pool2d(leaf, **window, return_indices=True)
    expected, places = reference.max_pool2d(x.detach(), layer)
    assert_close(y.double(), expected, rtol=0, atol=0)
    assert_close(indices, places, rtol=0, atol=0)
    dy = tensor(tuple(y.shape), dtype)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    # Rounded once from a sum in fp32 of at most 9 numbers below 4.
    bound = torch.finfo(dtype).eps if dtype.itemsize == 2 else 16 * torch.finfo(dtype).eps
    assert_close(dx.double(), reference.max_pool2d_dgrad(dy, places, layer), rtol=bound, atol=bound)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_propagates(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = tensor((2, 3, 9, 9), dtype, memory_format)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.2] = torch.nan
    compare(x, kernel_size=3, stride=2, padding=1)
    compare(x, kernel_size=2, stride=1, dilation=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_infinity_keeps_the_first_element(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 6, 7), -torch.inf, dtype=dtype, device=DEVICE)
    for window in (
        (2, 2, 0, 1), (3, 2, 1, 1), (2, 1, 1, 3), (4, 3, 2, 1),
        ((3, 2), (2, 1), (1, 0), (1, 3)), ((2, 4), (1, 2), (0, 2), (3, 1)),
    ):  # fmt: skip
        names = ("kernel_size", "stride", "padding", "dilation")
        compare(x, **dict(zip(names, window, strict=True)))
    x[0, 0, 2, 3] = torch.inf
    compare(x, kernel_size=3, stride=2, padding=1)


@pytest.mark.parametrize("kernel_size", [(2, 1), (1, 2), (2, 2)], ids=str)
def test_window_of_nothing_but_padding(kernel_size: tuple[int, int]) -> None:
    """Windows at -1 and 3 of a size of 3: torch gives -inf, an index past the end, no gradient."""
    x = tensor((1, 2, 3 if kernel_size[0] > 1 else 5, 3 if kernel_size[1] > 1 else 5))
    x.requires_grad_()
    padding = tuple(size // 2 for size in kernel_size)
    window = {"kernel_size": kernel_size, "stride": 1, "padding": padding, "dilation": 4}
    y, indices = max_pool2d(x, **window, return_indices=True)
    expected, places = functional.max_pool2d(x, **window, return_indices=True)
    assert_close((y, indices), (expected, places), rtol=0, atol=0)
    dy = torch.ones_like(y).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    assert dx.count_nonzero() == 0
    with launches(PICK):
        (picked,) = torch.autograd.grad(dx, dy, torch.ones_like(dx))
    assert picked.count_nonzero() == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:],
        lambda x: x[..., ::2],
        lambda x: x[:, :, 1:, 2:],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x.flip(3).permute(0, 3, 1, 2),
    ],
    ids=["channels", "step", "corner", "transposed", "one-channel", "one-image", "permuted"],
)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_views(view: Any, memory_format: torch.memory_format) -> None:
    compare(view(tensor((2, 5, 9, 10), memory_format=memory_format)), kernel_size=3, stride=2)


def test_dense_inputs_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = Launch.run

    def spy(launch: Launch, tensors: Mapping[str, Tensor]) -> None:
        seen.extend(value.data_ptr() for value in tensors.values())
        run(launch, tensors)

    monkeypatch.setattr(Launch, "run", spy)
    for memory_format in FORMATS.values():
        x = tensor((2, 3, 6, 6), memory_format=memory_format)
        y = max_pool2d(x, 2)
        assert {x.data_ptr(), y.data_ptr()} <= set(seen)


def test_inference_writes_no_offsets() -> None:
    x = tensor((1, 2, 6, 6))
    for leaf, grad, write in ((False, True, False), (True, False, False), (True, True, True)):
        with recorded() as log, torch.set_grad_enabled(grad):
            max_pool2d(x.detach().requires_grad_(leaf), 2)
        assert [launch.constants["WRITE_OFFSETS"] for launch in log] == [write]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_many_programs(layout: Any) -> None:
    """Small tiles that divide no axis, so that every edge of the grid is tested."""
    x = tensor((2, 11, 9, 7), memory_format=layouts.memory_format(layout))
    window = {"kernel_size": 3, "stride": 2, "padding": 1}
    expected, places = functional.max_pool2d(x, **window, return_indices=True)
    layer, tile = geometry(x, **window), Tile(16, 4, 1)
    y, indices = torch.empty_like(expected), torch.empty_like(places)
    offsets = torch.empty_like(places, dtype=torch.int8)
    problem = PoolProblem(layer, "fprop", "float32", layout)
    launch = fprop_launch(problem, tile, True)
    assert launch.grid[0] > 3
    launch.run({"x": x, "y": y, "offsets": offsets})
    pick_launch(problem, tile, indices=True).run({"offsets": offsets, "indices": indices})
    assert_close((y, indices), (expected, places), rtol=0, atol=0)
    dx = torch.full_like(x, torch.nan)
    dgrad_launch(PoolProblem(layer, "dgrad", "float32", layout), tile).run(
        {"dy": y, "offsets": offsets, "dx": dx}
    )
    assert_close(dx.double(), reference.max_pool2d_dgrad(y, indices, layer))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["odd-padded", "overlapping", "gaps", "dilated", "ceil", "looped"])
def test_on_a_gpu(name: str, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    """Compiled kernels equal the fp64 reference; a second run gives the same bits."""
    shape, window = CASES[name]
    x = tensor(shape, dtype, memory_format).to(DEVICE).requires_grad_()
    layer = geometry(x, **window)
    expected, places = reference.max_pool2d(x.detach(), layer)
    dy = tensor(tuple(expected.shape), dtype).to(DEVICE)
    runs = []
    for _ in range(2):
        y, indices = max_pool2d(x, **window, return_indices=True)
        runs.append((y, indices, *torch.autograd.grad(y, x, dy)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    y, indices, dx = runs[0]
    assert_close(y.double(), expected, rtol=0, atol=0)
    assert_close(indices, places, rtol=0, atol=0)
    # Rounded once from a sum in fp32 of at most 12 numbers, or for "looped" 70, below 4.
    bound = torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 64)
    assert_close(dx.double(), reference.max_pool2d_dgrad(dy, places, layer), rtol=bound, atol=bound)
    with torch.no_grad():
        assert torch.equal(max_pool2d(x, **window), y)


def test_wide_offsets_where_a_tensor_needs_them() -> None:
    small, large = (PoolGeometry(batch, 64, 224, 224, 2, 2, 2, 2) for batch in (600, 700))
    names = []
    for layer in (small, large):
        launch = dgrad_launch(PoolProblem(layer, "dgrad"), Tile(16, 64, 1))
        names.append(launch.constants["INDEX"].name)
    assert names == ["int32", "int64"]


def test_wide_offsets_compute_the_same() -> None:
    x = tensor((2, 3, 9, 7))
    layer = geometry(x, kernel_size=3, stride=2)
    launch = fprop_launch(PoolProblem(layer, "fprop", "float32", "nchw"), Tile(64, 1, 1), True)
    wide_type = dgrad_launch(
        PoolProblem(PoolGeometry(700, 64, 224, 224, 2, 2, 2, 2), "dgrad"), Tile(16, 64, 1)
    ).constants["INDEX"]
    wide = dataclasses.replace(launch, constants={**launch.constants, "INDEX": wide_type})
    expected, places = functional.max_pool2d(x, 3, 2, return_indices=True)
    y, offsets = torch.empty_like(expected), torch.empty_like(places, dtype=torch.int8)
    wide.run({"x": x, "y": y, "offsets": offsets})
    window = ([3, 3], [2, 2], [0, 0], [1, 1], False)
    indices = OPERATORS.max_pool2d_indices(offsets, x.shape, *window)
    assert_close((y, indices), (expected, places), rtol=0, atol=0)


# Gradients of gradients.


def distinct(shape: tuple[int, ...]) -> Tensor:
    """Return fp64 values that differ by more than gradcheck's step."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return (order.double() / 8).view(shape).to(DEVICE).requires_grad_()


@pytest.mark.parametrize(
    "window",
    [(3, 2, 1, 1), (2, 1, 0, 2), ((2, 3), 3, 1, 1)],
    ids=["overlapping", "dilated", "gaps"],
)
def test_gradcheck(window: tuple[Any, ...]) -> None:
    x = distinct((1, 2, 5, 6))
    assert torch.autograd.gradcheck(lambda x: max_pool2d(x, *window), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: max_pool2d(x, *window), x, fast_mode=True)


def test_second_gradient_is_our_kernel() -> None:
    x = distinct((2, 3, 5, 7)).detach().to(memory_format=torch.channels_last).requires_grad_()
    y = max_pool2d(x**2, 3, stride=2, padding=1)
    with launches(DGRAD):
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with launches(PICK, DGRAD):
        (ours,) = torch.autograd.grad((dx**3).sum(), x)
    expected = functional.max_pool2d(x**2, 3, stride=2, padding=1)
    (dx,) = torch.autograd.grad(expected.square().sum(), x, create_graph=True)
    (theirs,) = torch.autograd.grad((dx**3).sum(), x)
    assert_close(ours, theirs)


def test_values_operator_has_a_gradient_too() -> None:
    x = tensor((2, 3, 7, 7)).requires_grad_()
    window = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    (ours,) = torch.autograd.grad(OPERATORS.max_pool2d_values(x, *window).sum(), x)
    (theirs,) = torch.autograd.grad(functional.max_pool2d(x, 3, 2, 1).sum(), x)
    assert_close(ours, theirs)


def test_offsets_are_a_byte_where_the_window_allows() -> None:
    window = ([1, 1], [0, 0], [1, 1], False)
    for extent, dtype in ((2, torch.int8), (11, torch.int8), (12, torch.int16)):
        x = tensor((1, 2, 14, 14)).requires_grad_()
        y, offsets = OPERATORS.max_pool2d(x, [extent, extent], *window)
        assert offsets.dtype == dtype
        places = OPERATORS.max_pool2d_indices(offsets, x.shape, [extent, extent], *window)
        expected = functional.max_pool2d(x, extent, 1, return_indices=True)
        assert_close((y, places), expected, rtol=0, atol=0)
        gradients = [torch.autograd.grad(out.sum(), x)[0] for out in (y, expected[0])]
        assert_close(*gradients)


def test_indices_carry_no_gradient() -> None:
    _, indices = max_pool2d(tensor((1, 1, 4, 4)).requires_grad_(), 2, return_indices=True)
    assert not indices.requires_grad


def test_runs_are_bitwise_reproducible() -> None:
    x = tensor((2, 3, 9, 9), torch.float16).requires_grad_()
    y = max_pool2d(x, 3, stride=1, padding=1)
    dy = tensor(tuple(y.shape), torch.float16)
    first, second = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


# Registration.


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["max_pool2d", "max_pool2d_values", "input_grad", "pick"])
def test_opcheck(name: str, memory_format: torch.memory_format) -> None:
    x = tensor((2, 3, 7, 6), memory_format=memory_format)
    window = ([3, 2], [2, 2], [1, 1], [1, 1], True)
    channels_last = memory_format == torch.channels_last
    y, indices = OPERATORS.max_pool2d(x, *window)
    arguments: dict[str, tuple[Any, ...]] = {
        "max_pool2d": (OPERATORS.max_pool2d, x, *window),
        "max_pool2d_values": (OPERATORS.max_pool2d_values, x, *window),
        "input_grad": (
            OPERATORS.max_pool2d_input_grad, y, indices, list(x.shape), *window, channels_last
        ),
        "pick": (OPERATORS.max_pool2d_pick, x, indices, *window, channels_last),
    }  # fmt: skip
    operator, values, *rest = arguments[name]
    torch.library.opcheck(operator.default, (values.clone().requires_grad_(), *rest))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    def network(x: Tensor) -> Tensor:
        return max_pool2d(torch.relu(x), 3, stride=2, padding=1) * 2

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 3, 9, 7), (1, 4, 8, 8)):
        x = tensor(shape, memory_format=torch.channels_last).requires_grad_()
        assert_close(compiled(x), network(x))
        (ours,) = torch.autograd.grad(compiled(x).sum(), x)
        (theirs,) = torch.autograd.grad(network(x).sum(), x)
        assert_close(ours, theirs)
        with torch.no_grad():
            assert_close(compiled(x), network(x))


# Errors, with torch's messages.

X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((X, 3), {"stride": 0}),
        ((X, 3), {"stride": -1}),
        ((X, 3), {"stride": (1, 2, 3)}),
        ((X, 3), {"stride": 1.5}),
        ((X, (3, 2, 1)), {}),
        ((X, 0), {}),
        ((X, -1), {}),
        ((X, 9), {}),
        ((X, 2.0), {}),
        ((X, True), {}),
        ((X, [3.0, 3]), {}),
        ((X, None), {}),
        ((X, 3), {"padding": -1}),
        ((X, 3), {"padding": 2}),
        ((X, 3), {"padding": 2, "dilation": 2}),
        ((X, 3), {"padding": ()}),
        ((X, 3), {"dilation": 0}),
        ((X, 3), {"dilation": (1, 1, 1)}),
        ((X[0, 0], 2), {}),
        ((X[None], 2), {}),
        ((torch.zeros(2, 0, 8, 8), 2), {}),
        ((torch.zeros(0, 8, 8), 2), {}),
        ((torch.zeros(3, 8, 0), 2), {}),
        (([1.0], 2), {}),
        ((X.bool(), 2), {}),
        ((X.to(torch.complex64), 2), {}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else value[1]).replace(" ", ""),
)
def test_errors_have_torchs_messages(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        functional.max_pool2d(*arguments, **options)
    except Exception as error:
        expected = error
    words = str(expected).splitlines()[0]
    with pytest.raises(type(expected), match=re.escape(words)):
        max_pool2d(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integers_are_refused_by_name(dtype: torch.dtype) -> None:
    """torch pools integers on the CPU only."""
    name = {torch.int64: "Long", torch.int32: "Int", torch.uint8: "Byte"}[dtype]
    with pytest.raises(NotImplementedError, match=f"not implemented for '{name}'"):
        max_pool2d(X.to(dtype), 2)


def test_absent_and_short_arguments() -> None:
    x = tensor((1, 2, 7, 8))
    for window in ({"stride": []}, {"stride": None}, {"stride": (2,)}, {"padding": [1]}):
        assert_close(max_pool2d(x, (3,), **window), functional.max_pool2d(x, (3,), **window))
