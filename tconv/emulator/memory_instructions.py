"""Translation to Python of instructions on memory, between warps and of the matrix units."""

from __future__ import annotations

import re
from typing import Any

from tconv.emulator.emitter import Emit, Emitter
from tconv.emulator.instructions import FORMS, handling, refuse, type_of
from tconv.emulator.made_maps import place_of
from tconv.emulator.ptx import (
    WIDTHS,
    Address,
    Immediate,
    Instruction,
    Pair,
    Register,
    Symbol,
    Vector,
)

WIDE_FIELDS = ("global_address", "global_stride")  # of a tensor map: 64 bits
MEMORY_HANDLERS: dict[str, Emit] = {}
handles = handling(MEMORY_HANDLERS)


def here(emitter: Emitter, instruction: Instruction) -> str:
    """The first arguments of every call: the instruction's number and its mask of lanes."""
    return f"{instruction.index}, {emitter.mask}"


def write_call(emitter: Emitter, targets: list[str], text: str) -> None:
    """Write a call whose results are a tuple."""
    emitter.line(f"{', '.join(targets)}{',' if len(targets) == 1 else ''} = {text}")


def items(operand: Any) -> tuple[Any, ...]:
    """The registers of an operand that may be a vector."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def address(emitter: Emitter, operand: Address, space: str) -> str:
    """An expression for the addresses of all lanes."""
    form = "u8" if space == "global" else "u4"
    base = emitter.use(operand.base, form)
    width = int(form[1])
    if isinstance(operand.base, (Immediate, Symbol)):
        base = f"full(T, {base})"
    if not operand.offset:
        return base
    return f"{base} + {emitter.scalar(operand.offset & ((1 << 8 * width) - 1), form)}"


def space_of(instruction: Instruction) -> str:
    """The memory that an instruction accesses."""
    for part in instruction.parts[1:]:
        if part == "global":
            return "global"
        if part.split("::")[0] == "shared":
            return "shared"
        if part == "param":
            return "param"
    raise refuse(instruction)


@handles("ld", "ldu")
def _ld(emitter: Emitter, instruction: Instruction) -> None:
    space, kind = space_of(instruction), type_of(instruction)
    form = FORMS.get(kind) if kind != "b128" else None
    if form is None:
        raise refuse(instruction)
    targets = items(instruction.operands[0])
    place = instruction.operands[1]
    if space == "param":
        assert isinstance(place.base, Symbol)
        emitter.define(
            targets[0],
            f"u{WIDTHS[kind]}",
            f"M.parameter({place.base.name!r}, {WIDTHS[kind]})",
            ["array"],
        )
        return
    names = [emitter.fresh("t") for _ in targets]
    at = address(emitter, place, space)
    where = here(emitter, instruction)
    write_call(emitter, names, f"M.load_{space}({where}, {at}, {WIDTHS[kind]}, {len(targets)})")
    for name, target in zip(names, targets, strict=True):
        if form[0] == "i":
            name = f"{name}.view({form.upper()})"
        emitter.define(target, form if form[0] == "i" else f"u{WIDTHS[kind]}", name, ["array"])


@handles("st")
def _st(emitter: Emitter, instruction: Instruction) -> None:
    space, kind = space_of(instruction), type_of(instruction)
    if kind == "b128" or space == "param":
        raise refuse(instruction)
    form = f"u{WIDTHS[kind]}"
    values = ", ".join(emitter.use(item, form) for item in items(instruction.operands[1]))
    at = address(emitter, instruction.operands[0], space)
    emitter.line(f"M.store_{space}({here(emitter, instruction)}, {at}, ({values},))")


@handles("atom", "red")
def _atom(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    returns = parts[0] == "atom"
    kind, space = type_of(instruction), space_of(instruction)
    operation = next(
        (part for part in parts if part in
         ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")), ""
    )  # fmt: skip
    if not operation or kind in ("s16x2", "u16x2", "b128"):
        raise refuse(instruction)
    place = operands[1] if returns else operands[0]
    values = operands[2:] if returns else operands[1:]
    width = f"u{WIDTHS[kind]}"
    count = len(items(values[0]))
    flat = [emitter.use(item, width) for value in values for item in items(value)]
    at = address(emitter, place, space)
    names = [emitter.fresh("t") for _ in range(count)]
    where = f"{here(emitter, instruction)}, {at}, {operation!r}, {kind!r}"
    write_call(emitter, names, f"M.atomics.on_{space}({where}, ({', '.join(flat)},), {count})")
    if returns:
        for name, target in zip(names, items(operands[0]), strict=True):
            emitter.define(target, width, name, ["array"])


@handles("prefetch", "prefetchu", "applypriority", "discard", "membar", "griddepcontrol",
         "nanosleep", "setmaxnreg", "createpolicy")  # fmt: skip
def _nothing(emitter: Emitter, instruction: Instruction) -> None:
    if instruction.parts[0] == "createpolicy":
        emitter.define(instruction.operands[0], "u8", "full(T, U8(0))", ["array"])


@handles("fence")
def _fence(emitter: Emitter, instruction: Instruction) -> None:
    parts = instruction.parts
    if "proxy" not in parts:
        return
    proxy = parts[2].split("::")[0]
    if proxy == "async":
        emitter.line(f"M.fence_proxy({here(emitter, instruction)})")
    elif proxy == "tensormap" and "acquire" in parts:
        at = address(emitter, instruction.operands[0], "global")
        emitter.line(f"M.made_maps.acquire({here(emitter, instruction)}, {at})")


# -- warps


@handles("shfl")
def _shfl(emitter: Emitter, instruction: Instruction) -> None:
    target, source, lane, clamp, members = instruction.operands
    mode = instruction.parts[2] if instruction.parts[1] == "sync" else ""
    if not mode:
        raise refuse(instruction)
    names = [emitter.use(operand, "u4") for operand in (source, lane, clamp, members)]
    value, valid = emitter.fresh("t"), emitter.fresh("t")
    where = here(emitter, instruction)
    emitter.line(f"{value}, {valid} = M.warps.shuffle({where}, {mode!r}, {', '.join(names)})")
    first = target.first if isinstance(target, Pair) else target
    emitter.define(first, "u4", value, ["array"])
    if isinstance(target, Pair):
        emitter.define(target.second, "b1", valid, ["array"])


@handles("vote")
def _vote(emitter: Emitter, instruction: Instruction) -> None:
    target, source, members = instruction.operands
    mode = instruction.parts[2]
    names = emitter.use(source, "b1"), emitter.use(members, "u4")
    call = f"M.warps.vote({here(emitter, instruction)}, {mode!r}, {names[0]}, {names[1]})"
    emitter.define(target, "u4" if mode == "ballot" else "b1", call, ["array"])


@handles("redux")
def _redux(emitter: Emitter, instruction: Instruction) -> None:
    target, source, members = instruction.operands
    form = FORMS[type_of(instruction)]
    nan, absolute = "NaN" in instruction.parts, "abs" in instruction.parts
    names = emitter.use(source, form), emitter.use(members, "u4")
    where = f"{here(emitter, instruction)}, {instruction.parts[2]!r}"
    call = f"M.warps.reduce({where}, {names[0]}, {names[1]}, {nan}, {absolute})"
    emitter.define(target, form, call, ["array"])


@handles("match")
def _match(emitter: Emitter, instruction: Instruction) -> None:
    target, source, members = instruction.operands
    form = f"u{WIDTHS[type_of(instruction)]}"
    names = emitter.use(source, form), emitter.use(members, "u4")
    value, same = emitter.fresh("t"), emitter.fresh("t")
    emitter.line(
        f"{value}, {same} = M.warps.match({here(emitter, instruction)}, "
        f"{instruction.parts[1]!r}, {names[0]}, {names[1]})"
    )
    first = target.first if isinstance(target, Pair) else target
    emitter.define(first, "u4", value, ["array"])
    if isinstance(target, Pair):
        emitter.define(target.second, "b1", same, ["array"])


@handles("activemask")
def _activemask(emitter: Emitter, instruction: Instruction) -> None:
    emitter.define(instruction.operands[0], "u4", f"M.warps.active({emitter.mask})", ["array"])


@handles("elect")
def _elect(emitter: Emitter, instruction: Instruction) -> None:
    target = instruction.operands[0]
    lane, elected = emitter.fresh("t"), emitter.fresh("t")
    emitter.line(f"{lane}, {elected} = M.warps.elect({here(emitter, instruction)})")
    emitter.define(target.first, "u4", lane, ["array"])
    emitter.define(target.second, "b1", elected, ["array"])


@handles("bar")
def _bar(emitter: Emitter, instruction: Instruction) -> None:
    if instruction.parts[1] == "warp":
        return
    if instruction.parts[1] != "arrive":
        raise refuse(instruction)
    number, count = (emitter.use(operand, "u4") for operand in instruction.operands[:2])
    emitter.line(f"M.barriers.arrive({here(emitter, instruction)}, {number}, {count})")


# -- asynchronous copies


@handles("cp")
def _cp(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    index, mask = instruction.index, emitter.mask
    if parts[1] != "async":
        raise refuse(instruction)
    if parts[2] == "bulk":
        _bulk(emitter, instruction)
    elif parts[2] == "commit_group":
        emitter.line(f"M.copies.commit({index}, {mask})")
    elif parts[2] in ("wait_group", "wait_all"):
        most = operands[0].bits if operands else 0
        emitter.line(f"M.copies.wait({index}, {mask}, {most})")
    elif parts[2] in ("ca", "cg"):
        target = address(emitter, operands[0], "shared")
        source = address(emitter, operands[1], "global")
        size = operands[2].bits
        if size not in ((16,) if parts[2] == "cg" else (4, 8, 16)):
            raise refuse(instruction)
        held = "None"
        if len(operands) > 3 and not (isinstance(operands[3], Register) and operands[3].width == 8):
            held = emitter.use(operands[3], "u4")
        emitter.line(f"M.copies.start({index}, {mask}, {target}, {source}, {size}, {held})")
    else:
        raise refuse(instruction)


def _bulk(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    index, mask = instruction.index, emitter.mask
    if "commit_group" in parts:
        emitter.line(f"M.tensor_copies.commit({index}, {mask})")
        return
    if "wait_group" in parts:
        reading = "read" in parts
        emitter.line(f"M.tensor_copies.wait({index}, {mask}, {operands[0].bits}, {reading})")
        return
    if "prefetch" in parts:
        return
    if (
        "tensor" not in parts
        or "im2col" in parts
        or "cluster" in parts[3:]
        or "multicast" in instruction.opcode
    ):
        raise refuse(instruction)
    load = parts.index("global") > next(n for n, p in enumerate(parts) if p.startswith("shared"))
    tensor, shared = (operands[1], operands[0]) if load else (operands[0], operands[1])
    coordinates = ", ".join(emitter.use(item, "i4") for item in tensor.coordinates)
    description = emitter.use(tensor.base, "u8")
    at = address(emitter, shared, "shared")
    if load:
        barrier = address(emitter, operands[2], "shared")
        where = f"{at}, {description}, ({coordinates},), {barrier}"
        emitter.line(f"M.tensor_copies.load({index}, {mask}, {where})")
    else:
        emitter.line(
            f"M.tensor_copies.store({index}, {mask}, {at}, {description}, ({coordinates},))"
        )


@handles("tensormap")
def _tensormap(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    where = here(emitter, instruction)
    if parts[1] == "cp_fenceproxy":
        to, source = (
            address(emitter, operands[0], "global"),
            address(emitter, operands[1], "shared"),
        )
        emitter.line(f"M.made_maps.publish({where}, {to}, {source})")
        return
    if parts[1] != "replace" or parts[2] != "tile":
        raise refuse(instruction)
    space, ordinal = space_of(instruction), operands[1].bits if len(operands) > 2 else 0
    try:
        place = place_of(parts[3], ordinal)
    except KeyError:
        raise refuse(instruction) from None
    at = address(emitter, operands[0], space)
    value = emitter.use(operands[-1], "u8" if parts[3] in WIDE_FIELDS else "u4")
    offset = emitter.scalar(place, "u8" if space == "global" else "u4")
    emitter.line(f"M.store_{space}({where}, {at} + {offset}, ({value},))")
    if space == "global":
        emitter.line(f"M.made_maps.note_written({where}, {at})")


@handles("mbarrier")
def _mbarrier(emitter: Emitter, instruction: Instruction) -> None:
    kind, operands = instruction.parts[1], instruction.operands
    index, mask = instruction.index, emitter.mask
    if kind in ("init", "inval", "expect_tx", "complete_tx"):
        at = address(emitter, operands[0], "shared")
        rest = "".join(f", {emitter.use(operand, 'u4')}" for operand in operands[1:])
        emitter.line(f"M.barriers.{kind}({index}, {mask}, {at}{rest})")
    elif kind == "arrive":
        result = None if isinstance(operands[0], Address) else operands[0]
        others = operands if result is None else operands[1:]
        at = address(emitter, others[0], "shared")
        count = emitter.use(others[1], "u4") if len(others) > 1 else emitter.scalar(1, "u4")
        call = "arrive_expecting" if "expect_tx" in instruction.parts else "arrive_at"
        emitter.line(f"M.barriers.{call}({index}, {mask}, {at}, {count})")
        if isinstance(result, Register):
            raise refuse(instruction)  # the state word is not modelled
    else:
        raise refuse(instruction)


# -- matrix units


@handles("ldmatrix", "stmatrix")
def _ldmatrix(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    shape = next((part for part in parts if re.fullmatch(r"m\d+n\d+", part)), "")
    if shape != "m8n8" or parts[-1] != "b16":
        raise refuse(instruction)
    transposed = "trans" in parts
    if parts[0] == "ldmatrix":
        targets = items(operands[0])
        at = address(emitter, operands[1], "shared")
        names = [emitter.fresh("t") for _ in targets]
        where = f"{here(emitter, instruction)}, {at}, {len(targets)}, {transposed}"
        write_call(emitter, names, f"M.matrix.load({where})")
        for name, target in zip(names, targets, strict=True):
            emitter.define(target, "u4", name, ["array"])
        return
    at = address(emitter, operands[0], "shared")
    values = ", ".join(emitter.use(item, "u4") for item in items(operands[1]))
    emitter.line(f"M.matrix.store({here(emitter, instruction)}, {at}, ({values},), {transposed})")


@handles("mma")
def _mma(emitter: Emitter, instruction: Instruction) -> None:
    parts, operands = instruction.parts, instruction.operands
    shape = next((part for part in parts if re.fullmatch(r"m\d+n\d+k\d+", part)), "")
    kinds = [part for part in parts if part in WIDTHS]
    if not shape or "row" not in parts or "col" not in parts or "sp" in parts or len(kinds) != 4:
        raise refuse(instruction)
    form = "u8" if kinds[1] == "f64" else "u4"
    sources = [
        "(" + ", ".join(emitter.use(item, form) for item in items(operand)) + ",)"
        for operand in operands[1:4]
    ]
    targets = items(operands[0])
    names = [emitter.fresh("t") for _ in targets]
    where = f"{here(emitter, instruction)}, {shape!r}, {tuple(kinds)!r}"
    write_call(emitter, names, f"M.matrix.multiply({where}, {', '.join(sources)})")
    for name, target in zip(names, targets, strict=True):
        emitter.define(target, form, name, ["array"])


@handles("wgmma")
def _wgmma(emitter: Emitter, instruction: Instruction) -> None:
    kind = instruction.parts[1]
    index, mask = instruction.index, emitter.mask
    if kind == "fence":
        emitter.line(f"M.wgmma.fence({index}, {mask})")
        return
    if kind == "commit_group":
        emitter.line(f"M.wgmma.commit({index}, {mask})")
        return
    if kind != "mma_async" or "sp" in instruction.parts:
        raise refuse(instruction)
    accumulators, a, b, *rest = instruction.operands
    shape = next(part for part in instruction.parts if re.fullmatch(r"m64n\d+k\d+", part))
    kinds = tuple(part for part in instruction.parts if part in WIDTHS)
    registers = [item for item in accumulators.items if isinstance(item, Register)]
    emitter.spill(registers)
    left = (
        "(" + ", ".join(emitter.use(item, "u4") for item in a.items) + ",)"
        if isinstance(a, Vector)
        else emitter.use(a, "u8")
    )
    right = emitter.use(b, "u8")
    keep = emitter.use(rest[0], "b1")
    flags = tuple(item.bits for item in rest[1:])
    places = emitter.constant(tuple(register.index for register in registers))
    emitter.line(
        f"M.wgmma.multiply({index}, {mask}, R, {shape!r}, {kinds!r}, {places}, {left}, {right}, "
        f"{keep}, {flags!r})"
    )
    emitter.forget(registers)
