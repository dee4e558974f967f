"""PTX text as Triton writes it, parsed into instructions with their source lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tconv.emulator.faults import NotCovered

WIDTHS = {
    "pred": 0, "b8": 1, "s8": 1, "u8": 1, "b16": 2, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "b32": 4, "s32": 4, "u32": 4, "f32": 4, "tf32": 4, "f16x2": 4, "bf16x2": 4, "s16x2": 4,
    "u16x2": 4, "b64": 8, "s64": 8, "u64": 8, "f64": 8, "b128": 16,
    "e4m3x2": 2, "e5m2x2": 2, "e4m3": 1, "e5m2": 1,
}  # fmt: skip
COVERED = re.compile(r"sm_(8\d|90)a?$")


@dataclass(frozen=True)
class Register:
    """A virtual register; ``width`` is in bytes, 0 for a predicate."""

    name: str
    index: int
    width: int


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a float of ``float_width`` bytes."""

    bits: int
    float_width: int = 0


@dataclass(frozen=True)
class Symbol:
    """A special register, a parameter, or a variable in shared memory."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``, or ``[base, {coordinates}]`` of a tensor map."""

    base: Operand
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vector:
    """Operands in braces."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """Two destinations: ``d|p``."""

    first: Operand
    second: Operand


Operand = Register | Immediate | Symbol | Address | Vector | Pair


@dataclass
class Instruction:
    """One instruction. ``source`` is the ``file:line`` in the Triton source."""

    index: int
    opcode: str
    operands: list[Any]
    guard: Register | None
    negated: bool
    source: str
    text: str
    line: int  # in the PTX text
    target: int = -1  # of a branch: an instruction's index
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.parts = tuple(self.opcode.split("."))


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter; one of 128 bytes is a tensor map."""

    name: str
    type: str
    bytes: int

    @property
    def is_tensor_map(self) -> bool:
        return self.bytes == 128


@dataclass
class Program:
    """A kernel: its name, target, parameters, registers and instructions."""

    name: str
    target: str
    threads: int
    parameters: list[Parameter]
    instructions: list[Instruction]
    labels: dict[str, int]
    registers: list[Register]
    statics: dict[str, int]  # shared variables: offset
    static_bytes: int
    translated: dict[Any, Any] = field(default_factory=dict, repr=False)  # code made of it

    @classmethod
    def parse(cls, text: str) -> Program:
        """Parse the text of one kernel.

        Raises `NotCovered` for another architecture and for text it cannot read. Instructions
        are looked up when a `Machine` is made of the program.
        """
        return _Parser(text).parse()


