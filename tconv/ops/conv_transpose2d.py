"""Transposed convolution: the input-gradient kernels as a forward pass.

    conv_transpose2d (x, w, bias) -> y, kept

where y = activation(z), and z is the input gradient of a convolution, with x in place of dy and z
in place of dx. Its own gradients, of any order, are therefore a convolution (for x) and that
convolution's filter gradient (for w). ``kept`` is z if an activation's gradient needs it, and empty
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tconv.launch import runs_triton
from tconv.ops import activations
from tconv.ops.arguments import overridden
from tconv.ops.conv2d import NEGATIVE_SLOPE
from tconv.ops.conv_check import check_types
from tconv.ops.conv_run import cached_call, precision_of
from tconv.ops.conv_transpose_check import conv_transpose_window
from tconv.ops.layout import dense, empty, layout_of, prefers_channels_last
from tconv.ops.registration import differentiates, register, register_autocast
from tconv.problem import PLAIN, Epilogue

# ---- operator -------------------------------------------------------------------------------

_library = torch.library.Library("tconv", "FRAGMENT")
_ops = torch.ops.tconv
# ``extent`` is y's height and width; ``window`` is as for conv2d.
_library.define(
    "conv_transpose2d(Tensor x, Tensor w, Tensor? bias, SymInt[] extent, int[] window, "
    "str? activation, float slope, bool keep, str? precision) -> (Tensor, Tensor)"
)

Sizes = Sequence[int]


def _epilogue(bias: Tensor | None, activation: str | None, slope: float, keep: bool) -> Epilogue:
    if activation is None:
        return PLAIN if bias is None else Epilogue(bias=True)
    slope = slope if activation == "leaky_relu" else 0.0
    made = Epilogue(bias is not None, activation=activation, slope=slope)
    kept = keep and not made.from_result
    return Epilogue(bias is not None, activation=activation, slope=slope, kept=kept)


def _size(x: Tensor, w: Tensor, extent: Sizes, window: Sizes) -> tuple[int, ...]:
    """Return the size of y."""
    return (x.shape[0], w.shape[1] * window[6], *extent)


def _channels_last(x: Tensor, w: Tensor) -> bool:
    """Return whether the result is channels_last: in torch, if the input or the filter is."""
    return prefers_channels_last(x) or prefers_channels_last(w)


def _conv_transpose2d(*inputs: Any) -> tuple[Tensor, Tensor]:
    x, w, bias, extent, window, activation, slope, keep, precision = inputs
    check_types(x, w, bias)
    epilogue = _epilogue(bias, activation, slope, keep)
    layout, size = layout_of(_channels_last(x, w)), _size(x, w, extent, window)
    if not runs_triton(x.device):
        return _by_torch(x, w, bias, extent, window, epilogue)
    w_layout = layout_of(prefers_channels_last(w))
    places = (layout, w_layout, x.dtype, x.device, precision_of(x, precision), epilogue)
    call = cached_call("dgrad", size, tuple(w.shape), tuple(window), *places)
    tensors = {"dy": x, "w": w} if bias is None else {"dy": x, "w": w, "bias": bias}
    y = call(tensors)
    return y, tensors["kept"] if epilogue.kept else x.new_empty(0)


def _by_torch(
    x: Tensor, w: Tensor, bias: Tensor | None, extent: Sizes, window: Sizes, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """Compute the same with torch's own operators, on a CPU without the interpreter."""
    stride, pad, gap, groups = window[0:2], window[2:4], window[4:6], window[6]
    least = [(x.shape[2 + i] - 1) * stride[i] - 2 * pad[i] + gap[i] * (w.shape[2 + i] - 1) + 1
             for i in range(2)]  # fmt: skip
    more = [extent[i] - least[i] for i in range(2)]
    z = torch.ops.aten.convolution(x, w, bias, stride, pad, gap, True, more, groups)
    layout = layout_of(_channels_last(x, w))
    y = z
    if epilogue.activation is not None:
        y = activations.apply(z, epilogue.activation, epilogue.slope)
    return dense(y, layout), dense(z, layout) if epilogue.kept else x.new_empty(0)


@torch.library.register_fake("tconv::conv_transpose2d", lib=_library)
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    x, w, bias, extent, window, activation, slope, keep, _ = inputs
    check_types(x, w, bias)
    layout, size = layout_of(_channels_last(x, w)), _size(x, w, extent, window)
    kept = _epilogue(bias, activation, slope, keep).kept
    return empty(x, size, layout), empty(x, size, layout) if kept else x.new_empty(0)


# ---- gradients ------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, _, _, ctx.window, ctx.activation, slope, _, ctx.precision = inputs
    y, kept = output
    epilogue = _epilogue(None, ctx.activation, slope, False)
    ctx.slope, ctx.from_result = epilogue.slope, epilogue.from_result
    if kept.dim() != 4:
        ctx.mark_non_differentiable(kept)
    value = None
    if ctx.activation is not None:
        value = y if ctx.from_result else kept
    ctx.save_for_backward(x, w, value)


