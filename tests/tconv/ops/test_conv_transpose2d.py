"""Tests of transposed convolution against torch in fp64: values, gradients, epilogue, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils.flop_counter import FlopCounterMode

import tconv
from tconv import reference
from tconv.families import FAMILIES
from tconv.functional import conv_transpose2d
from tconv.launch import recorded
from tconv.ops import activations
from tconv.ops.conv_run import geometry_of, prepare
from tconv.ops.conv_transpose_check import check_conv_transpose
from tconv.problem import ACTIVATIONS, BatchNorm, Epilogue, Layout, Problem
from tconv.tile import Choice, Tile
from tests.devices import DEVICE, TARGET, written

plain = torch.nn.functional
# id -> x, w and the window; odd sizes first.
CASES: dict[str, dict[str, Any]] = {
    "7x5": {"x": (2, 3, 7, 5), "w": (3, 5, 3, 3), "padding": 1},
    "unet": {"x": (2, 6, 5, 4), "w": (6, 3, 2, 2), "stride": 2},
    "dcgan": {"x": (1, 4, 4, 5), "w": (4, 3, 4, 4), "stride": 2, "padding": 1},
    "output-padding": {
        "x": (2, 3, 5, 4), "w": (3, 2, 3, 2), "stride": (3, 2), "padding": (1, 0),
        "output_padding": (2, 1),
    },
    "output-padding-of-a-stride": {
        "x": (1, 2, 4, 5), "w": (2, 3, 2, 3), "stride": (2, 1), "dilation": (4, 3),
        "output_padding": (3, 2),
    },
    "stride-beyond-filter": {"x": (1, 2, 3, 4), "w": (2, 3, 2, 2), "stride": 3},
    "stride-and-dilation-share-a-factor": {
        "x": (2, 3, 4, 3), "w": (3, 2, 3, 3), "stride": 4, "dilation": 2, "padding": 1,
    },
    "groups": {"x": (2, 4, 5, 3), "w": (4, 3, 3, 2), "stride": 2, "groups": 2},
    "depthwise": {"x": (2, 3, 5, 4), "w": (3, 1, 3, 3), "stride": 2, "groups": 3},
    "one-pixel": {"x": (2, 3, 1, 1), "w": (3, 4, 3, 3), "stride": 5, "output_padding": 2},
    "unbatched": {"x": (3, 5, 4), "w": (3, 2, 3, 3), "stride": 2},
}  # fmt: skip


def random(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def operands(case: dict[str, Any], channels_last: bool = False) -> list[Tensor]:
    x, w = random(*case["x"]), random(*case["w"], seed=1)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return [x, w, random(case["w"][1] * case.get("groups", 1), seed=2)]


def window(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name not in ("x", "w")}


CONTIGUOUS = pytest.param(False, id="nchw", marks=pytest.mark.thorough)


@pytest.mark.parametrize("channels_last", [pytest.param(True, id="nhwc"), CONTIGUOUS])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, channels_last: bool) -> None:
    case = CASES[name]
    inputs = [tensor.requires_grad_() for tensor in operands(case, channels_last)]
    expected = plain.conv_transpose2d(*inputs, **window(case))
    dy = random(*expected.shape, seed=3)
    with recorded() as log:
        y = conv_transpose2d(*inputs, **window(case))
    assert written(log) == {"dx"}
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    with recorded() as log:
        gradients = torch.autograd.grad(y, inputs, dy)
    assert written(log) == {"y", "dw"}
    for ours, torchs in zip(gradients, torch.autograd.grad(expected, inputs, dy), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


# ---- the epilogue, in every family's kernel -------------------------------------------------

FAMILY_CASES = {
    "implicit_gemm": ("groups", Tile(16, 16, 16, splits=1)),
    "implicit_gemm-splits": ("7x5", Tile(16, 16, 16, splits=3)),
    "implicit_gemm_in_place": ("output-padding", Tile(32, 16, 16)),
    "direct": ("7x5", Tile(64, 4, 1, stages=1)),
    "grouped": ("groups", Tile(64, 16, 16)),
    "depthwise": ("depthwise", Tile(8, 4, 4, stages=1)),
}


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_every_familys_gradient_ends_in_an_epilogue(name: str) -> None:
    """Bias, batch normalization, residual, activation and the stored argument; no pool."""
    case, tile = CASES[FAMILY_CASES[name][0]], FAMILY_CASES[name][1]
    x, w, bias = operands(case)
    norm = {"norm_weight": random(len(bias), seed=5), "norm_bias": random(len(bias), seed=6),
            "norm_mean": random(len(bias), seed=7),
            "norm_var": random(len(bias), seed=8).square()}  # fmt: skip
    z = plain.conv_transpose2d(x, w, bias, **window(case))
    z = plain.batch_norm(
        z, norm["norm_mean"], norm["norm_var"], norm["norm_weight"], norm["norm_bias"]
    )
    residual = random(*z.shape, seed=4)
    layout: Layout = "nchw" if "in_place" in name else "nhwc"
    if layout == "nhwc":
        x = x.contiguous(memory_format=torch.channels_last)
    pairs = [value if isinstance(value, tuple) else (value, value)
             for value in (case.get(key, default) for key, default in
                           (("stride", 1), ("padding", 0), ("output_padding", 0),
                            ("dilation", 1)))]  # fmt: skip
    full, _, _ = check_conv_transpose(x.shape, w.shape, None, *pairs, case.get("groups", 1))
    problem = Problem(geometry_of(z.shape, w.shape, full), "dgrad", "float64", layout)
    family = name.split("-")[0]
    assert FAMILIES[family].unserved(problem, TARGET) is None
    normalized = BatchNorm("float64", 1e-5, True, True)
    epilogue = Epilogue(True, normalized, residual=True, activation="silu", kept=True)
    call = prepare(problem, Choice(family, tile), TARGET, epilogue, "nchw")
    tensors = {"dy": x, "w": w, "bias": bias, "residual": residual, **norm}
    y = call(tensors)
    torch.testing.assert_close(tensors["kept"], z + residual)
    torch.testing.assert_close(y, plain.silu(z + residual))


def normed(channels: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Tensors of a batch normalization, in the order of the operators' arguments."""
    names = ("norm_weight", "norm_bias", "running_mean", "running_var")
    made = {name: random(channels, seed=5 + i).to(dtype) for i, name in enumerate(names)}
    return made | {"running_var": made["running_var"].square() + 0.25}


