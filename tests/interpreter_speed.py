"""Shortcuts, for tests alone, through work that Triton's interpreter repeats.

For each launch, and for each call of a device function in it, the interpreter searches
``triton.language`` for the functions to replace. For each operation it builds a table of dtypes,
types and shapes as before, and applies the rules of conversion to operands that need none. It also
computes each 32-bit integer operation again in 64 bits, and reports an overflow in debug mode
only: here the two are switched on and off together. A convolution of one program, forward and
backward, then takes 0.04 s in place of 0.2 s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


class Replaced:
    """A launch's replacements in the language, made at once and undone as the interpreter's are."""

    def __init__(self, found: list[tuple[Any, str, Any]]) -> None:
        self._before = []  # object, attribute, what stood there
        for thing, name, value in found:
            self._before.append((thing, name, vars(thing).get(name, interpreter._MISSING)))
            setattr(thing, name, value)

    def restore(self) -> None:
        for thing, name, before in reversed(self._before):
            if before is interpreter._MISSING:
                delattr(thing, name)
            else:
                setattr(thing, name, before)


class Nothing:
    """The scope of a device function: its launch has made every replacement."""

    def restore(self) -> None:
        pass


def _replacements(search: Callable[[Any], Any]) -> list[tuple[Any, str, Any]]:
    """Return object, attribute and value of all that a launch replaces.

    That is both modules which a device function may see: ours see ``triton.language``, and those of
    ``triton.language.standard`` its core. A search in a language with replacements finds less.
    """
    scope = search(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    places = dict.fromkeys((thing, name) for thing, name, _ in scope._changes)
    found = [(thing, name, getattr(thing, name)) for thing, name in places]
    scope.restore()
    return found


def _replace_once() -> None:
    """Have the interpreter search the language once, and replace all of it once per launch."""
    search, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    found = functools.cache(lambda: _replacements(search))
    under_way: list[bool] = []  # for each launch, whether its replacements are made

    def patch_lang(function: Any) -> Any:
        if under_way and under_way[-1]:
            return Nothing()
        if under_way:
            under_way[-1] = True
        return Replaced(found())

    def run(self: Any, *operands: Any, **constants: Any) -> None:
        under_way.append(False)
        try:
            launch(self, *operands, **constants)
        finally:
            under_way.pop()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_lang, run


def _call_directly() -> None:
    """Replace a function of the language by a call that names the interpreter, unchecked."""

    def patch_attr(thing: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function = getattr(member, "__wrapped__", member)  # without the search for ``_semantic``

        def replacement(*args: Any, **named: Any) -> Any:
            named["_semantic"] = interpreter.interpreter_semantic
            return function(*args, **named)

        scope.set_attr(thing, name, replacement)

    interpreter._patch_attr = patch_attr


def _share_shapes() -> None:
    """Have the interpreter make a block's type and shape once: nothing changes them."""
    block_type, tensor = tl.block_type, tl.tensor
    make_type, make_tensor = block_type.__init__, tensor.__init__
    broadcast = interpreter.TritonSemantic.broadcast_impl_value
    types: dict[Any, dict[str, Any]] = {}  # attributes, by element type and sizes
    type_shapes: dict[tuple[Any, ...], Any] = {}  # by sizes
    shapes: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # shape and number of elements, by sizes

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([tl.core._unwrap_if_constexpr(size) for size in shape])
        key = element_ty.name, getattr(element_ty, "address_space", None), sizes
        if key not in types:
            make_type(self, element_ty, shape)
            self.shape = type_shapes.setdefault(sizes, self.shape)
            types[key] = dict(vars(self))
        vars(self).update(types[key])

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        if sizes not in shapes:
            make_tensor(self, handle, type)
            shapes[sizes] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[sizes]

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        blocks = lhs.type.is_block() and rhs.type.is_block()
        same = blocks and lhs.type.shape is rhs.type.shape
        return (lhs, rhs) if same else broadcast(self, lhs, rhs)

    block_type.__init__, tensor.__init__ = init_type, init_tensor
    interpreter.TritonSemantic.broadcast_impl_value = broadcast_impl_value


# Types in which two operands of the same type are computed, and 32-bit integers that are constants.
UNCHANGED = frozenset({"int1", "int32", "int64", "fp32", "fp64"})
INT32 = range(-(2**31), 2**31)


def _convert_less() -> None:
    """Spare operands that need no conversion the rules of conversion."""
    semantic, tensor = interpreter.TritonSemantic, tl.tensor
    convert = semantic.binary_op_type_checking_impl

    def wide(value: Any) -> bool:
        return type(value) is tensor and value.dtype.name in ("int32", "int64")

    def binary_op_type_checking_impl(
        self: Any, lhs: Any, rhs: Any, *rules: Any, **named: Any
    ) -> Any:
        if type(rhs) is int and rhs in INT32 and wide(lhs):
            return self.broadcast_impl_value(lhs, self.scalar_constant(rhs, lhs.dtype))
        if type(lhs) is int and lhs in INT32 and wide(rhs):
            return self.broadcast_impl_value(self.scalar_constant(lhs, rhs.dtype), rhs)
        tensors = type(lhs) is type(rhs) is tensor
        if tensors and lhs.dtype.name == rhs.dtype.name and lhs.dtype.name in UNCHANGED:
            return self.broadcast_impl_value(lhs, rhs)
        return convert(self, lhs, rhs, *rules, **named)

    semantic.binary_op_type_checking_impl = binary_op_type_checking_impl


def hasten() -> None:
    """Install the shortcuts."""
    if interpreter._patch_lang.__module__ == __name__:
        return
    _call_directly()
    _replace_once()
    _share_shapes()
    _convert_less()
    look_up = interpreter._get_np_dtype
    of_scalar = functools.cache(look_up)  # pointers and blocks have no hash

    def get_np_dtype(dtype: Any) -> Any:
        return of_scalar(dtype) if type(dtype) is tl.dtype else look_up(dtype)

    interpreter._get_np_dtype = get_np_dtype


@contextmanager
def overflow_checked(checked: bool = True) -> Iterator[None]:
    """Fail a kernel in which a 32-bit integer operation overflows, or with False do not look."""
    builder = interpreter.interpreter_builder
    before = builder.options
    builder.options = replace(before, sanitize_overflow=checked, debug=checked)
    try:
        yield
    finally:
        builder.options = before
