"""Translation to Python of instructions on bits and predicates, of moves and conversions."""

from __future__ import annotations

from tconv.emulator.emitter import Emit, Emitter
from tconv.emulator.instructions import (
    FORMS,
    HALVES,
    PACKED,
    check_modifiers,
    handling,
    is_float,
    refuse,
    simple,
    type_of,
)
from tconv.emulator.ptx import WIDTHS, Immediate, Instruction, Pair, Vector

BIT_HANDLERS: dict[str, Emit] = {}
handles = handling(BIT_HANDLERS)


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