QUICK = ("relu", "gelu")  # one derivative from the result, one from the argument
OTHERS = [
    pytest.param(each, marks=pytest.mark.thorough) for each in ACTIVATIONS if each not in QUICK
]


@pytest.mark.parametrize("activation", [*QUICK, *OTHERS])
def test_activations_and_their_gradients(activation: str) -> None:
    case = CASES["unet"]
    inputs = [tensor.requires_grad_() for tensor in operands(case)]
    with recorded() as log:
        y = conv_transpose2d(*inputs, **window(case), activation=activation)
    assert len([launch for launch in log if "dgrad" in launch.kernel]) == 1
    assert not [launch for launch in log if "epilogue" in launch.kernel]
    expected = activations.apply(plain.conv_transpose2d(*inputs, **window(case)), activation, 0.01)
    torch.testing.assert_close(y, expected)
    dy = random(*y.shape, seed=3)
    ours, torchs = (torch.autograd.grad(each, inputs, dy) for each in (y, expected))
    torch.testing.assert_close(ours, torchs)


# ---- torch's transforms of an operator ------------------------------------------------------

SMALL = {"x": (1, 2, 3, 2), "w": (2, 1, 2, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2}


def test_second_gradients_and_tangents() -> None:
    inputs = [tensor.requires_grad_() for tensor in operands(SMALL)]

    def layer(*tensors: Tensor) -> Tensor:
        return conv_transpose2d(*tensors, **window(SMALL), activation="tanh")

    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


def test_opcheck() -> None:
    inputs = tuple(tensor.requires_grad_() for tensor in operands(CASES["unet"]))
    form = ([10, 8], [2, 2, 0, 0, 1, 1, 1])
    operators = torch.ops.tconv
    calls: list[tuple[Any, Any]] = [(operators.conv_transpose2d, (*inputs, *form, None))]
    residual = random(2, 3, 10, 8, seed=4).requires_grad_()
    norm = tuple(tensor.requires_grad_() for tensor in normed(3).values())
    for given, after in (((residual, *norm), True), ((None,) * 5, False)):
        how = ("silu", 0.0, after, True, None)
        calls.append((operators.conv_transpose2d_fused, (*inputs, *given, 1e-5, *form, *how)))
    for operator, arguments in calls:
        results = torch.library.opcheck(operator.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_torch_func() -> None:
    x, w, bias = operands(SMALL)
    samples = torch.stack([x, x.cos()])

    def loss(compute: Any, w: Tensor, x: Tensor) -> Tensor:
        return compute(x, w, bias, **window(SMALL)).square().sum()  # type: ignore[no-any-return]

    ours, torchs = (
        func.vmap(func.grad(lambda w, x, f=f: loss(f, w, x)), (None, 0))(w, samples)
        for f in (conv_transpose2d, plain.conv_transpose2d)
    )
    torch.testing.assert_close(ours, torchs)
    ours, torchs = (
        func.jvp(lambda w, f=f: func.grad(lambda w: loss(f, w, x))(w), (w,), (w.cos(),))
        for f in (conv_transpose2d, plain.conv_transpose2d)
    )
    torch.testing.assert_close(ours, torchs)


def test_compiles_as_one_graph_with_symbolic_sizes() -> None:
    case = CASES["output-padding"]
    x, w, bias = operands(case)
    compiled = torch.compile(conv_transpose2d, fullgraph=True, backend="aot_eager", dynamic=True)
    for image in (x, x[..., :3]):
        y = compiled(image, w, bias, **window(case))
        torch.testing.assert_close(y, plain.conv_transpose2d(image, w, bias, **window(case)))


def test_autocast_casts_operands() -> None:
    x, w, bias = (tensor.float() for tensor in operands(CASES["unet"]))
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        y = conv_transpose2d(x, w, bias, stride=2)
    assert y.dtype == torch.bfloat16


def test_flops_are_those_of_torch() -> None:
    inputs = [tensor.requires_grad_() for tensor in operands(CASES["unet"])]
    counts = []
    for compute in (conv_transpose2d, plain.conv_transpose2d):
        with FlopCounterMode(display=False) as counter:
            compute(*inputs, stride=2).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee")],
    ids=lambda value: str(value),
)
def test_dtypes(dtype: torch.dtype, precision: str) -> None:
    x, w, bias = random(2, 19, 5, 6), random(19, 7, 3, 3, seed=1), random(7, seed=2)
    x, w, bias = (tensor.to(dtype) for tensor in (x, w, bias))
    exact = plain.conv_transpose2d(x.double(), w.double(), bias.double(), stride=2)
    rtol, atol = reference.tolerance(str(dtype).removeprefix("torch."), 19 * 9)
    y = conv_transpose2d(x, w, bias, stride=2, precision=precision)
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stride": 0}, "non-positive stride is not supported"),
        ({"padding": -1}, "negative padding is not supported"),
        ({"output_padding": -1}, "negative output_padding is not supported"),
        ({"dilation": 0}, "dilation should be greater than zero"),
        ({"groups": 0}, "non-positive groups is not supported"),
        ({"groups": 2}, "expected weight to be divisible by 2 at dimension 0"),
        ({"weight": torch.zeros(4, 4, 3, 3)}, "to have 4 channels, but got 3 channels"),
        ({"bias": torch.zeros(3)}, "bias to be 1-dimensional with 4 elements"),
        (
            {"output_padding": (0, 3), "stride": (1, 2)},
            "either stride or dilation, but got output_padding_height: 0 output_padding_width: 3 "
            "stride_height: 1 stride_width: 2 dilation_height: 1 dilation_width: 1",
        ),
        ({"padding": 5}, r"\(5 x 5\). Calculated output size per channel: \(-3 x -3\)"),
        ({"stride": (1, 2, 3)}, "expected stride to be a single integer value or a list of 2"),
        ({"input": torch.zeros(1, 3, 0, 5)}, "Only zero batch or zero channel inputs"),
        ({"input": torch.zeros(5, 5)}, "input"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses_what_torch_refuses(change: dict[str, Any], words: str) -> None:
    good = {"input": torch.zeros(1, 3, 5, 5), "weight": torch.zeros(3, 4, 3, 3)}
    for compute in (conv_transpose2d, torch.conv_transpose2d):
        with pytest.raises(RuntimeError, match=words):
            compute(**(good | change))  # type: ignore[operator]


def test_named_padding_is_refused_as_torch_refuses_it() -> None:
    for compute in (conv_transpose2d, torch.conv_transpose2d):
        with pytest.raises(TypeError, match="must be tuple of ints, not str"):
            compute(torch.zeros(1, 3, 5, 5), torch.zeros(3, 4, 3, 3), padding="same")  # type: ignore[operator]


def test_zero_batch() -> None:
    x, w = random(0, 3, 5, 5).requires_grad_(), random(3, 4, 3, 3).requires_grad_()
    y = conv_transpose2d(x, w, random(4), stride=2)
    assert y.shape == (0, 4, 11, 11)
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert dx.shape == x.shape
    assert not dw.any()


def test_module_accepts_an_output_size() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, device=DEVICE)
    ours = tconv.ConvTranspose2d(3, 2, 3, stride=2, padding=1, device=DEVICE)
    ours.load_state_dict(theirs.state_dict())
    x = random(1, 3, 4, 5, dtype=torch.float32)
    y, expected = (layer(x, output_size=[8, 9]) for layer in (ours, theirs))
    assert y.shape == (1, 2, 8, 9)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, output_size=[9, 12])