def _backward(ctx: Any, dy: Tensor | None, dkept: Tensor | None) -> tuple[Any, ...]:
    x, w, value = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dz, dbias = dy, None
    if dy is not None and value is not None:
        _check_kept(value, dy.shape)
        sums = needs[2] and dkept is None
        how = (ctx.activation, ctx.slope, ctx.from_result, sums)
        dz, total = _ops.conv2d_activation_grad(dy, value, *how)
        dbias = total if sums else None
    if dkept is not None:
        dz = dkept if dz is None else dz + dkept
    assert dz is not None
    dx = dw = None
    if needs[0]:
        dx = _ops.conv2d(dz, w, None, ctx.window, ctx.precision)
    if needs[1]:
        window = (ctx.window, prefers_channels_last(w), ctx.precision)
        dw = _ops.conv2d_weight_grad(dz, x, w.shape, *window)
    if needs[2] and dbias is None:
        dbias = _ops.conv2d_bias_grad(dz)
    return dx, dw, dbias, *(None,) * 6


def _check_kept(value: Tensor, size: Sizes) -> None:
    if value.shape != size:
        raise RuntimeError("conv_transpose2d has no gradient here: it was called with keep=False")


def _jvp(inputs: tuple[Any, ...], output: Any, tangents: tuple[Any, ...]) -> Any:
    """Return the tangents of y and kept, from the tangent of z for each operand."""
    x, w, _, extent, window, activation, slope, _, precision = inputs
    y, kept = output
    dx, dw, dbias = tangents[:3]
    plain = (extent, window, None, 0.0, False, precision)
    dz = None
    if dx is not None:
        dz, dbias = _ops.conv_transpose2d(dx, w, dbias, *plain)[0], None
    if dw is not None:
        by_w = _ops.conv_transpose2d(x, dw, dbias, *plain)[0]
        dz, dbias = by_w if dz is None else dz + by_w, None
    if dbias is not None:
        dz = dbias[None, :, None, None].expand(y.shape)
    dy = dz
    if dz is not None and activation is not None:
        epilogue = _epilogue(None, activation, slope, False)
        value = y if epilogue.from_result else kept
        _check_kept(value, y.shape)
        how = (activation, epilogue.slope, epilogue.from_result, False)
        dy = _ops.conv2d_activation_grad(dz, value, *how)[0]
    return dy, dz if kept.dim() == 4 else None


register(_library, "conv_transpose2d", _conv_transpose2d, _backward, _save, _jvp)
register_autocast(_library, "conv_transpose2d")


# ---- public function ------------------------------------------------------------------------


def transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    extent: Sizes,
    more: Sizes,
    window: Sizes,
    activation: str | None,
    slope: float,
    precision: str | None,
) -> Tensor:
    """Return y of batched images, for a window, extent and missing border already checked."""
    if any(more):
        x = torch.nn.functional.pad(x, (0, more[1], 0, more[0]))
    keep = differentiates(x, weight, bias)
    how = (activation, slope, keep, precision)
    y: Tensor = _ops.conv_transpose2d.default(x, weight, bias, extent, window, *how)[0]
    return y


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    negative_slope: float = NEGATIVE_SLOPE,
    precision: str | None = None,
) -> Tensor:
    """Two-dimensional transposed convolution, as ``torch.nn.functional.conv_transpose2d``.

        y[n, k, h, v] = bias[k] + sum over c, r, s with p S = h + P - r D (v, q and s alike) of
            x[n, c, p, q] w[c, k, r, s]

    It is the gradient of ``conv2d`` with respect to its input, and runs on the same kernels, which
    also compute bias and activation.

    Args:
        input: x, (batch, in_channels, in_h, in_w), or without batch.
        weight: w, (in_channels, out_channels / groups, filter_h, filter_w).
        bias: (out_channels,), or None.
        stride: S, one number for both axes or (height, width); also for the arguments below except
            groups.
        padding: P, rows and columns removed from each side of the full result.
        output_padding: rows and columns added at the bottom and right; less than the stride or the
            dilation.
        groups: number of independent layers that the channels are divided among.
        dilation: D, distance between the taps of a filter.
        activation: ``"relu"``, another name that ``conv2d_fused`` takes, or None.
        negative_slope: of ``"leaky_relu"``.
        precision: as for ``conv2d``.

    Returns:
        y, (batch, out_channels, out_h, out_w) with
        out = (in - 1) S - 2 P + D (F - 1) + output_padding + 1;
        channels_last if the input or the weight is.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match, with torch's message.
        ValueError: if the activation is unknown.

    A filter that holds NaN or infinity spoils those elements of y as well whose windows overhang
    x: it meets the zeros around x, as in ``conv2d``'s dx.

    >>> import torch
    >>> conv_transpose2d(torch.zeros(1, 8, 7, 7), torch.zeros(8, 4, 2, 2), stride=2).shape
    torch.Size([1, 4, 14, 14])
    """
    tensors = (input, weight, bias)
    form = (stride, padding, output_padding, groups, dilation)
    if has_torch_function_variadic(*tensors):
        how: dict[str, Any] = {
            "activation": activation,
            "negative_slope": negative_slope,
            "precision": precision,
        }
        return overridden(conv_transpose2d, tensors, *tensors, *form, **how)  # type: ignore[no-any-return]
    window, extent, more = conv_transpose_window(*tensors, *form)
    batched = input.dim() != 3
    x = input if batched else input.unsqueeze(0)
    how_fused = (activation, negative_slope, precision)
    y = transposed(x, weight, bias, extent, more, window, *how_fused)
    return y if batched else y.squeeze(0)
