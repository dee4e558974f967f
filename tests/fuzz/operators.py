"""Random calls of the public functions, held against torch's own in fp64.

A case is drawn by hypothesis, which makes what fails as small as it can. torch decides what is
right: where it refuses, ours must refuse with the same kind of error; where it computes, ours must
give its values and gradients, with NaN and infinities where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad as fwAD

from tconv import functional, reference
from tconv.launch import recorded
from tests.devices import DEVICE

plain = torch.nn.functional
DTYPES = ("float16", "bfloat16", "float32", "float64")
# How a tensor lies in memory: dense in either format, or a view of something else.
VIEWS = ("contiguous", "channels_last", "sliced", "stepped", "transposed", "expanded", "offset")
SPECIALS = ("none", "none", "none", "nan", "inf", "zeros", "subnormal")
OPERATORS = ("conv2d", "conv2d", "conv2d+relu", "conv2d+residual", "conv2d_pool", "max_pool2d",
             "avg_pool2d", "conv_transpose2d", "conv_transpose2d+norm")  # fmt: skip
POOLS = ("max_pool2d", "avg_pool2d")


@dataclass(frozen=True)
class Call:
    """One call: its operator, the sizes, and how the operands are made."""

    operator: str
    batch: int | None  # None: an image without a batch
    channels: int  # of a group
    filters: int  # of a group
    groups: int
    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    dtype: str
    views: tuple[str, str]  # of the input and of the filter
    special: str
    bias: bool
    ceil_mode: bool
    frozen: bool  # whether the filter needs no gradient
    seed: int
    numbers: str = "int"  # of what type stride, padding and dilation are
    tangent: bool = False  # whether the derivative is taken in forward mode, by dual numbers

    @property
    def pools(self) -> bool:
        return self.operator in POOLS

    @property
    def transposed(self) -> bool:
        return self.operator.startswith("conv_transpose2d")


pair = st.tuples


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Draw a call whose sizes mostly fit together, and now and then do not."""
    small, large = st.integers(1, 4), st.integers(1, 33)
    channels, filters = draw(st.one_of(small, large)), draw(st.one_of(small, large))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    channels, filters = (draw(st.sampled_from([n] * 15 + [0])) for n in (channels, filters))
    operator = draw(st.sampled_from(OPERATORS))
    window = draw(pair(st.integers(1, 5), st.integers(1, 5)))
    sizes = pair(st.integers(6 if operator == "conv2d_pool" else 4, 14), st.integers(6, 14))
    stride = draw(_strides(operator))
    padding = draw(_paddings(operator, window))
    return Call(
        operator=operator,
        batch=draw(st.sampled_from([0, 1, 2, 2, 3, None])),
        channels=channels if groups < 4 else draw(small),
        filters=filters if groups < 4 else draw(small),
        groups=groups,
        size=draw(st.one_of(sizes, sizes, pair(st.integers(0, 14), st.integers(1, 14)))),
        window=window,
        stride=(1, 1) if padding == "same" and draw(st.booleans()) else stride,
        padding=padding,
        dilation=draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 3)])),
        dtype=draw(st.sampled_from(DTYPES)),
        views=(draw(st.sampled_from(VIEWS)), draw(st.sampled_from(VIEWS))),
        special=draw(st.sampled_from(SPECIALS)),
        bias=draw(st.booleans()),
        ceil_mode=draw(st.booleans()),
        frozen=draw(st.sampled_from([False, False, True])),
        seed=draw(st.integers(0, 2**16)),
        numbers=draw(st.sampled_from(["int"] * 10 + ["numpy", "float"])),
        tangent=draw(st.sampled_from([False, False, False, True])),
    )


def _strides(operator: str) -> st.SearchStrategy[tuple[int, int]]:
    """Strides of 1 to 3, and longer ones than any image, which a transposed output cannot hold."""
    short = pair(st.integers(1, 3), st.integers(1, 3))
    longest = 24 if operator.startswith("conv_transpose2d") else 2**16
    long = pair(st.integers(1, longest), st.integers(1, 3))
    return _one_of([short] * (7 if operator == "conv2d_pool" else 3) + [long])


