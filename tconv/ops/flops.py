"""Floating-point operations of each operator, for ``torch.utils.flop_counter.FlopCounterMode``.

Counting follows torch's own convolutions: 2 for each product with a filter's element, the same for
the forward pass and for either gradient. Pools have no products and count 0, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from tconv.geometry import out_size

Sizes = Sequence[int]


def _products(y: Sizes, w: Sizes) -> int:
    """Return the operations for y (batch, filters, h, w) and w (filters, channels, h, w)."""
    batch, filters, out_h, out_w = y
    _, channels, filter_h, filter_w = w
    return 2 * batch * filters * out_h * out_w * channels * filter_h * filter_w


def _conv2d(x: Sizes, w: Sizes, *rest: Any, out_shape: Sizes, **_: Any) -> int:
    return _products(out_shape, w)


def _conv2d_fused(x: Sizes, w: Sizes, *rest: Any, out_shape: Any, **_: Any) -> int:
    window = rest[7]  # after six tensors and eps
    size = [out_size(x[2 + i], w[2 + i], *window[i:6:2]) for i in range(2)]
    return _products((x[0], w[0], *size), w)


def _conv2d_input_grad(dy: Sizes, w: Sizes, *rest: Any, **_: Any) -> int:
    return _products(dy, w)


def _conv2d_weight_grad(x: Sizes, dy: Sizes, w: Sizes, *rest: Any, **_: Any) -> int:
    return _products(dy, w)


def _conv_transpose2d(x: Sizes, w: Sizes, *rest: Any, **_: Any) -> int:
    return _products(x, w)


def register() -> None:
    """Register the formulas with torch; the operators must exist."""
    ops = torch.ops.tconv
    register_flop_formula(ops.conv2d)(_conv2d)
    register_flop_formula(ops.conv2d_fused)(_conv2d_fused)
    register_flop_formula(ops.conv2d_input_grad)(_conv2d_input_grad)
    register_flop_formula(ops.conv2d_weight_grad)(_conv2d_weight_grad)
    for transposed in (ops.conv_transpose2d, ops.conv_transpose2d_fused):
        register_flop_formula(transposed)(_conv_transpose2d)
