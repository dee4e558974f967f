"""Activations and their derivatives, computed with torch's operators.

The forward values are for CPU tensors without Triton's interpreter. The derivatives are for the
same tensors, and the second derivatives for double backward on all devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_TANH_FACTOR = 2 * math.sqrt(2 / math.pi)  # GELU's tanh form is v sigmoid(w), w = f (v + c v^3)
_TANH_CUBIC = 0.044715


def apply(value: Tensor, activation: str, slope: float) -> Tensor:
    """Return ``activation(value)``; ``slope`` is that of ``leaky_relu`` for negative values."""
    if activation == "leaky_relu":
        return functional.leaky_relu(value, slope)
    if activation == "gelu_tanh":
        return functional.gelu(value, approximate="tanh")
    named: Callable[[Tensor], Tensor] = getattr(functional, activation)
    return named(value)


def derivative(value: Tensor, activation: str, slope: float, from_result: bool) -> Tensor:
    """Return the activation's derivative from its argument, or its result (``from_result``)."""
    one = torch.ones_like(value)
    if activation == "relu":
        return torch.where(value <= 0, 0.0, one)
    if activation == "relu6":
        return torch.where((value <= 0) | (value >= 6), 0.0, one)
    if activation == "leaky_relu":
        return torch.where(value > 0, one, slope)
    if activation == "hardswish":
        return torch.where(value < 3, torch.where(value <= -3, 0.0, value / 3 + 0.5), one)
    if activation == "hardsigmoid":
        return torch.where((value > -3) & (value < 3), one / 6, 0.0)
    if activation == "sigmoid":
        share = value if from_result else value.sigmoid()
        return share * (1 - share)
    if activation == "tanh":
        height = value if from_result else value.tanh()
        return 1 - height * height
    if activation == "silu":
        share = value.sigmoid()
        return share * (1 + value * (1 - share))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(value * math.sqrt(0.5))) + value * _density(value)
    share, rise, _ = _tanh_terms(value)
    return share + value * share * (1 - share) * rise


def second_derivative(
    value: Tensor, activation: str, slope: float, from_result: bool
) -> Tensor | None:
    """Return the derivative of ``derivative`` with respect to ``value``; None if 0 everywhere."""
    if activation == "hardswish":
        return torch.where((value > -3) & (value < 3), torch.ones_like(value) / 3, 0.0)
    if activation == "sigmoid":
        if from_result:
            return 1 - 2 * value
        share = value.sigmoid()
        return share * (1 - share) * (1 - 2 * share)
    if activation == "tanh":
        if from_result:
            return -2 * value
        height = value.tanh()
        return -2 * height * (1 - height * height)
    if activation == "silu":
        share = value.sigmoid()
        return share * (1 - share) * (2 + value * (1 - 2 * share))
    if activation == "gelu":
        return _density(value) * (2 - value * value)
    if activation == "gelu_tanh":
        share, rise, bend = _tanh_terms(value)
        slope_of = share * (1 - share)
        return slope_of * (2 * rise + value * ((1 - 2 * share) * rise * rise + bend))
    return None


def _density(value: Tensor) -> Tensor:
    """Return the standard normal density."""
    return torch.exp(-0.5 * value * value) / math.sqrt(2 * math.pi)


def _tanh_terms(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sigmoid(w) of GELU's tanh form, and the first and second derivative of w."""
    w = _TANH_FACTOR * (value + _TANH_CUBIC * value**3)
    rise = _TANH_FACTOR * (1 + 3 * _TANH_CUBIC * value * value)
    return w.sigmoid(), rise, 6 * _TANH_FACTOR * _TANH_CUBIC * value
