"""What a forward launch is told of its epilogue."""

from __future__ import annotations

from typing import Any

from tconv.launch import Pointer
from tconv.problem import Epilogue

TENSORS = ("bias", "residual", "offsets")


def epilogue_operands(epilogue: Epilogue, dtype: str) -> dict[str, Pointer]:
    """The tensors that an epilogue takes besides the result."""
    present = [name for name in TENSORS if getattr(epilogue, name)]
    return {name: Pointer(name, "int8" if name == "offsets" else dtype) for name in present}


def epilogue_constants(epilogue: Epilogue) -> dict[str, Any]:
    """The compile-time values: what is done, and None for each tensor that is not there."""
    return {"RELU": epilogue.relu, "POOL": epilogue.pool} | absent(epilogue, *TENSORS)


def absent(epilogue: Epilogue, *names: str) -> dict[str, None]:
    """None for those of the tensors that the epilogue does not have."""
    return dict.fromkeys(name for name in names if not getattr(epilogue, name))
