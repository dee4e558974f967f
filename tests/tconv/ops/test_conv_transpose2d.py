"""Tests of transposed convolution against torch in fp64: values, gradients, epilogue, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.utils.flop_counter import FlopCounterMode

import tconv
from tconv import reference
from tconv.families import serves
from tconv.functional import conv_transpose2d
from tconv.launch import recorded
from tconv.ops import activations
from tconv.ops.conv_run import geometry_of, prepare
from tconv.ops.conv_transpose_check import check_conv_transpose
from tconv.problem import ACTIVATIONS, FROM_RESULT, BatchNorm, Epilogue, Layout, Problem
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

# The channels (24) and the pixels leave a remainder of a program's tile; boxes need channels in
# multiples of 8.
BOXES = {"x": (2, 16, 5, 6), "w": (16, 24, 3, 3), "padding": 1}
FAMILY_CASES: dict[str, tuple[dict[str, Any], Tile]] = {
    "implicit_gemm": (CASES["groups"], Tile(16, 16, 16, splits=1)),
    "implicit_gemm-splits": (CASES["7x5"], Tile(16, 16, 16, splits=3)),
    "implicit_gemm_in_place": (CASES["output-padding"], Tile(32, 16, 16)),
    "direct": (CASES["7x5"], Tile(64, 4, 1, stages=1)),
    "grouped": (CASES["groups"], Tile(64, 16, 16)),
    "depthwise": (CASES["depthwise"], Tile(8, 4, 4, stages=1)),
    "implicit_gemm_tma": (BOXES, Tile(32, 16, 16)),
    "implicit_gemm_tma-splits": (BOXES, Tile(32, 16, 16, splits=3)),
}
NORM = BatchNorm("float32", 1e-5)
BARE = BatchNorm("float32", 1e-5, weight=False, bias=False)
ENDINGS = {
    "before": Epilogue(True, NORM, residual=True, activation="silu", kept=True),
    "after": Epilogue(False, BARE, True, "tanh", residual_after=True, kept=True),
    "residual": Epilogue(residual=True, activation="leaky_relu", slope=0.3),
}
FORMS: dict[str, tuple[str, Layout]] = {
    "nhwc-float16": ("float16", "nhwc"),
    "nchw-float32": ("float32", "nchw"),
    "nhwc-float32": ("float32", "nhwc"),
    "nchw-float16": ("float16", "nchw"),
}
FORMED = [
    pytest.param(*form, id=name, marks=[] if i < 2 else [pytest.mark.thorough])
    for i, (name, form) in enumerate(FORMS.items())
]


def posed(case: dict[str, Any], dtype: str, layout: Layout) -> Problem:
    """Return the problem of a case: the input gradient of a convolution."""
    pairs = [value if isinstance(value, tuple) else (value, value)
             for value in (case.get(key, default) for key, default in
                           (("stride", 1), ("padding", 0), ("output_padding", 0),
                            ("dilation", 1)))]  # fmt: skip
    groups = case.get("groups", 1)
    full, extent, _ = check_conv_transpose(case["x"], case["w"], None, *pairs, groups)
    size = (case["x"][0], case["w"][1] * groups, *extent)
    return Problem(geometry_of(size, case["w"], full), "dgrad", dtype, layout)


@pytest.mark.parametrize(("dtype", "layout"), FORMED)
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("name", FAMILY_CASES)
def test_every_familys_gradient_ends_in_an_epilogue(
    name: str, ending: Epilogue, dtype: str, layout: Layout
) -> None:
    """Bias, batch normalization, residual, activation and the stored argument; no pool."""
    case, tile = FAMILY_CASES[name]
    family, problem = name.split("-")[0], posed(case, dtype, layout)
    if not serves(family, problem, TARGET):
        pytest.skip(f"{family} does not serve it")
    exact = [tensor.to(getattr(torch, dtype)).double() for tensor in operands(case)]
    bias = exact[2] if ending.bias else None
    norm = {name: tensor.float() for name, tensor in normed(len(exact[2])).items()}
    norm = {name.replace("running", "norm"): tensor for name, tensor in norm.items()}
    z = plain.conv_transpose2d(*exact[:2], bias, **window(case))
    if ending.norm is not None:
        mean, var, weight, shift = (norm[f"norm_{each}"].double()[:, None, None]
                                    for each in ("mean", "var", "weight", "bias"))  # fmt: skip
        z = (z - mean) / (var + ending.norm.eps).sqrt()
        z = z * weight if ending.norm.weight else z
        z = z + shift if ending.norm.bias else z
    residual = random(*z.shape, seed=4).to(getattr(torch, dtype))
    z = z if ending.residual_after else z + residual.double()
    y = activations.apply(z, str(ending.activation), ending.slope)
    y = y + residual.double() if ending.residual_after else y
    x, w, bias = (tensor.to(getattr(torch, dtype)) for tensor in exact)
    if layout == "nhwc":
        x = x.contiguous(memory_format=torch.channels_last)
    tensors = {"dy": x, "w": w, "bias": bias, "residual": residual, **norm}
    found = prepare(problem, Choice(family, tile), TARGET, ending, "nchw")(tensors)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 1e-2, "atol": 2e-2}
    torch.testing.assert_close(found.double(), y, **close)
    if ending.kept:
        torch.testing.assert_close(tensors["kept"].double(), z, **close)


# ---- the epilogue of the operator ------------------------------------------------------------


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


def torchs_norm(z: Tensor, norm: dict[str, Tensor], eps: float = 1e-5) -> Tensor:
    """Compute a batch norm in elementary operations, with gradients for the statistics."""
    mean, var = norm["running_mean"], norm["running_var"]
    scale = norm.get("norm_weight", 1.0) / torch.sqrt(var + eps)
    z = (z - mean[:, None, None]) * scale[:, None, None]
    return z + norm["norm_bias"][:, None, None] if "norm_bias" in norm else z


@pytest.mark.parametrize("channels_last", [pytest.param(True, id="nhwc"), CONTIGUOUS])
@pytest.mark.parametrize("absent", ["", "norm_weight", "norm_bias"])
@pytest.mark.parametrize("name", ["groups", "depthwise", "output-padding-of-a-stride", "unbatched"])
def test_batch_norm_and_residual(name: str, absent: str, channels_last: bool) -> None:
    """One kernel forward; gradients reach each operand, the statistics included."""
    case = CASES[name]
    tensors = [tensor.requires_grad_() for tensor in operands(case, channels_last)]
    norm = normed(len(tensors[2]))
    norm.pop(absent, None)
    leaves = [*tensors, *(tensor.requires_grad_() for tensor in norm.values())]
    z = torchs_norm(plain.conv_transpose2d(*tensors, **window(case)), norm)
    residual = random(*z.shape, seed=4).requires_grad_()
    dy = random(*z.shape, seed=3)
    for activation, after in (("relu", False), ("silu", True), ("leaky_relu", True), (None, True)):
        expected = z if after else z + residual
        if activation is not None:
            expected = activations.apply(expected, activation, 0.2)
        expected = expected + residual if after else expected
        how = {"activation": activation, "residual_after": after, "negative_slope": 0.2}
        with recorded() as log:
            y = conv_transpose2d(*tensors, **window(case), **norm, residual=residual, **how)
        assert len([launch for launch in log if "relayout" not in launch.kernel]) == 1
        assert {"norm_mean", "residual"} <= log[-1].operands.keys()
        kept = activation is not None and (after or activation not in FROM_RESULT)
        assert ("kept" in log[-1].operands) == kept
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        wanted = torch.autograd.grad(expected, [*leaves, residual], dy, retain_graph=True)
        found = torch.autograd.grad(y, [*leaves, residual], dy)
        torch.testing.assert_close(found, wanted)


def test_what_a_gradient_does_not_need_is_not_kept() -> None:
    x, w, bias = operands(CASES["unet"])
    residual = random(2, 3, 10, 8).requires_grad_()
    how = {"stride": 2, "residual": residual, "activation": "silu"}
    for kept in (True, False):
        with torch.set_grad_enabled(kept), recorded() as log:
            conv_transpose2d(x, w, bias, **how)
        assert ("kept" in log[-1].operands) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_batch_norm_keeps_its_own_dtype(dtype: torch.dtype) -> None:
    """Under autocast too; tensors of a norm that differ in dtype are computed in float32."""
    x, w, bias = operands(CASES["dcgan"])
    form = window(CASES["dcgan"])
    norm = normed(3, torch.float32)
    exact = torchs_norm(plain.conv_transpose2d(x, w, bias, **form), norm)
    single = [tensor.float() for tensor in (x, w, bias)]
    with torch.no_grad(), torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
        y = conv_transpose2d(*single, **form, **norm)
        mixed = {**norm, "norm_bias": norm["norm_bias"].double()}
        torch.testing.assert_close(conv_transpose2d(*single, **form, **mixed), y)
    assert y.dtype == dtype
    rounding = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=4 * rounding)


# ---- torch's transforms of an operator ------------------------------------------------------

SMALL = {"x": (1, 2, 3, 2), "w": (2, 1, 2, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2}


@pytest.mark.parametrize("fused", [False, True], ids=["activation", "fused"])
def test_second_gradients_and_tangents(fused: bool) -> None:
    inputs = [tensor.requires_grad_() for tensor in operands(SMALL)]
    if fused:
        norm = [tensor.requires_grad_() for tensor in normed(2).values()]
        inputs += [random(1, 2, 4, 3, seed=4).requires_grad_(), *norm]

    def layer(x: Tensor, w: Tensor, bias: Tensor, *given: Tensor) -> Tensor:
        names = ("residual", "norm_weight", "norm_bias", "running_mean", "running_var")
        more: dict[str, Any] = dict(zip(names, given, strict=True)) if given else {}
        more["residual_after"] = fused
        return conv_transpose2d(x, w, bias, **window(SMALL), activation="tanh", **more)

    # test_forward_ad.py holds the tangents of the fused operator
    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True, check_forward_ad=not fused)
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
@pytest.mark.parametrize("with_norm", [False, True], ids=["plain", "norm"])
def test_torch_func(with_norm: bool) -> None:
    x, w, bias = operands(SMALL)
    samples = torch.stack([x, x.cos()])

    norm = normed(2)

    def composed(x: Tensor, w: Tensor, bias: Tensor, **form: Any) -> Tensor:
        return torchs_norm(plain.conv_transpose2d(x, w, bias, **form), norm).tanh()

    def fused(*tensors: Tensor, **form: Any) -> Tensor:
        return conv_transpose2d(*tensors, **form, **norm, activation="tanh")

    def loss(compute: Any, w: Tensor, x: Tensor) -> Tensor:
        return compute(x, w, bias, **window(SMALL)).square().sum()  # type: ignore[no-any-return]

    pair = (fused, composed) if with_norm else (conv_transpose2d, plain.conv_transpose2d)
    ours, torchs = (
        func.vmap(func.grad(lambda w, x, f=f: loss(f, w, x)), (None, 0))(w, samples) for f in pair
    )
    torch.testing.assert_close(ours, torchs)
    ours, torchs = (
        func.jvp(lambda w, f=f: func.grad(lambda w: loss(f, w, x))(w), (w,), (w.cos(),))
        for f in pair
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
    calls = ({}, normed(3) | {"activation": "relu"}, None)
    for how in calls:
        compute = plain.conv_transpose2d if how is None else conv_transpose2d
        with FlopCounterMode(display=False) as counter:
            compute(*inputs, stride=2, **(how or {})).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == counts[2] > 0


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


def test_bad_norms_and_residuals_are_refused() -> None:
    x, w, bias = operands(CASES["unet"])
    norm = normed(3)
    with pytest.raises(ValueError, match="running_mean and running_var must be given together"):
        conv_transpose2d(x, w, bias, stride=2, running_var=norm["running_var"])
    with pytest.raises(ValueError, match="norm_weight and norm_bias need running_mean"):
        conv_transpose2d(x, w, bias, stride=2, norm_bias=norm["norm_bias"])
    short = {**norm, "norm_weight": norm["norm_weight"][:-1]}
    with pytest.raises(RuntimeError, match=r"expected norm_weight .* 3 elements, but got size \[2"):
        conv_transpose2d(x, w, bias, stride=2, **short)
    with pytest.raises(RuntimeError, match=r"residual of the size of the result, \[2, 3, 10, 8\]"):
        conv_transpose2d(x, w, bias, stride=2, residual=random(2, 3, 10, 9))
    half = random(2, 3, 10, 8, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"and residual type .float16. should be the same"):
        conv_transpose2d(x, w, bias, stride=2, residual=half)


def test_a_gradient_without_its_stored_argument_is_refused() -> None:
    inputs = [tensor.requires_grad_() for tensor in operands(CASES["unet"])]
    how = ([10, 8], [2, 2, 0, 0, 1, 1, 1], "silu", 0.0, False, False, None)
    y = torch.ops.tconv.conv_transpose2d_fused(*inputs, *(None,) * 5, 0.0, *how)[0]
    with pytest.raises(RuntimeError, match=r"conv_transpose2d_fused has no gradient here: .*keep"):
        y.sum().backward()


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
