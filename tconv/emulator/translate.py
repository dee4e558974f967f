"""Straight runs of PTX instructions become Python functions over NumPy arrays.

A run ends where lanes may part ways or have to wait. Within it registers are local variables, and
a value that is used as integer and as float exists as views of one array. Values that are needed
after the run are written back to the machine's list of registers, merged where lanes are inactive.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tconv.emulator import bit_instructions, instructions, memory_instructions
from tconv.emulator.emitter import Emit, Emitter
from tconv.emulator.faults import NotCovered
from tconv.emulator.order import execution_order
from tconv.emulator.ptx import Address, Instruction, Pair, Program, Register, Vector

BRANCHES = ("bra", "ret", "exit", "trap")
WAITS = (
    "bar.sync",
    "bar.red",
    "barrier",
    "mbarrier.try_wait",
    "mbarrier.test_wait",
    "wgmma.wait_group",
)
LONGEST_RUN = 400
HANDLERS = (
    instructions.HANDLERS | bit_instructions.BIT_HANDLERS | memory_instructions.MEMORY_HANDLERS
)


@dataclass
class Run:
    """A translated run and how it ends."""

    function: Any
    first: int
    terminator: Instruction | None
    following: int  # the run after this one, if control falls through
    target: int  # the run that a branch goes to
    opcodes: Counter[str]
    order: int  # lanes that parted ways go on in the run of the least order


def is_terminator(instruction: Instruction) -> bool:
    """Whether lanes may part ways or wait at this instruction."""
    opcode = instruction.opcode
    return opcode.split(".")[0] in BRANCHES or (
        opcode.startswith(WAITS) and not (opcode.startswith("bar.warp"))
    )


def handler(instruction: Instruction) -> Emit:
    """The function that emits code for an instruction; raises `NotCovered` if there is none."""
    name = instruction.parts[0]
    found = HANDLERS.get(name)
    if found is None:
        raise NotCovered(f"the instruction {instruction.opcode} is not covered: {instruction.text}")
    return found


def registers_of(operand: Any) -> list[Register]:
    """All registers in an operand."""
    if isinstance(operand, Register):
        return [operand]
    if isinstance(operand, Address):
        return registers_of(operand.base) + [
            r for c in operand.coordinates for r in registers_of(c)
        ]
    if isinstance(operand, Vector):
        return [r for item in operand.items for r in registers_of(item)]
    if isinstance(operand, Pair):
        return registers_of(operand.first) + registers_of(operand.second)
    return []


def uses_and_definitions(instruction: Instruction) -> tuple[list[Register], list[Register]]:
    """Registers that an instruction reads, and those that it writes."""
    operands, parts = instruction.operands, instruction.parts
    guard = [instruction.guard] if instruction.guard else []
    no_result = parts[0] in (
        "st",
        "red",
        "stmatrix",
        "bar",
        "barrier",
        "prefetch",
        "cp",
        "bra",
        "ret",
        "fence",
    )
    if parts[0] == "mbarrier" and parts[1] in ("init", "inval", "expect_tx", "complete_tx"):
        no_result = True
    if parts[0] == "wgmma" and parts[1] != "mma_async":
        no_result = True
    if no_result or not operands:
        return guard + [r for operand in operands for r in registers_of(operand)], []
    written = registers_of(operands[0])
    read = guard + [r for operand in operands[1:] for r in registers_of(operand)]
    if isinstance(operands[0], Address):
        return read + written, []
    if instruction.guard or parts[0] == "wgmma":
        read += written
    return read, written


def leaders(program: Program) -> list[int]:
    """Where runs start."""
    count = len(program.instructions)
    found = {0} | {i.target for i in program.instructions if 0 <= i.target < count}
    length = 0
    for place, instruction in enumerate(program.instructions):
        length = 0 if place in found else length + 1
        if is_terminator(instruction) or length >= LONGEST_RUN:
            found.add(place + 1)
            length = 0
    return sorted(place for place in found if place < count)


def _bits(registers: list[Register]) -> int:
    total = 0
    for register in registers:
        total |= 1 << register.index
    return total


def successors_of(program: Program, starts: list[int]) -> list[list[int]]:
    """Return for each run those that may follow it."""
    ends = [*starts[1:], len(program.instructions)]
    number = {start: place for place, start in enumerate(starts)}
    successors = []
    for end in ends:
        last = program.instructions[end - 1]
        follow = []
        if last.target >= 0 and last.target in number:
            follow.append(number[last.target])
        if end in number and not (last.guard is None and last.parts[0] in BRANCHES):
            follow.append(number[end])
        successors.append(follow)
    return successors


def live_after(program: Program, starts: list[int], successors: list[list[int]]) -> list[int]:
    """Return for each run the set of registers (as bits) that are read after it."""
    ends = [*starts[1:], len(program.instructions)]
    read, written = [], []
    for start, end in zip(starts, ends, strict=True):
        uses = kills = 0
        for instruction in program.instructions[start:end]:
            reads, writes = uses_and_definitions(instruction)
            uses |= _bits(reads) & ~kills
            kills |= _bits(writes)
        read.append(uses)
        written.append(kills)
    after = [0] * len(starts)
    before = read.copy()
    changed = True
    while changed:
        changed = False
        for place in range(len(starts) - 1, -1, -1):
            live = 0
            for successor in successors[place]:
                live |= before[successor]
            now = read[place] | (live & ~written[place])
            if live != after[place] or now != before[place]:
                after[place], before[place], changed = live, now, True
    return after


def translate(program: Program) -> list[Run]:
    """All runs of a program, translated; the result is kept with the program."""
    if "runs" in program.translated:
        return program.translated["runs"]  # type: ignore[no-any-return]
    starts = leaders(program)
    number = {start: place for place, start in enumerate(starts)}
    ends = [*starts[1:], len(program.instructions)]
    successors = successors_of(program, starts)
    order = execution_order(successors)
    runs = []
    for place, live in enumerate(live_after(program, starts, successors)):
        body = program.instructions[starts[place] : ends[place]]
        last = body[-1] if is_terminator(body[-1]) else None
        emitter = Emitter(program)
        for instruction in body:
            if instruction is last:
                break
            emit = handler(instruction)
            emitter.begin(instruction)
            emit(emitter, instruction)
        if last is not None:
            live |= _bits(uses_and_definitions(last)[0])
        emitter.write_back(live)
        target = (
            number.get(last.target, len(starts)) if last is not None and last.target >= 0 else -1
        )
        opcodes = Counter(instruction.opcode for instruction in body)
        name = f"{program.name} {body[0].source}"
        function = emitter.function(name)
        runs.append(Run(function, starts[place], last, place + 1, target, opcodes, order[place]))
    program.translated["runs"] = runs
    return runs
