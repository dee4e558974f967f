"""Tests of finding loops in disassembler listings."""

from __future__ import annotations

from autotune.disassembly import amd_loop_instructions, matrix_loop_instructions

SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   LDGSTS.E.128 [R4], desc[UR4][R6.64] ;
        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24 ;
        /*0040*/                   NOP ;
        /*0050*/              @!P0 BRA `(.L_x_1) ;
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
"""

AMD = """
kernel:
\ts_mov_b32 s0, 0
.LBB0_1:
\tglobal_load_dwordx4 v[0:3], v[4:5], off
\tv_mfma_f32_32x32x8_f16 a[0:15], v[0:1], v[2:3], a[0:15]
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
"""


def test_the_innermost_matrix_loop_without_its_padding() -> None:
    assert matrix_loop_instructions(SASS) == 3


def test_a_loop_that_the_compiler_unrolled_in_part_is_divided_by_its_steps() -> None:
    """Two products of 64x128x16 a step, and four steps in the loop."""
    step = (
        "        /*0020*/                   LDGSTS.E.128 [R4], desc[UR4][R6.64] ;\n"
        + 2 * "        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24 ;\n"
    )
    loop = ".L_x_1:\n" + 4 * step + "        /*0050*/              @!P0 BRA `(.L_x_1) ;\n"
    assert matrix_loop_instructions(loop) == 13
    assert matrix_loop_instructions(loop, products=2) == 3
    assert matrix_loop_instructions(loop, products=8) == 13
    exact = loop.replace("HGMMA.64x128x16.F32", "FFMA")
    assert matrix_loop_instructions(exact) == 13
    assert matrix_loop_instructions(exact, products=2) == 3


def test_amd() -> None:
    assert amd_loop_instructions(AMD) == 3


def test_no_loop() -> None:
    assert matrix_loop_instructions("") == 0
    assert amd_loop_instructions("\ts_endpgm\n") == 0
