"""Translation of PTX instructions to Python: operands in, an expression or a call out."""

from __future__ import annotations

from typing import Any

from tconv.emulator.emitter import Emit, Emitter
from tconv.emulator.faults import NotCovered
from tconv.emulator.ptx import (
    WIDTHS,
    Immediate,
    Instruction,
    Pair,
    Vector,
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


# -- bits


@handles("and", "or", "xor")
def _logic(emitter: Emitter, instruction: Instruction) -> None:
    sign = {"and": "&", "or": "|", "xor": "^"}[instruction.parts[0]]
    simple(emitter, instruction, FORMS[type_of(instruction)], f"{{0}} {sign} {{1}}")


@handles("not")
def _not(emitter: Emitter, instruction: Instruction) -> None:
    simple(emitter, instruction, FORMS[type_of(instruction)], "~{0}")


@handles("cnot")
def _cnot(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    simple(emitter, instruction, form, f"({{0}} == 0).astype({form.upper()})")


@handles("shl", "shr")
def _shift(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    target, source, count = instruction.operands
    value = emitter.use(source, form)
    left = instruction.parts[0] == "shl"
    bits = 8 * int(form[1])
    if isinstance(count, Immediate):
        amount = count.bits & 0xFFFFFFFF
        if amount >= bits and (left or form[0] == "u"):
            expression = f"np.zeros_like(M.lane_array({value}))"
        else:
            moved = emitter.scalar(min(amount, bits - 1), form)
            expression = f"{value} {'<<' if left else '>>'} {moved}"
        emitter.define(target, form, expression, [value])
        return
    amount_name = emitter.use(count, "u4")
    name = "shift_left" if left else "shift_right"
    emitter.define(target, form, f"A.{name}({value}, {amount_name})", [value, amount_name])


@handles("shf")
def _shf(emitter: Emitter, instruction: Instruction) -> None:
    left, wrap = instruction.parts[1] == "l", instruction.parts[2] == "wrap"
    simple(emitter, instruction, "u4", f"A.funnel_shift({{0}}, {{1}}, {{2}}, {left}, {wrap})")


@handles("bfe")
def _bfe(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    target, source, position, length = instruction.operands
    value = emitter.use(source, form)
    if isinstance(position, Immediate) and isinstance(length, Immediate):
        bits, start, count = 8 * int(form[1]), position.bits & 0xFF, length.bits & 0xFF
        if count and start + count <= bits:  # two shifts do it
            up = emitter.scalar(bits - start - count, form)
            down = emitter.scalar(bits - count, form)
            emitter.define(target, form, f"({value} << {up}) >> {down}", [value])
            return
    names = [emitter.use(operand, "u4") for operand in (position, length)]
    expression = f"A.bit_field_extract(M.lane_array({value}), {names[0]}, {names[1]})"
    emitter.define(target, form, expression, ["array"])


@handles("bfi")
def _bfi(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    operands = instruction.operands
    names = [emitter.use(operand, form) for operand in operands[1:3]]
    names += [emitter.use(operand, "u4") for operand in operands[3:5]]
    names[:2] = [f"M.lane_array({name})" for name in names[:2]]
    emitter.define(operands[0], form, f"A.bit_field_insert({', '.join(names)})", ["array"])


@handles("lop3")
def _lop3(emitter: Emitter, instruction: Instruction) -> None:
    table = instruction.operands[4].bits
    names = [f"M.lane_array({emitter.use(o, 'u4')})" for o in instruction.operands[1:4]]
    expression = f"A.three_input_logic({', '.join(names)}, {table})"
    emitter.define(instruction.operands[0], "u4", expression, ["array"])


@handles("prmt")
def _prmt(emitter: Emitter, instruction: Instruction) -> None:
    mode = instruction.parts[2] if len(instruction.parts) > 2 else ""
    simple(emitter, instruction, "u4", f"A.permute_bytes({{0}}, {{1}}, {{2}}, {mode!r})")


@handles("popc")
def _popc(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    simple(emitter, instruction, form, "np.bitwise_count({0}).astype(U4)", "u4")


@handles("clz", "bfind")
def _clz(emitter: Emitter, instruction: Instruction) -> None:
    form = FORMS[type_of(instruction)]
    if instruction.parts[0] == "clz":
        simple(emitter, instruction, form, "A.count_leading_zeros({0})", "u4")
    else:
        amount = "shiftamt" in instruction.parts
        simple(emitter, instruction, form, f"A.find_leading({{0}}, {amount})", "u4")


@handles("brev")
def _brev(emitter: Emitter, instruction: Instruction) -> None:
    simple(emitter, instruction, FORMS[type_of(instruction)], "A.reverse_bits({0})")


@handles("dp4a")
def _dp4a(emitter: Emitter, instruction: Instruction) -> None:
    first, second = (part == "s32" for part in instruction.parts[1:3])
    simple(emitter, instruction, "u4", f"A.dot_bytes({{0}}, {{1}}, {{2}}, {first}, {second})")


# -- predicates and moves


@handles("setp")
def _setp(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    kind, relation = parts[-1], parts[1]
    form = FORMS[kind]
    combine = next((part for part in parts[2:-1] if part in ("and", "or", "xor")), "")
    target = operands[0]
    x, y = (emitter.use(operand, form) for operand in operands[1:3])
    sources = [x, y]
    if kind in ("f16x2", "bf16x2"):
        views = [
            f"M.lane_array({name}).view({'F2' if kind == 'f16x2' else 'U2'})" for name in sources
        ]
        if kind == "bf16x2":
            views = [f"A.from_bfloat16({view})" for view in views]
        both = emitter.fresh("t")
        emitter.line(f"{both} = A.compare({views[0]}, {views[1]}, {relation!r}).reshape(-1, 2)")
        emitter.define(target.first, "b1", f"{both}[:, 0].copy()", ["array"])
        emitter.define(target.second, "b1", f"{both}[:, 1].copy()", ["array"])
        return
    if kind == "bf16":
        x, y = f"A.from_bfloat16({x})", f"A.from_bfloat16({y})"
    if "ftz" in parts:
        x, y = f"A.flush({x})", f"A.flush({y})"
    signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
             "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip
    ordered = relation in ("eq", "lt", "le", "gt", "ge")  # false of NaN, in NumPy too
    if ordered or (form[0] != "f" and relation in signs and kind != "bf16"):
        expression = f"({x} {signs[relation]} {y})"
    else:
        expression = f"A.compare({x}, {y}, {relation!r})"
    first = target.first if isinstance(target, Pair) else target
    second = target.second if isinstance(target, Pair) else None
    if combine:
        extra = emitter.use(operands[3], "b1")
        sources.append(extra)
        sign = {"and": "&", "or": "|", "xor": "^"}[combine]
    if second is not None:
        other = f"~{expression}" + (f" {sign} {extra}" if combine else "")
        held = emitter.fresh("t")
        emitter.line(f"{held} = {other}")
        emitter.define(second, "b1", held, ["array"])
    if combine:
        expression = f"{expression} {sign} {extra}"
    emitter.define(first, "b1", expression, sources)


@handles("set")
def _set(emitter: Emitter, instruction: Instruction) -> None:
    to, kind = instruction.parts[-2:]
    names = [emitter.use(operand, FORMS[kind]) for operand in instruction.operands[1:3]]
    if to not in ("u32", "s32", "f32") or kind in HALVES or len(instruction.operands) != 3:
        raise refuse(instruction)
    test = f"A.compare({names[0]}, {names[1]}, {instruction.parts[1]!r})"
    value = f"where({test}, F4(1), F4(0))" if to == "f32" else f"where({test}, ~U4(0), U4(0))"
    emitter.define(instruction.operands[0], "f4" if to == "f32" else "u4", value, ["array"])


@handles("selp")
def _selp(emitter: Emitter, instruction: Instruction) -> None:
    target, x, y, predicate = instruction.operands
    form = f"u{WIDTHS[type_of(instruction)]}"
    test = emitter.use(predicate, "b1")
    expression = f"where({test}, {emitter.use(x, form)}, {emitter.use(y, form)})"
    emitter.define(target, form, expression, [test])


@handles("mov")
def _mov(emitter: Emitter, instruction: Instruction) -> None:
    target, source = instruction.operands
    width = WIDTHS[instruction.parts[-1]]
    if isinstance(target, Vector):
        each = width // len(target.items)
        value = emitter.use(source, f"u{width}")
        parts = emitter.fresh("t")
        emitter.line(
            f"{parts} = M.lane_array({value}).view(U{each}).reshape(-1, {len(target.items)})"
        )
        for place, item in enumerate(target.items):
            emitter.define(item, f"u{each}", f"{parts}[:, {place}].copy()", ["array"])
        return
    if isinstance(source, Vector):
        each = width // len(source.items)
        names = [emitter.use(item, f"u{each}") for item in source.items]
        whole = f"U{width}"
        expression = " | ".join(
            f"({name}.astype({whole}) << {whole}({8 * each * place}))"
            if place
            else f"{name}.astype({whole})"
            for place, name in enumerate(names)
        )
        emitter.define(target, f"u{width}", expression, names)
        return
    form = "b1" if instruction.parts[-1] == "pred" else f"u{width}"
    value = emitter.use(source, form)
    emitter.define(target, form, value, [value])


@handles("cvta")
def _cvta(emitter: Emitter, instruction: Instruction) -> None:
    simple(emitter, instruction, FORMS[type_of(instruction)], "{0}")


@handles("cvt")
def _cvt(emitter: Emitter, instruction: Instruction) -> None:
    check_modifiers(
        instruction, "rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat",
        "relu", "satfinite",
    )  # fmt: skip
    parts, operands = instruction.parts, instruction.operands
    to, kind = parts[-2:]
    mode = next((part for part in parts[1:-2] if part[0] == "r" and part != "relu"), "")
    relu, clamp = "relu" in parts, "sat" in parts
    if to in ("f16x2", "bf16x2") and kind == "f32":
        high, low = (emitter.use(operand, "f4") for operand in operands[1:3])
        finite = "satfinite" in parts
        expression = f"C.pack_halves({high}, {low}, {to!r}, {mode!r}, {relu}, {finite})"
        emitter.define(operands[0], "u4", expression, [high, low])
        return
    if to in ("e4m3x2", "e5m2x2"):
        if kind == "f32":
            sources = [emitter.use(operand, "f4") for operand in operands[1:3]]
        else:
            pair = emitter.use(operands[1], "u4")
            view = f"M.lane_array({pair}).view({'F2' if kind == 'f16x2' else 'U2'}).reshape(-1, 2)"
            if kind == "bf16x2":
                view = f"A.from_bfloat16({view})"
            sources = [f"{view}[:, 1]", f"{view}[:, 0]"]
        expression = f"C.to_float8({sources[0]}, {sources[1]}, {to!r}, {relu})"
        emitter.define(operands[0], "u2", expression, ["array"])
        return
    if kind in ("e4m3x2", "e5m2x2"):
        if to != "f16x2":
            raise refuse(instruction)
        pair = emitter.use(operands[1], "u2")
        emitter.define(operands[0], "u4", f"C.from_float8({pair}, {kind!r})", [pair])
        return
    if to in PACKED or kind in PACKED:
        raise refuse(instruction)
    source = emitter.use(operands[1], FORMS[kind])
    value = source
    if kind == "bf16":
        value = f"A.from_bfloat16({value})"
    if "ftz" in parts and kind == "f32":
        value = f"A.flush({value})"
    if to == "tf32":
        expression = f"A.to_tf32({value}, {mode!r})"
    elif to == "bf16":
        origin = f"{value}.astype(F4)"
        expression = f"C.to_bfloat16_from({origin}, {mode!r})"
    elif is_float(to):
        dtype = FORMS[to].upper()
        if is_float(kind):
            name = f"C.float_to_float({value}, {dtype}, {mode!r}, {clamp})"
            plain = not clamp and (mode in ("", "rn"))
            expression = f"{value}.astype({dtype})" if plain else name
        else:
            expression = f"C.integer_to_float({value}, {dtype}, {mode!r})"
            if clamp:
                expression = f"A.saturate({expression})"
        if "ftz" in parts and to == "f32":
            expression = f"A.flush({expression})"
    elif is_float(kind):
        expression = f"C.float_to_integer({value}, {FORMS[to]!r}, {mode!r})"
    elif clamp:
        expression = f"C.integer_to_integer({value}, {FORMS[to]!r}, True)"
    else:
        expression = f"{value}.astype({FORMS[to].upper()})"
    if relu:
        expression = f"A.relu({expression})" if to != "bf16" else f"A.relu_bfloat16({expression})"
    emitter.define(operands[0], FORMS[to], expression, [source])
