"""Activation functions and their derivatives, element by element."""

import triton
import triton.language as tl


@triton.jit
def relu(value):
    """Zero for negative values; NaN stays NaN."""
    return tl.where(value < 0, 0.0, value)


@triton.jit
def sigmoid(value):
    return 1.0 / (1.0 + tl.exp(-value))


@triton.jit
def tanh(value):
    """Hyperbolic tangent: a Pade approximant near 0, where the exponential form cancels."""
    square = value * value
    over = ((square + 378.0) * square + 17325.0) * square + 135135.0
    under = ((28.0 * square + 3150.0) * square + 62370.0) * square + 135135.0
    near = value * (over / under)
    far = 1.0 - 2.0 / (tl.exp(2.0 * value) + 1.0)
    return tl.where((value > -0.5) & (value < 0.5), near, far)


@triton.jit
def gelu_tanh_argument(value):
    """w, where GELU's tanh form 0.5 v (1 + tanh(w / 2)) equals v sigmoid(w)."""
    return 1.5957691216057308 * (value + 0.044715 * (value * value * value))  # 2 sqrt(2 / pi)


@triton.jit
def activate(value, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """The activation of ``value``, with NaN and infinities as in torch; None is the identity."""
    if ACTIVATION == "relu":
        value = relu(value)
    elif ACTIVATION == "relu6":
        value = relu(tl.where(value > 6, 6.0, value))
    elif ACTIVATION == "leaky_relu":
        value = tl.where(value > 0, value, value * SLOPE)
    elif ACTIVATION == "silu":
        value = value / (1.0 + tl.exp(-value))
    elif ACTIVATION == "hardswish":
        value = value * relu(tl.where(value > 3, 6.0, value + 3.0)) / 6.0
    elif ACTIVATION == "hardsigmoid":
        value = relu(tl.where(value > 3, 6.0, value + 3.0)) / 6.0
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        value = value / (1.0 + tl.exp(-gelu_tanh_argument(value)))
    elif ACTIVATION == "sigmoid":
        value = sigmoid(value)
    elif ACTIVATION == "tanh":
        value = tanh(value)
    return value


@triton.jit
def activation_grad(dy, value, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
                    FROM_RESULT: tl.constexpr):  # fmt: skip
    """dy times the activation's derivative, at the kinks as in torch.

    ``value`` is the activation's argument or, with FROM_RESULT, its result.
    """
    if ACTIVATION == "relu":
        dy = tl.where(value <= 0, 0.0, dy)
    elif ACTIVATION == "relu6":
        dy = tl.where((value <= 0) | (value >= 6), 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(value > 0, dy, dy * SLOPE)
    elif ACTIVATION == "silu":
        share = sigmoid(value)
        dy = dy * share * (1.0 + value * (1.0 - share))
    elif ACTIVATION == "hardswish":
        dy = tl.where(value < 3, tl.where(value <= -3, 0.0, dy * (value / 3.0 + 0.5)), dy)
    elif ACTIVATION == "hardsigmoid":
        dy = tl.where((value > -3) & (value < 3), dy / 6.0, 0.0)
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
        density = 0.3989422804014327 * tl.exp(-0.5 * value * value)  # 1 / sqrt(2 pi)
        dy = dy * (share + value * density)
    elif ACTIVATION == "gelu_tanh":
        share = sigmoid(gelu_tanh_argument(value))
        rise = 1.5957691216057308 * (1.0 + 3 * 0.044715 * value * value)
        dy = dy * (share + value * (share * (1.0 - share)) * rise)
    elif ACTIVATION == "sigmoid":
        share = value
        if not FROM_RESULT:
            share = sigmoid(value)
        dy = dy * (share * (1.0 - share))
    elif ACTIVATION == "tanh":
        height = value
        if not FROM_RESULT:
            height = tanh(value)
        dy = dy * (1.0 - height * height)
    return dy
