"""Writes the Python of one straight run of instructions.

Registers are local variables of the function that is written. A value that is used as integer and
as float exists as views of one array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tconv.emulator import arithmetic, conversions
from tconv.emulator.faults import NotCovered
from tconv.emulator.ptx import Immediate, Instruction, Program, Register, Symbol

ENVIRONMENT: dict[str, Any] = {
    "A": arithmetic,
    "C": conversions,
    "np": np,
    "where": np.where,
    "full": np.full,
    **{f"{kind}{width}".upper(): np.dtype(f"{kind}{width}").type
       for kind, widths in (("u", (1, 2, 4, 8)), ("i", (1, 2, 4, 8)), ("f", (2, 4, 8)))
       for width in widths},
}  # fmt: skip
UNSIGNED = {0: "b1", 1: "u1", 2: "u2", 4: "u4", 8: "u8"}


def parameter_address(place: int) -> int:
    """Address of the kernel's parameter number ``place`` in the emulated parameter space."""
    return 0x7000_0000 + 256 * place  # in 32 bits: Triton 3.9 takes such addresses


class Emitter:
    """Writes the Python of one run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.lines: list[str] = []
        self.forms: dict[int, set[str]] = {}
        self.dirty: set[int] = set()
        self.constants: dict[str, Any] = {}
        self.guard: str | None = None  # name of the present instruction's guard
        self.known_masks: set[str] = set()
        self.masks: dict[tuple[str, bool], str] = {}
        self.serial = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def fresh(self, prefix: str) -> str:
        """A new name."""
        self.serial += 1
        return f"{prefix}{self.serial}"

    def constant(self, value: Any) -> str:
        """The name of a constant in the function's globals."""
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def scalar(self, bits: int, form: str) -> str:
        """A NumPy scalar with these bits in a form such as ``u4`` or ``f4``."""
        if form == "b1":
            return self.constant(np.bool_(bits & 1))
        width = int(form[1])
        raw = np.array([bits & ((1 << 8 * width) - 1)], f"u{width}").view(form)[0]
        name = f"s{raw.tobytes().hex()}{form}"
        self.constants[name] = raw
        return name

    def use(self, operand: Any, form: str) -> str:
        """The name of an operand's value in a form: ``b1``, or a kind and bytes such as ``u4``."""
        if isinstance(operand, Immediate):
            bits = operand.bits
            if operand.float_width and operand.float_width != int(form[1]):
                raise NotCovered(f"a float constant of another width: {bits:#x}")
            return self.scalar(bits, form)
        if isinstance(operand, Symbol):
            return self._symbol(operand.name, form)
        assert isinstance(operand, Register), operand
        index, width = operand.index, operand.width
        forms = self.forms.get(index)
        if forms is None:
            base = UNSIGNED[width]
            self.line(f"v{index}{base} = R[{index}]")
            forms = self.forms[index] = {base}
        if form in forms:
            return f"v{index}{form}"
        size = 0 if form == "b1" else int(form[1])
        if size > width:
            raise NotCovered(f"{operand.name} is narrower than the instruction's type")
        if size < width:
            whole = self.use(operand, UNSIGNED[width])
            cut = f"v{index}{form}"
            self.line(f"{cut} = {whole}.astype(U{size}).view({form.upper()})")
        else:
            same = next(
                known for known in sorted(forms) if known != "b1" and int(known[1]) == width
            )
            self.line(f"v{index}{form} = v{index}{same}.view({form.upper()})")
        forms.add(form)
        return f"v{index}{form}"

    def _symbol(self, name: str, form: str) -> str:
        if name.startswith("%"):
            known = f"M.special[{name!r}]"
            if form in ("u4", "i4"):
                return known if form == "u4" else f"{known}.view(I4)"
            return f"{known}.astype({form.upper()})"
        if name in self.program.statics:
            return self.scalar(self.program.statics[name], form)
        for place, parameter in enumerate(self.program.parameters):
            if parameter.name == name:
                return self.scalar(parameter_address(place), form)
        raise NotCovered(f"the operand {name} is not covered")

    def define(self, register: Any, form: str, expression: str, operands: list[str]) -> None:
        """Give a register the value of an expression of the named operands."""
        if isinstance(register, Symbol):
            assert register.name == "_", register
            return
        index, width = register.index, register.width
        size = 0 if form == "b1" else int(form[1])
        if operands and all(name[0] in "sk" for name in operands):
            expression = f"full(T, {expression})"
        if size < width:
            if form[0] == "i":
                expression = f"({expression}).astype(I{width}).view(U{width})"
            else:
                bits = f"({expression})" if form[0] == "u" else f"({expression}).view(U{size})"
                expression = f"{bits}.astype(U{width})"
            form = f"u{width}"
        elif size > width:
            raise NotCovered(f"{register.name} is narrower than the instruction's result")
        name = f"v{index}{form}"
        if self.guard is not None:
            old = self.use(register, form)
            expression = f"where({self.guard}, {expression}, {old})"
        self.line(f"{name} = {expression}")
        self.forms[index] = {form}
        self.dirty.add(index)
        for key in [key for key in self.masks if key[0] == f"v{index}b1"]:
            del self.masks[key]

    def begin(self, instruction: Instruction) -> None:
        """Set the guard of the next instruction."""
        self.guard = None
        if instruction.guard is None:
            return
        predicate = self.use(instruction.guard, "b1")
        key = (predicate, instruction.negated)
        if key not in self.masks:
            name = self.fresh("g")
            self.line(f"{name} = {'~' if instruction.negated else ''}{predicate}")
            self.masks[key] = name
        self.guard = self.masks[key]

    @property
    def mask(self) -> str:
        """The name of the mask of lanes that execute the present instruction, or of None."""
        if self.guard is None:
            return "m"
        name = f"{self.guard}m"
        if name not in self.known_masks:
            self.line(f"{name} = {self.guard} if m is None else {self.guard} & m")
            self.known_masks.add(name)
        return name

    def write_back(self, live: int) -> None:
        """Store registers that are read after the run."""
        self.guard = None
        kept = [index for index in sorted(self.dirty) if live >> index & 1]
        values = {}
        for index in kept:
            register = self.program.registers[index]
            values[index] = self.use(register, UNSIGNED[register.width])
        if not kept:
            return
        self.line("if m is None:")
        for index in kept:
            self.line(f"    R[{index}] = {values[index]}")
        self.line("else:")
        for index in kept:
            self.line(f"    R[{index}] = where(m, {values[index]}, R[{index}])")

    def spill(self, registers: list[Register]) -> None:
        """Store registers now, for an operation that takes them from the list."""
        for register in registers:
            if register.index in self.dirty:
                value = self.use(register, UNSIGNED[register.width])
                place = f"R[{register.index}]"
                self.line(f"{place} = {value} if m is None else where(m, {value}, {place})")
                self.dirty.discard(register.index)

    def forget(self, registers: list[Register]) -> None:
        """Registers were written in the list: read them again at their next use."""
        for register in registers:
            self.forms.pop(register.index, None)
            self.dirty.discard(register.index)

    def function(self, name: str) -> Any:
        """Compile what was written."""
        body = "\n    ".join(["T = M.lanes", *self.lines])
        text = f"def run(R, m, M):\n    {body}\n"
        space = {**ENVIRONMENT, **self.constants}
        exec(compile(text, f"<{name}>", "exec"), space)
        return space["run"]


Emit = Callable[["Emitter", Instruction], None]
