"""Tests that faults planted in compiled kernels are reported under the right name.

Every case edits the PTX of a kernel that runs without a fault (`test_triton_kernels`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from tconv.emulator import Fault
from tests.tconv.emulator.launches import RUN, Launched


@dataclass(frozen=True)
class Plant:
    """An edit of a kernel: ``which`` matches of ``pattern`` (None: all) become ``replacement``."""

    name: str
    case: str
    pattern: str
    replacement: str
    kinds: str  # kinds of fault that may be reported, separated by |
    which: int | None = 0

    def plant(self, ptx: str) -> str:
        """Return the edited PTX."""
        found = list(re.finditer(self.pattern, ptx, re.M))
        assert found, f"{self.name}: nothing matches {self.pattern}"
        chosen = found if self.which is None else [found[self.which]]
        for match in reversed(chosen):
            ptx = ptx[: match.start()] + match.expand(self.replacement) + ptx[match.end() :]
        return ptx


MATMUL, BOXES = "matmul sm_80", "matmul_boxes sm_90"
SOFTMAX, SUMS, NORM = "softmax sm_90", "column_sums sm_90", "layer_norm sm_90"
BAR, LINE = r"bar\.sync\s+0;", r"^.*{}.*$"
PLANTS = [
    # block barriers
    Plant("no barrier between a write and a read", SOFTMAX, BAR, "", "shared memory race", 0),
    Plant("no barrier between a read and a write", SOFTMAX, BAR, "", "shared memory race", 2),
    Plant("no barrier after another row's sum", SUMS, BAR, "", "shared memory race", 1),
    Plant("a barrier for too few threads", SOFTMAX, BAR, "bar.sync 0, 64;", "barrier misuse", 0),
    Plant("a barrier for too many threads", SOFTMAX, BAR, "bar.sync 0, 160;", "deadlock", 0),
    Plant("a barrier that half the warps skip", SOFTMAX, BAR,
          "setp.lt.u32 %p1, %r2, 64;\n@%p1 bar.sync 0;", "deadlock|shared memory race", 0),
    Plant("a barrier within a diverged warp", SOFTMAX, BAR,
          "@%p5 bar.sync 0;", "divergent warp|deadlock", 0),
    Plant("threads end before a barrier", SOFTMAX, BAR, "@%p5 ret;\nbar.sync 0;",
          "divergent warp|deadlock", 0),
    Plant("another barrier's number", SOFTMAX, BAR, "@%p5 bra $X;\nbar.sync 0;\n$X:",
          "divergent warp|deadlock", 0),
    # shared and global memory
    Plant("a shared store left out", NORM, LINE.format(r"st\.shared\.v4"), "",
          "uninitialised read"),
    Plant("a shared vector store off by a word", NORM, r"(st\.shared\.v4\.b32 \[ %r\d+ \+ )0",
          r"\g<1>4", "misaligned access"),
    Plant("a shared store past the end", NORM, r"(st\.shared\.v4\.b32 \[ %r\d+ \+ )0",
          r"\g<1>2048", "out of bounds"),
    Plant("ldmatrix off by half a row", NORM, r"(ldmatrix.*\[%r\d+)\]", r"\g<1>+8]",
          "misaligned access"),
    Plant("ldmatrix past what was written", MATMUL, r"(ldmatrix.*\[%r\d+\+)2048", r"\g<1>32768",
          "out of bounds|uninitialised read"),
    Plant("a load without its mask", SOFTMAX, r"@%p4 (ld\.global)", r"\1", "out of bounds"),
    Plant("a store without its mask", SOFTMAX, r"@%p4 (st\.global)", r"\1", "out of bounds"),
    Plant("a vector store off by a word", MATMUL, r"(st\.global\.v4\.b32 \[ %rd\d+ \+ )0",
          r"\g<1>4", "misaligned access"),
    Plant("a scalar load off by a byte", SUMS, r"(ld\.global\.b32 \{ %r1 \}, \[ %rd1 \+ )0",
          r"\g<1>2", "misaligned access"),
    Plant("the result read before it is written", SOFTMAX,
          r"(@%p1) st\.global\.b32 (\[ %rd5 \+ 0 \]).*;", r"\1 ld.global.b32 %r14, \2;",
          "uninitialised read"),
    # the threads of a warp
    Plant("a shuffle of some lanes", SOFTMAX, r"(shfl\.sync\.bfly)", r"@%p5 \1",
          "divergent warp", 5),
    Plant("ldmatrix by some lanes", NORM, r"(ldmatrix)", r"@%p11 \1", "divergent warp"),
    # cp.async
    Plant("a wait for fewer groups", MATMUL, r"(cp\.async\.wait_group\s+)2", r"\g<1>4",
          "missing wait"),
    Plant("a wait left out", MATMUL, r"cp\.async\.wait_group\s+2;", "", "missing wait"),
    Plant("a commit left out", MATMUL, r"cp\.async\.commit_group;", "", "missing wait", 1),
    Plant("no barrier after a wait for copies", MATMUL, BAR, "",
          "shared memory race|buffer reused too soon", 1),
    Plant("no barrier before a buffer is filled again", MATMUL, BAR, "",
          "buffer reused too soon", 2),
    Plant("half a copy", MATMUL, r"cp\.async\.cg(.*)0x10, %r\d+;", r"cp.async.ca\g<1>0x8;",
          "uninitialised read|out of bounds"),
    Plant("a copy to an address off by a word", MATMUL, r"(cp\.async\.cg\S+ \[ %r\d+ \+ )0",
          r"\g<1>4", "misaligned access"),
    Plant("a copy whose mask is always true", MATMUL, r"(0x10), %r\d+;", r"\1;",
          "out of bounds", None),
    # mbarriers and boxes
    Plant("more bytes expected than arrive", BOXES, r"(expect_tx.*\], )16384", r"\g<1>16400",
          "deadlock"),
    Plant("fewer bytes expected than arrive", BOXES, r"(expect_tx.*\], )16384", r"\g<1>8192",
          "barrier misuse|missing wait"),
    Plant("an arrival too many expected", BOXES, r"(mbarrier\.init.*\], )1;", r"\g<1>2;",
          "deadlock"),
    Plant("an arrival too many", BOXES, r"^\s*(@%p4 mbarrier\.arrive\.)expect_tx(.*\]), 16384;",
          r"\1expect_tx\2, 16384;\n\1expect_tx\2, 16384;", "barrier misuse|deadlock"),
    Plant("a barrier never initialised", BOXES, r"^.*mbarrier\.init.*$", "", "barrier misuse", 1),
    Plant("no barrier after an initialisation", BOXES, BAR, "", "barrier misuse", None),
    Plant("a parity that never changes", BOXES, r"xor\.b32\s+(%r\d+), \1, %r\d+;", "",
          "missing wait"),
    Plant("the opposite parity", BOXES, r"(try_wait.*complete, \[%r\d+\]), %r85;", r"\1, 1;",
          "missing wait|deadlock"),
    Plant("a wait for boxes left out", BOXES, r"mbarrier\.try_wait.*;", "mov.pred complete, 1;",
          "missing wait"),
    Plant("no barrier before a box is filled again", BOXES, BAR, "", "buffer reused too soon", 6),
    Plant("a box at an address off by 64", BOXES, r"(cp\.async\.bulk\.tensor.*\[)%r8\](, \[%rd1)",
          r"\1%r8+64]\2", "misaligned access"),
    Plant("a box past the end", BOXES, r"(cp\.async\.bulk\.tensor.*\[)%r8\](, \[%rd1)",
          r"\1%r8+48128]\2", "out of bounds"),
    Plant("a parameter that is no tensor map", BOXES, r"(mov\.b64\s+%rd3, matmul_boxes_param_)0",
          r"\g<1>1", "tensor map"),
    # products of warpgroups
    Plant("no fence before products", BOXES, r"wgmma\.fence\S*;", "", "missing fence"),
    Plant("a wait for fewer products", BOXES, r"(wgmma\.wait_group\S*\s+)1", r"\g<1>2",
          "buffer reused too soon"),
    Plant("products not waited for at the end", BOXES, r"wgmma\.wait_group\S*\s+0;", "",
          "missing wait"),
    Plant("an accumulator overwritten before its wait", BOXES, r"(wgmma\.commit_group\S*;)",
          r"\1\nadd.f32 %r88, %r88, %r89;", "missing wait"),
    Plant("products never committed", BOXES, r"wgmma\.commit_group\S*;", "",
          "missing wait|buffer reused too soon"),
    Plant("an operand past the end", BOXES, r"add\.s64(\s+%rd8, %rd16, )\d+;",
          r"or.b64\1 4611686293305311231;", "matrix descriptor"),
    Plant("a descriptor that differs in a warpgroup", BOXES, r"(bfe\.u32\s+%r38, %r36, 4, 14;)",
          r"\1\nadd.s32 %r38, %r38, %r1;", "matrix descriptor"),
    Plant("a stride that leads astray", BOXES, r"or\.b64(\s+%rd6, %rd16, )4611686293305294848;",
          r"or.b64\1 4611756382876663808;", "matrix descriptor"),
    # stores of boxes
    Plant("no fence before a box is stored", BOXES, r"fence\.proxy\.async\S*;", "",
          "missing fence"),
    Plant("no barrier before a box is stored", BOXES, BAR, "", "shared memory race", -2),
    Plant("a store not waited for", BOXES, r"cp\.async\.bulk\.wait_group\.read\s+0;", "",
          "missing wait"),
    Plant("a store not committed", BOXES, r"cp\.async\.bulk\.commit_group;", "", "missing wait"),
    Plant("shared memory written during a store", BOXES, r"(cp\.async\.bulk\.commit_group;)",
          r"\1\nst.shared.b32 [%r8], %r1;", "buffer reused too soon|shared memory race"),
    # the end
    Plant("a trap", SOFTMAX, BAR, "trap;", "trap"),
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_fault_is_named(plant: Plant, compiled: dict[str, dict[str, Any]]) -> None:
    entry = compiled[plant.case]
    name = plant.case.split()[0]
    launch = Launched(entry, plant.plant(entry["ptx"]))
    with pytest.raises(Fault) as caught:
        RUN[name](launch)
    fault = caught.value
    assert fault.kind in plant.kinds.split("|"), fault
    assert fault.kernel == launch.program.name
    assert re.fullmatch(r"\w+\.py:\d+", fault.source), fault
    assert fault.thread.startswith("block ("), fault
    assert fault.instruction


# Edits that break no rule of the machine but give wrong values.
WRONG = [
    Plant("a swizzle changed", BOXES, r"(add\.s32\s+%r79, %r8, )%r78", r"\g<1>%r76", ""),
    Plant("the wrong row of a matrix", MATMUL, r"(ldmatrix.*\[%r\d+)\+2048\]", r"\g<1>]", ""),
    Plant("another lane's value", SOFTMAX, r"(shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, )16",
          r"\g<1>8", "", 1),
    Plant("a product of other columns", BOXES, r"(add\.s64\s+%rd8, %rd16, 461168629330529485)0",
          r"\g<1>2", ""),
]  # fmt: skip


@pytest.mark.parametrize("plant", WRONG, ids=lambda plant: plant.name)
def test_a_wrong_value_is_noticed(plant: Plant, compiled: dict[str, dict[str, Any]]) -> None:
    entry = compiled[plant.case]
    name = plant.case.split()[0]
    assert RUN[name](Launched(entry, plant.plant(entry["ptx"]))) > 1e-2
