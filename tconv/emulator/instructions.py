"""Translation of PTX instructions to Python, operands in, an expression or a call out.

This module has what the tables of handlers share, and the arithmetic; others have the rest.
"""

from __future__ import annotations

from typing import Any

from tconv.emulator.emitter import Emit, Emitter
from tconv.emulator.faults import NotCovered
from tconv.emulator.ptx import (
    WIDTHS,
    Instruction,
)

FORMS = {
    "u8": "u1", "s8": "i1", "b8": "u1", "u16": "u2", "s16": "i2", "b16": "u2", "f16": "f2",
    "bf16": "u2", "u32": "u4", "s32": "i4", "b32": "u4", "f32": "f4", "tf32": "f4", "u64": "u8",
    "s64": "i8", "b64": "u8", "f64": "f8", "pred": "b1", "f16x2": "u4", "bf16x2": "u4",
    "e4m3x2": "u2", "e5m2x2": "u2",
}  # fmt: skip
PACKED = ("f16x2", "bf16x2", "s16x2", "u16x2")
HALVES = ("f16", "bf16", "f16x2", "bf16x2")
HANDLERS: dict[str, Emit] = {}


def handling(table: dict[str, Emit]) -> Any:
    """A decorator that registers a function in ``table`` for instructions of the given names."""

    def handles(*names: str) -> Any:
        def register(function: Emit) -> Emit:
            table.update(dict.fromkeys(names, function))
            return function

        return register

    return handles


handles = handling(HANDLERS)


def refuse(instruction: Instruction) -> NotCovered:
    """The error for an unknown variant of an instruction."""
    return NotCovered(f"the instruction {instruction.opcode} is not covered: {instruction.text}")


def check_modifiers(instruction: Instruction, *allowed: str) -> None:
    """Refuse a modifier between the name and the types that the handler does not know."""
    for part in instruction.parts[1:]:
        if part not in allowed and part not in WIDTHS:
            raise refuse(instruction)


def type_of(instruction: Instruction) -> str:
    """The last type in the opcode."""
    for part in reversed(instruction.parts):
        if part in WIDTHS:
            return part
    raise refuse(instruction)


def simple(
    emitter: Emitter, instruction: Instruction, form: str, template: str, result: str = ""
) -> None:
    """Write ``template`` with the sources in ``form`` for its places."""
    sources = [emitter.use(operand, form) for operand in instruction.operands[1:]]
    emitter.define(instruction.operands[0], result or form, template.format(*sources), sources)


# -- floats and integers


def arithmetic(emitter: Emitter, instruction: Instruction, template: str) -> None:
    """``template`` on any type; halves are rounded once, packed ones taken apart."""
    kind = type_of(instruction)
    if kind not in PACKED and kind != "bf16":
        simple(emitter, instruction, FORMS[kind], template)
        return
    width = WIDTHS[kind]
    sources = [emitter.use(operand, f"u{width}") for operand in instruction.operands[1:]]
    forms = {"f16x2": "F2", "s16x2": "I2", "u16x2": "U2", "bf16x2": "U2", "bf16": "U2"}
    parts = [f"M.lane_array({name}).view({forms[kind]})" for name in sources]
    if kind in ("bf16", "bf16x2") and "bfloat16" not in template:
        parts = [f"A.from_bfloat16({part})" for part in parts]
        expression = f"A.to_bfloat16({template.format(*parts)})"
    else:
        expression = template.format(*parts)
    if kind != "bf16":
        expression = f"({expression}).view(U4)"
    emitter.define(instruction.operands[0], f"u{width}", expression, ["array"])


def finish_float(instruction: Instruction, expression: str) -> str:
    """Apply ``.ftz``, ``.sat`` and ``.relu`` to a float expression."""
    kind = type_of(instruction)
    if "ftz" in instruction.parts and kind == "f32":
        expression = f"A.flush({expression})"
    if "sat" in instruction.parts:
        expression = f"A.saturate({expression})"
    if "relu" in instruction.parts:
        expression = f"A.relu({expression})"
    return expression


def flushed(instruction: Instruction, place: str) -> str:
    """A source's place in a template, flushed if the instruction says so."""
    if "ftz" in instruction.parts and type_of(instruction) == "f32":
        return f"A.flush({place})"
    return place


@handles("add", "sub")
def _add(emitter: Emitter, instruction: Instruction) -> None:
    check_modifiers(instruction, "rn", "ftz", "sat")
    sign = "+" if instruction.parts[0] == "add" else "-"
    if "sat" in instruction.parts and type_of(instruction) == "s32":
        name = "saturating_add" if sign == "+" else "saturating_subtract"
        simple(emitter, instruction, "i4", f"A.{name}({{0}}, {{1}})")
        return
    left, right = flushed(instruction, "{0}"), flushed(instruction, "{1}")
    arithmetic(emitter, instruction, finish_float(instruction, f"({left} {sign} {right})"))


def is_float(kind: str) -> bool:
    """Whether a type is a float."""
    return kind[0] == "f" or kind.startswith("bf")


