"""Tests of launches, control flow and limits of the emulated GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tconv.emulator import Fault, Machine, Memory, NotCovered, Program
from tests.tconv.emulator.ptx_of import kernel, run

STORE = """
    mov.u32 %r1, %ctaid.x;
    mad.lo.u32 %r2, %r1, 64, %t;
    mad.wide.u32 %d1, %r2, 4, %a0;
    st.global.b32 [%d1], %r2;
"""


def test_every_thread_of_every_block_runs() -> None:
    (out,) = run(STORE, [np.zeros(64 * 50, np.uint32)], 64, (50,))
    assert (out == np.arange(64 * 50)).all()


def test_diverged_threads_reconverge() -> None:
    body = """
    mov.u32 %r1, %ctaid.x;
    mov.b32 %r3, 0;
    and.b32 %r4, %t, 3;
    add.s32 %r4, %r4, %r1;
$loop:
    setp.ge.s32 %p1, %r3, %r4;
    @%p1 bra $out;
    add.s32 %r3, %r3, 1;
    bra.uni $loop;
$out:
    bar.sync 0;
    mad.lo.u32 %r2, %r1, 64, %t;
    mad.wide.u32 %d1, %r2, 4, %a0;
    st.global.b32 [%d1], %r3;
"""
    (out,) = run(body, [np.zeros(64 * 5, np.uint32)], 64, (5,))
    block, thread = np.divmod(np.arange(64 * 5), 64)
    assert (out == thread % 4 + block).all()


def launch(**change: object) -> Machine:
    memory = Memory()
    address = memory.put(np.zeros(4096, np.uint32))
    options = {"threads": 64, "grid": (1,), "shared_bytes": 0} | change
    program = Program.parse(kernel(STORE, 1, options["threads"]))  # type: ignore[arg-type]
    return Machine(program, memory, [address], options["grid"], options["shared_bytes"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"grid": (1 << 31,)},
        {"grid": (1, 65536)},
        {"grid": (1, 1, 65536)},
        {"grid": (0,)},
        {"threads": 1056},
        {"shared_bytes": 232449},
    ],
)
def test_launch_limits(change: dict[str, object]) -> None:
    with pytest.raises(Fault) as caught:
        launch(**change)
    assert caught.value.kind == "launch limit"
    assert caught.value.kernel == "test"


def test_the_largest_launch_is_accepted() -> None:
    launch(grid=((1 << 31) - 1, 65535, 65535), threads=1024, shared_bytes=232448)


def test_other_architectures_are_refused_by_name() -> None:
    with pytest.raises(NotCovered, match="sm_100a is not covered"):
        Program.parse(kernel(STORE, 1, target="sm_100a"))
    with pytest.raises(NotCovered, match="gfx942"):
        Program.parse('.amdgcn_target "amdgcn-amd-amdhsa--gfx942"\ns_endpgm\n')


@pytest.mark.parametrize(
    "text",
    ["frobnicate.f32 %r1, %r2", "cp.async.cg.shared.global [%r1], [%d1], 8",
     "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 32",
     "add.rz.f32 %r1, %r2, %r3", "call.uni vprintf"],
)  # fmt: skip
def test_an_unknown_instruction_is_named(text: str) -> None:
    program = Program.parse(kernel(f"    {text};", 1))
    with pytest.raises(NotCovered, match=text.split()[0]):
        Machine(program, Memory(), [0], (1,))