LABEL = re.compile(r"([$\w]+):\s*")
STATEMENT = re.compile(r"(?:@(!?)([%$\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:([+-])\s*(-?\w+))?\s*\]$")
REG = re.compile(r"\.reg\s+\.(\w+)\s+(.*)$", re.S)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.registers: dict[str, Register] = {}
        self.ordered: list[Register] = []
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        self.scopes: list[tuple[int, set[str]]] = [(0, set())]
        self.scope_count = 0
        self.files: dict[str, str] = {}
        self.source = ""
        self.branches: list[tuple[Instruction, str, list[int]]] = []
        self.statics: dict[str, int] = {}
        self.static_bytes = 0

    def parse(self) -> Program:
        text = self.text
        target = re.search(r"^\s*\.target\s+(\w+)", text, re.M)
        if target is None:
            raise NotCovered("not PTX: there is no .target line (gfx942 code is not covered)")
        if not COVERED.match(target[1]):
            raise NotCovered(f"{target[1]} is not covered: the emulated GPU runs sm_80 and sm_90")
        entry = re.search(r"\.entry\s+([\w$]+)", text)
        if entry is None:
            raise NotCovered("the PTX has no .entry")
        for number, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M):
            self.files[number] = path
        opening = text.index("{", entry.end())
        header = re.sub(r"//[^\n]*", "", text[entry.end() : opening])
        threads = 1
        for extent in (re.search(r"\.(?:reqntid|maxntid)\s+([\d,\s]+)", header) or ["", "1"])[
            1
        ].split(","):
            threads *= int(extent)
        self._variables(text[: entry.start()])
        self._body(text, opening)
        for branch, label, scopes in self.branches:
            branch.target = self._label(label, scopes)
        return Program(
            entry[1],
            target[1],
            threads,
            self._parameters(header),
            self.instructions,
            self.labels,
            self.ordered,
            self.statics,
            self.static_bytes,
        )

    def _parameters(self, header: str) -> list[Parameter]:
        found = []
        kind_of = r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)[^,()]*?\s"
        name_of = r"([\w$]+)\s*(?:\[(\d+)\])?\s*(?=[,)])"
        for kind, name, extent in re.findall(kind_of + name_of, header):
            found.append(Parameter(name, kind, WIDTHS[kind] * int(extent or 1)))
        return found

    def _variables(self, text: str) -> None:
        pattern = r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?"
        for align, kind, name, extent in re.findall(pattern, text):
            step = int(align or 1)
            self.static_bytes = -(-self.static_bytes // step) * step
            self.statics[name] = self.static_bytes
            self.static_bytes += WIDTHS[kind] * int(extent or 0)

    def _body(self, text: str, opening: int) -> None:
        line = text.count("\n", 0, opening) + 1
        depth, statement, started, in_vector = 0, "", line, 0
        for raw in text[opening:].split("\n"):
            code = raw.split("//", 1)[0]
            stripped = code.strip()
            if not statement and stripped.startswith(".loc"):
                self._location(raw)
                line += 1
                continue
            for piece in re.split(r"([{};])", code):
                if piece == "{" and statement.strip():
                    in_vector += 1
                elif piece == "}" and in_vector:
                    in_vector -= 1
                elif piece == "{":
                    depth += 1
                    if depth > 1:
                        self.scope_count += 1
                        self.scopes.append((self.scope_count, set()))
                    continue
                elif piece == "}":
                    depth -= 1
                    if depth == 0:
                        return
                    self.scopes.pop()
                    continue
                elif piece == ";":
                    self._statement(" ".join(statement.split()), started)
                    statement = ""
                    continue
                if not statement.strip():
                    started = line
                    piece = self._take_labels(piece)
                statement += piece
            statement = statement + " " if statement.strip() else ""
            line += 1
        raise NotCovered("the kernel's body has no end")

    def _take_labels(self, piece: str) -> str:
        while match := LABEL.match(piece.strip()):
            scope = self.scopes[-1][0]
            name = match[1] if match[1].startswith("$") or not scope else f"{match[1]}.{scope}"
            self.labels[name] = len(self.instructions)
            piece = piece.strip()[match.end() :]
        return piece

    def _label(self, name: str, scopes: list[int]) -> int:
        for scope in reversed(scopes):
            found = self.labels.get(f"{name}.{scope}" if scope else name)
            if found is not None:
                return found
        if name in self.labels:
            return self.labels[name]
        raise NotCovered(f"there is no label {name}")

    def _location(self, raw: str) -> None:
        match = re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", raw)
        if match is None or match[2] == "0":  # line 0: code that the compiler made
            return
        path = self.files.get(match[1], "")
        if not path:
            comment = re.search(r"//\s*([^\s:]+):", raw)
            path = comment[1] if comment else ""
        self.source = f"{path.rsplit('/', 1)[-1]}:{match[2]}"

    def _statement(self, text: str, line: int) -> None:
        text = self._take_labels(text).strip()
        if not text:
            return
        if text.startswith("."):
            if match := REG.match(text):
                self._declare(match[1], match[2])
            elif text.startswith(".shared"):
                self._variables(text)
            elif not text.startswith((".pragma", ".loc", ".section")):
                raise NotCovered(f"the directive is not covered: {text}")
            return
        match = STATEMENT.match(text)
        if match is None:
            raise NotCovered(f"cannot parse the PTX statement: {text}")
        guard = self._operand(match[2]) if match[2] else None
        assert guard is None or isinstance(guard, Register)
        opcode, operands = match[3], split_operands(match[4])
        instruction = Instruction(
            len(self.instructions), opcode, [], guard, match[1] == "!", self.source, text, line
        )
        if opcode in ("bra", "bra.uni"):
            self.branches.append((instruction, operands[0], [scope for scope, _ in self.scopes]))
        else:
            instruction.operands = [self._operand(operand) for operand in operands]
        self.instructions.append(instruction)

    def _declare(self, kind: str, names: str) -> None:
        for name in split_operands(names):
            match = re.match(r"([%\w$]+)<(\d+)>$", name)
            if match:
                for number in range(int(match[2])):
                    self._register(f"{match[1]}{number}", WIDTHS[kind])
            else:
                scope, local = self.scopes[-1]
                local.add(name)
                self._register(f"{name}.{scope}" if scope else name, WIDTHS[kind])

    def _register(self, name: str, width: int) -> None:
        register = Register(name, len(self.ordered), width)
        self.registers[name] = register
        self.ordered.append(register)

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text[0] == "{":
            return Vector(tuple(self._operand(item) for item in split_operands(text[1:-1])))
        if text[0] == "[":
            if "{" in text:
                base, coordinates = split_operands(text[1:-1])[:2]
                vector = self._operand(coordinates)
                assert isinstance(vector, Vector)
                return Address(self._operand(base), 0, vector.items)
            match = ADDRESS.match(text)
            if match is None:
                raise NotCovered(f"cannot parse the address {text}")
            offset = int(match[3], 0) if match[3] else 0
            return Address(self._operand(match[1]), -offset if match[2] == "-" else offset)
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first), self._operand(second))
        for scope, local in reversed(self.scopes):
            if text in local:
                return self.registers[f"{text}.{scope}" if scope else text]
        if text in self.registers:
            return self.registers[text]
        if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
            return Immediate(int(text[2:], 16), 4)
        if re.match(r"0[dD][0-9a-fA-F]{16}$", text):
            return Immediate(int(text[2:], 16), 8)
        if re.match(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$", text):
            return Immediate(int(text.rstrip("U"), 0))
        return Symbol(text)


def split_operands(text: str) -> list[str]:
    """Split at commas outside of brackets and braces."""
    found, depth, current = [], 0, ""
    for letter in text:
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        if letter == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += letter
    if current.strip():
        found.append(current.strip())
    return found