@handles("mul")
def _mul(emitter: Emitter, instruction: Instruction) -> None:
    if is_float(type_of(instruction)):
        check_modifiers(instruction, "rn", "ftz", "sat")
        left, right = flushed(instruction, "{0}"), flushed(instruction, "{1}")
        arithmetic(emitter, instruction, finish_float(instruction, f"({left} * {right})"))
        return
    _integer_product(emitter, instruction)


@handles("mad")
def _mad(emitter: Emitter, instruction: Instruction) -> None:
    if is_float(type_of(instruction)):
        _fma(emitter, instruction)
        return
    _integer_product(emitter, instruction)


def _integer_product(emitter: Emitter, instruction: Instruction) -> None:
    kind = type_of(instruction)
    form = result = FORMS[kind]
    mode = instruction.parts[1]
    check_modifiers(instruction, "lo", "hi", "wide")
    operands = instruction.operands
    x, y = (emitter.use(operand, form) for operand in operands[1:3])
    sources = [x, y]
    if mode == "lo":
        expression = f"{x} * {y}"
    elif mode == "hi":
        expression = f"A.multiply_high(M.lane_array({x}), M.lane_array({y}))"
    else:
        result = f"{form[0]}{2 * int(form[1])}"
        wide = result.upper()
        expression = f"{x}.astype({wide}) * {y}.astype({wide})"
    if len(operands) > 3:
        addend = emitter.use(operands[3], result)
        sources.append(addend)
        expression = f"{expression} + {addend}"
    emitter.define(operands[0], result, expression, sources)


@handles("div", "rem")
def _div(emitter: Emitter, instruction: Instruction) -> None:
    kind = type_of(instruction)
    if is_float(kind):
        check_modifiers(instruction, "rn", "full", "approx", "ftz")
        left, right = flushed(instruction, "{0}"), flushed(instruction, "{1}")
        simple(emitter, instruction, FORMS[kind], finish_float(instruction, f"({left} / {right})"))
        return
    check_modifiers(instruction)
    name = "divide" if instruction.parts[0] == "div" else "remainder"
    simple(emitter, instruction, FORMS[kind], f"A.{name}({{0}}, {{1}})")


@handles("neg", "abs")
def _neg(emitter: Emitter, instruction: Instruction) -> None:
    check_modifiers(instruction, "ftz")
    kind, name = type_of(instruction), instruction.parts[0]
    if kind in HALVES:
        width = WIDTHS[kind]
        sign = 0x8000 if width == 2 else 0x80008000
        bits = emitter.scalar(sign if name == "neg" else ~sign, f"u{width}")
        simple(emitter, instruction, f"u{width}", f"({{0}} {'^' if name == 'neg' else '&'} {bits})")
        return
    place = flushed(instruction, "{0}")
    simple(emitter, instruction, FORMS[kind], f"-{place}" if name == "neg" else f"np.abs({place})")


@handles("min", "max")
def _min(emitter: Emitter, instruction: Instruction) -> None:
    check_modifiers(instruction, "ftz", "NaN", "xorsign", "abs", "relu")
    kind, parts = type_of(instruction), instruction.parts
    name = "minimum" if parts[0] == "min" else "maximum"
    if not is_float(kind):
        arithmetic(emitter, instruction, f"np.{name}({{0}}, {{1}})")
        return
    if len(instruction.operands) != 3:
        raise refuse(instruction)
    left, right = flushed(instruction, "{0}"), flushed(instruction, "{1}")
    template = f"A.{name}({left}, {right}, {'NaN' in parts}, {'xorsign' in parts})"
    arithmetic(emitter, instruction, finish_float(instruction, template))


@handles("fma")
def _fma(emitter: Emitter, instruction: Instruction) -> None:
    check_modifiers(instruction, "rn", "ftz", "sat", "relu")
    kind = type_of(instruction)
    name = {"f32": "f32", "f64": "f64", "f16": "half", "f16x2": "half"}.get(kind, "bfloat16")
    places = ", ".join(flushed(instruction, f"{{{place}}}") for place in range(3))
    template = f"A.fused_multiply_add_{name}({places})"
    if name == "bfloat16" and ("relu" in instruction.parts or "sat" in instruction.parts):
        raise refuse(instruction)
    arithmetic(emitter, instruction, finish_float(instruction, template))


@handles("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def _function(emitter: Emitter, instruction: Instruction) -> None:
    check_modifiers(instruction, "rn", "approx", "ftz")
    kind, name = type_of(instruction), instruction.parts[0]
    place = flushed(instruction, "{0}")
    template = {
        "rcp": f"({FORMS[kind].upper()}(1) / {place})",
        "sqrt": f"np.sqrt({place})",
        "rsqrt": f"A.reciprocal_root({place})",
        "ex2": f"np.exp2({place})",
        "lg2": f"np.log2({place})",
        "sin": f"np.sin({place})",
        "cos": f"np.cos({place})",
        "tanh": f"np.tanh({place})",
    }[name]
    arithmetic(emitter, instruction, finish_float(instruction, template))


@handles("copysign")
def _copysign(emitter: Emitter, instruction: Instruction) -> None:
    simple(emitter, instruction, FORMS[type_of(instruction)], "np.copysign({1}, {0})")


@handles("testp")
def _testp(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    simple(emitter, instruction, form, f"A.test_float({{0}}, {instruction.parts[1]!r})", "b1")
