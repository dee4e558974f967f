"""Small PTX programs for tests that apply one instruction to values from memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tconv.emulator import Machine, Memory, Program

REGISTER = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}
LOAD = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}


def kernel(body: str, parameters: int, threads: int = 32, target: str = "sm_90a") -> str:
    """Return PTX of a kernel with ``parameters`` pointers in %a0, %a1, ... and the thread in %t."""
    names = ",\n".join(f"    .param .u64 test_param_{n}" for n in range(parameters))
    loads = "\n".join(f"    ld.param.b64 %a{n}, [test_param_{n}];" for n in range(parameters))
    return f""".version 8.7
.target {target}
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry test(
{names}
)
.reqntid {threads}
{{
    .reg .pred %p<32>;
    .reg .b16 %h<64>;
    .reg .b32 %r<128>;
    .reg .b64 %d<32>;
    .reg .b64 %a<32>;
    .reg .b32 %t;
    mov.u32 %t, %tid.x;
{loads}
{body}
    ret;
}}
"""


def run(
    body: str,
    arrays: Sequence[NDArray[Any]],
    threads: int = 32,
    grid: tuple[int, ...] = (1,),
    shared_bytes: int = 0,
    **options: Any,
) -> list[NDArray[Any]]:
    """Run a body on copies of arrays in global memory and return the resulting arrays."""
    memory = Memory()
    copies = [np.array(array, order="C") for array in arrays]
    addresses = [memory.add(copy, f"array {n}") for n, copy in enumerate(copies)]
    program = Program.parse(kernel(body, len(arrays), threads))
    Machine(program, memory, addresses, grid, shared_bytes=shared_bytes, **options).run()
    return copies


def apply(
    instruction: str, sources: Sequence[NDArray[Any]], result: Any, predicate: bool = False
) -> NDArray[Any]:
    """Apply ``instruction`` to each element of arrays; {d}, {0}, {1}, ... stand for registers.

    With ``predicate`` the destination is a predicate, which is stored as 1 or 0 of ``result``.
    """
    count = len(sources[0])
    threads = -(-count // 32) * 32
    out = np.zeros(threads, result)
    lines, names = [], []
    padded = [np.resize(np.asarray(source), threads) for source in sources]
    for number, source in enumerate(padded):
        size = source.dtype.itemsize
        name = f"{REGISTER[size]}{number + 1}"
        names.append(name)
        lines.append(f"    mad.wide.u32 %d{20 + number}, %t, {size}, %a{number};")
        lines.append(f"    ld.global.{LOAD[size]} {name}, [%d{20 + number}];")
    size = out.dtype.itemsize
    target = "%p9" if predicate else f"{REGISTER[size]}9"
    lines.append("    " + instruction.format(*names, d=target) + ";")
    stored = target
    if predicate:
        stored = f"{REGISTER[size]}9"
        lines.append(f"    selp.{LOAD[size].replace('b8', 'b16')} {stored}, 1, 0, %p9;")
    lines.append(f"    mad.wide.u32 %d19, %t, {size}, %a{len(sources)};")
    lines.append(f"    st.global.{LOAD[size]} [%d19], {stored};")
    return run("\n".join(lines), [*padded, out], threads)[-1][:count]
