"""Count the instructions of a kernel's innermost matrix loop in its disassembly."""

from __future__ import annotations

import re
from dataclasses import dataclass

# SASS opcodes of matrix products: mma.sync, wgmma, tcgen05 and fp64.
SASS_MATRIX = ("HGMMA", "HMMA", "DMMA", "QGMMA", "IGMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA")
AMD_MATRIX = ("v_mfma",)
# Without matrix instructions (exact fp32), take the loop with the most multiply-adds.
SASS_SCALAR = ("FFMA", "DFMA", "HFMA2")
AMD_SCALAR = ("v_fma", "v_pk_fma", "v_fmac", "v_dot")
# A loop that stores runs over tiles; the loop over a tile's steps lies inside it and stores
# nothing.
STORES = ("STG", "UTMASTG", "global_store", "buffer_store")


@dataclass(frozen=True)
class Line:
    """A label, or an instruction and its jump target if any."""

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


def _loops(lines: list[Line]) -> list[list[str]]:
    """Return the opcodes of each loop, from a label to a jump back to it; shortest first."""
    places = {line.label: place for place, line in enumerate(lines) if line.label}
    spans = []
    for end, line in enumerate(lines):
        begin = places.get(line.jump, end) if line.jump else end
        if begin < end - 1:  # a jump to itself pads the end of a program
            spans.append((begin, end))
    loops = [[line.opcode for line in lines[b : e + 1] if line.opcode] for b, e in spans]
    return sorted(loops, key=len)


def _count(
    lines: list[Line],
    matrix: tuple[str, ...],
    scalar: tuple[str, ...],
    steps: int,
    products: float,
) -> int:
    """Count the instructions per step of the shortest loop that multiplies matrices.

    That loop need not be the innermost one: waiting for a copy is a loop too. If the compiler
    unrolled it in part, it holds a multiple of a step's ``products``. If the compiler unrolled it
    as a whole, as it may for a few known ``steps``, the instructions from the first to the last
    product are divided by ``steps``.
    """

    def per_step(loop: list[str], opcodes: tuple[str, ...]) -> int:
        found = sum(opcode.startswith(opcodes) for opcode in loop)
        unrolled = max(1, round(found / products)) if products else 1
        return round(len(loop) / unrolled)

    loops = [
        loop for loop in _loops(lines) if not any(opcode.startswith(STORES) for opcode in loop)
    ]
    for loop in loops:
        if any(opcode.startswith(matrix) for opcode in loop):
            return per_step(loop, matrix)
    opcodes = [line.opcode for line in lines if line.opcode]
    places = [place for place, opcode in enumerate(opcodes) if opcode.startswith(matrix)]
    if places:
        return max(1, (places[-1] - places[0] + 1) // max(1, steps))
    counts = [sum(opcode.startswith(scalar) for opcode in loop) for loop in loops]
    most = max(counts, default=0)
    return per_step(loops[counts.index(most)], scalar) if most else 0


def matrix_loop_instructions(listing: str, steps: int = 1, products: float = 0) -> int:
    """Return the instructions per step of the matrix loop in an ``nvdisasm -c`` listing, or 0.

    Args:
        listing: the disassembly of a kernel.
        steps: trip count of its loop, used if the loop is unrolled as a whole.
        products: multiply instructions that a warp issues in one step; a loop with a multiple of
            them was unrolled in part. 0 if unknown.
    """
    return _count(_sass(listing), SASS_MATRIX, SASS_SCALAR, steps, products)


def program_instructions(listing: str) -> int:
    """Count the instructions of a program without loops in an ``nvdisasm -c`` listing."""
    return sum(bool(line.opcode) for line in _sass(listing))


def amd_loop_instructions(text: str, steps: int = 1) -> int:
    """Return the instructions per step of the matrix loop in AMDGPU assembly, or 0."""
    return _count(_amd(text), AMD_MATRIX, AMD_SCALAR, steps, 0)
