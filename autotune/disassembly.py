"""Count the instructions of a kernel's innermost matrix loop in its disassembly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Opcodes that multiply matrices: mma.sync, wgmma, tcgen05 and fp64, by their SASS names.
SASS_MATRIX = ("HGMMA", "HMMA", "DMMA", "QGMMA", "IGMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA")
AMD_MATRIX = ("v_mfma",)
# Where no matrix unit serves (exact fp32), the loop with most multiply-adds is meant.
SASS_SCALAR = ("FFMA", "DFMA", "HFMA2")
AMD_SCALAR = ("v_fma", "v_pk_fma", "v_fmac", "v_dot")


@dataclass(frozen=True)
class Line:
    """A label, or an instruction with the label it may jump to."""

    label: str | None
    opcode: str = ""
    jump: str | None = None


def _sass(listing: str) -> list[Line]:
    lines = []
    for text in listing.splitlines():
        if label := re.match(r"(\.L_\w+):", text):
            lines.append(Line(label[1]))
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", text):
            opcode = instruction[1]
            if opcode == "NOP":
                continue
            jump = re.search(r"`\((\.L_\w+)\)", text) if opcode.startswith("BRA") else None
            lines.append(Line(None, opcode, jump[1] if jump else None))
    return lines


def _amd(text: str) -> list[Line]:
    lines = []
    for line in text.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            lines.append(Line(label[1]))
        elif instruction := re.match(r"\s+([a-z]\w+)", line):
            opcode = instruction[1]
            jump = re.search(r"(\.LBB\w+)", line) if "branch" in opcode else None
            lines.append(Line(None, opcode, jump[1] if jump else None))
    return lines


def _innermost(lines: list[Line]) -> list[list[str]]:
    """The opcodes of each loop that holds no other: from a label to a jump back to it."""
    places = {line.label: place for place, line in enumerate(lines) if line.label}
    spans = []
    for end, line in enumerate(lines):
        begin = places.get(line.jump, end) if line.jump else end
        if begin < end - 1:  # a jump to itself ends a program
            spans.append((begin, end))
    inner = [
        (begin, end)
        for begin, end in spans
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans)
    ]
    return [[line.opcode for line in lines[b : e + 1] if line.opcode] for b, e in inner]


def _count(loops: list[list[str]], matrix: Iterable[str], scalar: Iterable[str]) -> int:
    def uses(prefixes: Iterable[str]) -> Callable[[list[str]], int]:
        names = tuple(prefixes)
        return lambda loop: sum(opcode.startswith(names) for opcode in loop)

    for counted in (uses(matrix), uses(scalar)):
        best = max(loops, key=counted, default=[])
        if best and counted(best):
            return len(best)
    return 0


def matrix_loop_instructions(listing: str) -> int:
    """Instructions a step of the matrix loop in ``nvdisasm -c``'s listing; 0 where none is."""
    return _count(_innermost(_sass(listing)), SASS_MATRIX, SASS_SCALAR)


def amd_loop_instructions(text: str) -> int:
    """The same for AMDGPU assembly."""
    return _count(_innermost(_amd(text)), AMD_MATRIX, AMD_SCALAR)