def _paddings(operator: str, window: tuple[int, int]) -> st.SearchStrategy[tuple[int, int] | str]:
    """Paddings that the operator takes (a pool's: half its window), and some that it refuses."""
    pools = operator in POOLS
    most = [extent // 2 if pools else 2 for extent in window]
    right: st.SearchStrategy[Any] = pair(*(st.integers(0, extent) for extent in most))
    named = st.sampled_from(["same", "valid"])
    strange = pair(st.integers(0, 3), st.integers(0, 3))
    if pools or operator.startswith("conv_transpose2d"):  # they have no named padding
        return _one_of([right] * 10 + [named, strange])
    return st.one_of(right, strange, named)


def _one_of(strategies: Sequence[st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Draw from one of the strategies; one listed often is drawn often, unlike in st.one_of."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


def made(size: Sequence[int], call: Call, view: str, generator: torch.Generator) -> Tensor:
    """A tensor of ``size``, drawn, with the call's special values, lying as ``view`` says."""
    drawn = torch.randn(list(size), generator=generator, dtype=torch.float64)
    drawn = _with_specials(drawn, call, generator).to(getattr(torch, call.dtype)).to(DEVICE)
    return _laid_out(drawn, view)


def _with_specials(drawn: Tensor, call: Call, generator: torch.Generator) -> Tensor:
    values = {
        "nan": [torch.nan], "inf": [torch.inf, -torch.inf], "zeros": [0.0, -0.0],
        "subnormal": [torch.finfo(getattr(torch, call.dtype)).tiny / 8],
    }.get(call.special, [])  # fmt: skip
    for value in values if drawn.numel() else []:
        places = torch.randint(drawn.numel(), (1 + drawn.numel() // 50,), generator=generator)
        drawn.view(-1)[places] = value
    return drawn


def _laid_out(drawn: Tensor, view: str) -> Tensor:
    """The same values at other strides; what a layout cannot do to a tensor stays contiguous."""
    if view == "channels_last" and drawn.dim() == 4:
        return drawn.contiguous(memory_format=torch.channels_last)
    if view == "sliced":
        larger = drawn.new_full([extent + 2 for extent in drawn.shape], torch.nan)
        inner = larger[tuple(slice(1, -1) for _ in drawn.shape)]
        return inner.copy_(drawn)
    if view == "stepped":
        larger = drawn.new_full([*drawn.shape[:-1], 2 * drawn.shape[-1]], torch.nan)
        return larger[..., ::2].copy_(drawn)
    if view == "transposed" and drawn.dim() > 1:
        return drawn.transpose(-1, -2).contiguous().transpose(-1, -2)
    if view == "expanded" and drawn.shape[0] > 0:
        return drawn[:1].expand(drawn.shape)
    if view == "offset":
        longer = drawn.new_full((drawn.numel() + 3,), torch.nan)
        return longer[3:].copy_(drawn.reshape(-1)).view(drawn.shape)
    return drawn


def operands(call: Call) -> dict[str, Tensor]:
    """x, and for a convolution w and perhaps a bias."""
    generator = torch.Generator().manual_seed(call.seed)
    channels = call.channels * call.groups
    batch = () if call.batch is None else (call.batch,)
    tensors = {"x": made((*batch, channels, *call.size), call, call.views[0], generator)}
    if not call.pools:
        filters = call.filters * call.groups
        size = (filters, call.channels, *call.window)
        if call.transposed:
            size = (channels, call.filters, *call.window)
        tensors["w"] = made(size, call, call.views[1], generator)
        if call.bias:
            tensors["bias"] = made((filters,), call, call.views[1], generator)
    return tensors


def computed(call: Call, tensors: dict[str, Tensor], ours: bool) -> Tensor:
    """The call on our functions, or on torch's."""
    x, w, bias = (tensors.get(name) for name in ("x", "w", "bias"))
    call = with_numbers(call)
    if call.pools:
        window: tuple[Any, ...] = (call.window, call.stride, call.padding)
        if call.operator == "avg_pool2d":
            compute: Callable[..., Any] = functional.avg_pool2d if ours else plain.avg_pool2d
            return compute(x, *window, call.ceil_mode)  # type: ignore[no-any-return]
        compute = functional.max_pool2d if ours else plain.max_pool2d
        return compute(x, *window, call.dilation, call.ceil_mode)  # type: ignore[no-any-return]
    if call.transposed:
        form = (call.stride, call.padding, (0, 0), call.groups, call.dilation)
        if call.operator == "conv_transpose2d":
            compute = functional.conv_transpose2d if ours else plain.conv_transpose2d
            return compute(x, w, bias, *form)  # type: ignore[no-any-return]
        return normalized(form, x, w, bias, ours)  # type: ignore[arg-type]
    form = (call.stride, call.padding, call.dilation, call.groups)
    residual = call.operator == "conv2d+residual"
    relu = call.operator != "conv2d"
    if ours:
        how: dict[str, Any] = {"activation": "relu" if relu else None}
        if call.operator == "conv2d_pool":
            return functional.conv2d_pool(x, w, bias, *form, **how)  # type: ignore[arg-type]
        if residual:
            y = plain.conv2d(x, w, bias, *form)  # type: ignore[arg-type]
            how["residual"] = torch.ones_like(y)
        return functional.conv2d(x, w, bias, *form, **how)  # type: ignore[arg-type]
    y = plain.conv2d(x, w, bias, *form)  # type: ignore[arg-type]
    y = y + 1 if residual else y
    y = y.relu() if relu else y
    return plain.max_pool2d(y, 2) if call.operator == "conv2d_pool" else y


def normalized(form: Any, x: Tensor, w: Tensor, bias: Tensor | None, ours: bool) -> Tensor:
    """sigmoid((u - 1) / 2) + 3 for the transposed convolution u, by a batch normalization."""
    y = plain.conv_transpose2d(x, w, bias, *form)
    if not ours:
        return ((y - 1) / 2).sigmoid() + 3
    mean = torch.ones(y.shape[-3], dtype=x.dtype, device=x.device)
    how: dict[str, Any] = {"running_mean": mean, "running_var": 3.75 * mean, "eps": 0.25}
    how |= {"residual": torch.full_like(y, 3), "residual_after": True}
    how["activation"] = "sigmoid"
    return functional.conv_transpose2d(x, w, bias, *form, **how)


def with_numbers(call: Call) -> Call:
    """The call with its window in numbers of the drawn type."""
    if call.numbers == "int":
        return call
    number: Callable[[int], Any] = np.int64 if call.numbers == "numpy" else float
    named = {
        name: value if isinstance(value, str) else tuple(map(number, value))
        for name in ("stride", "padding", "dilation")
        for value in [getattr(call, name)]
    }
    return replace(call, **named)


def tangent_of(call: Call, leaves: dict[str, Tensor], ours: bool) -> dict[str, Tensor]:
    """y and its tangent, for drawn tangents of the operands."""
    generator = torch.Generator().manual_seed(call.seed + 2)
    with fwAD.dual_level():
        duals = {}
        for name, leaf in leaves.items():
            if 0 in leaf.stride():  # torch refuses a dual of memory that overlaps itself
                leaf = leaf.clone()
            drawn = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            drawn = drawn.to(getattr(torch, call.dtype)).to(leaf)  # both sides get the same values
            duals[name] = leaf if call.frozen and name == "w" else fwAD.make_dual(leaf, drawn)
        y, dy = fwAD.unpack_dual(computed(call, duals, ours))
        assert dy is not None, "the tangent is lost"
        return {"y": y, "tangent": dy}


def outcome(call: Call, ours: bool) -> tuple[dict[str, Tensor], Exception | None]:
    """The result and the gradients by name, or the error."""
    tensors = operands(call)
    if not ours:
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    if call.tangent:
        try:
            return tangent_of(call, tensors, ours), None
        except Exception as error:
            return {}, error
    wanted = [name for name in tensors if not (call.frozen and name == "w")]
    leaves = {
        name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()
    }
    try:
        y = computed(call, leaves, ours)
        dy = torch.randn(
            y.shape, generator=torch.Generator().manual_seed(call.seed + 1), dtype=torch.float64
        )
        dy = dy.to(getattr(torch, call.dtype)).to(y)
        grads = torch.autograd.grad(y, [leaves[name] for name in wanted], dy)
    except Exception as error:
        return {}, error
    named = {f"d{name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return {"y": y.detach(), **named}, None


def check(call: Call) -> bool:
    """Whether torch computes the call; ours must do as it does.

    Raises:
        AssertionError: where it does not.
    """
    theirs, refused = outcome(call, ours=False)
    with recorded() as launches:
        result, error = outcome(call, ours=True)
    if refused is not None:
        assert error is not None, f"torch refuses ({refused}), ours computes"
        same = isinstance(error, type(refused)) or isinstance(refused, type(error))
        assert same, f"torch raises {refused!r}, ours {error!r}"
        return False
    assert error is None, f"torch computes, ours refuses: {error!r}"
    assert launches or not any(tensor.numel() for tensor in theirs.values()), "no kernel ran"
    rtol, atol = tolerances(call, theirs)
    if call.special in ("nan", "inf") and not call.pools:
        # A filter's NaN meets the zeros around dy in every implicit matrix product, cuDNN's too;
        # torch's CPU operator, which has no such zeros, is no judge of it.
        theirs.pop("y" if call.transposed else "dx", None)
        theirs.pop("tangent", None)
        if call.operator == "conv_transpose2d+norm":  # its gradients are formed from such results
            theirs = {}
    for name, wanted in theirs.items():
        got = result[name]
        assert got.shape == wanted.shape, f"{name} is {tuple(got.shape)}, torch's {wanted.shape}"
        assert got.dtype == getattr(torch, call.dtype), name
        close(name, got.double(), wanted, rtol, atol[name], call)
    return True


def tolerances(call: Call, theirs: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Of sums of so many products of unit variance; a gradient behind a ReLU errs no more."""
    taps = call.window[0] * call.window[1]
    pixels = max(1, theirs["y"].numel() // max(1, call.filters * call.groups))
    if call.operator == "conv2d_pool":
        pixels *= 4
    products = taps * max(1, call.channels)
    lengths = {
        "y": products,
        "tangent": 2 * products + 1,
        "dx": taps * call.filters,
        "dw": pixels,
        "dbias": pixels,
    }
    if call.pools:
        lengths = {"y": taps, "tangent": taps, "dx": taps}
    found = {name: reference.tolerance(call.dtype, length) for name, length in lengths.items()}
    return max(rtol for rtol, _ in found.values()), {
        name: atol for name, (_, atol) in found.items()
    }


def close(name: str, got: Tensor, wanted: Tensor, rtol: float, atol: float, call: Call) -> None:
    """Equal within rounding; NaN and infinities in the same places.

    Beyond the dtype's range torch in fp64 has numbers where ours has infinities, as it must; and a
    ReLU may decide otherwise where rounding moves a sum across 0, which shows in gradients only.
    """
    largest = torch.finfo(getattr(torch, call.dtype)).max
    beyond = wanted.abs() > 0.5 * largest
    differ = ~torch.isclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True) & ~beyond
    if not bool(differ.any()):
        return
    place = tuple(int(i) for i in differ.nonzero()[0])
    raise AssertionError(
        f"{name}{list(place)} is {float(got[place])}, torch's in fp64 {float(wanted[place])}; "
        f"{int(differ.sum())} of {differ.numel()} differ"
    )
