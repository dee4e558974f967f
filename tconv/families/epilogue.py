"""Operands and compile-time values of a forward launch's epilogue."""

from __future__ import annotations

from typing import Any

from tconv.launch import Pointer
from tconv.problem import Epilogue

NORM = ("norm_weight", "norm_bias", "norm_mean", "norm_var")
TENSORS = ("bias", *NORM, "residual", "kept", "offsets")


def epilogue_operands(epilogue: Epilogue, dtype: str) -> dict[str, Pointer]:
    """The tensors that an epilogue takes besides the result."""
    dtypes = {name: dtype for name in ("bias", "residual", "kept") if getattr(epilogue, name)}
    if epilogue.norm is not None:
        there = (epilogue.norm.weight, epilogue.norm.bias, True, True)
        given = [name for name, is_there in zip(NORM, there, strict=True) if is_there]
        dtypes |= dict.fromkeys(given, epilogue.norm.dtype)
    if epilogue.offsets:
        dtypes["offsets"] = "int8"
    return {name: Pointer(name, dtypes[name]) for name in TENSORS if name in dtypes}


def epilogue_constants(epilogue: Epilogue) -> dict[str, Any]:
    """The compile-time values, and None for each tensor that is not there."""
    given = epilogue_operands(epilogue, "float32")
    return {
        "EPS": epilogue.norm.eps if epilogue.norm is not None else 0.0,
        "ACTIVATION": epilogue.activation,
        "SLOPE": epilogue.slope,
        "RESIDUAL_AFTER": epilogue.residual_after,
        "POOL": epilogue.pool,
    } | dict.fromkeys(name for name in TENSORS if name not in given)


def unpooled_constants(epilogue: Epilogue) -> dict[str, Any]:
    """The compile-time values of a kernel that cannot pool, and so has no parameter for it."""
    constants = epilogue_constants(epilogue)
    return {name: constants[name] for name in constants if name not in ("POOL", "offsets")}
