"""Tests of tensor maps that a kernel makes itself, and of leaving out each step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tconv.emulator import Fault, NotCovered
from tconv.emulator.made_maps import LAYOUT, place_of
from tests.tconv.emulator.ptx_of import run

ROWS, COLUMNS = 6, 40  # of the tensor; a box of 4 x 8 floats is copied from row 1, column 36
REPLACE = "@%p1 tensormap.replace.tile.{}.shared::cta.b1024.{} [%d1], {};"
FIELDS = [
    ("global_address", "b64", "%a0"), ("rank", "b32", "1"),
    ("box_dim", "b32", "0, 8"), ("box_dim", "b32", "1, 4"),
    ("global_dim", "b32", f"0, {COLUMNS}"), ("global_dim", "b32", f"1, {ROWS}"),
    ("global_stride", "b64", f"0, {4 * COLUMNS}"),
    ("element_stride", "b32", "0, 1"), ("element_stride", "b32", "1, 1"),
    ("elemtype", "b32", "7"), ("interleave_layout", "b32", "0"),
    ("swizzle_mode", "b32", "0"), ("fill_mode", "b32", "0"),
]  # fmt: skip
PUBLISH = (
    "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
    "[%a1], [%d1], 0x80;"
)
ACQUIRE = "fence.proxy.tensormap::generic.acquire.gpu [%a1], 0x80;"
BODY = "\n".join([
    "mov.b32 %r1, global_smem;",
    "cvt.u64.u32 %d1, %r1;",
    "setp.eq.b32 %p1, %t, 0;",
    "shl.b32 %r2, %t, 2;",
    "add.s32 %r3, %r1, %r2;",
    "mov.b32 %r4, 0;",
    "st.shared.b32 [%r3], %r4;",
    "bar.warp.sync -1;",
    *(REPLACE.format(*field) for field in FIELDS),
    PUBLISH,
    ACQUIRE,
    "add.s32 %r5, %r1, 128;",
    "add.s32 %r6, %r1, 256;",
    "@%p1 mbarrier.init.shared::cta.b64 [%r6], 1;",
    "fence.proxy.async.shared::cta;",
    "bar.sync 0;",
    "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 128;",
    "mov.b32 %r7, 36;",
    "mov.b32 %r8, 1;",
    "@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes "
    "[%r5], [%a1, {%r7, %r8}], [%r6];",
    "{",
    ".reg .pred complete;",
    "waitLoop:",
    "mbarrier.try_wait.parity.shared::cta.b64 complete, [%r6], %r4;",
    "@!complete bra.uni waitLoop;",
    "}",
    "add.s32 %r9, %r5, %r2;",
    "ld.shared.b32 %r10, [%r9];",
    "cvt.u64.u32 %d2, %r2;",
    "add.s64 %d3, %a2, %d2;",
    "st.global.b32 [%d3], %r10;",
])  # fmt: skip
X = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


def box(body: str, space: int = 128) -> np.ndarray:
    """Return the box that a kernel with this body copies; its map lies in ``space`` bytes."""
    arrays = [X, np.zeros(space, np.uint8), np.zeros(32, np.float32)]
    return run(body, arrays, shared_bytes=512)[2].reshape(4, 8)


def test_a_box_through_a_map_that_the_kernel_made() -> None:
    wanted = np.zeros((4, 8), np.float32)
    wanted[:, :4] = X[1:5, 36:]  # zeros beyond the tensor's end
    assert np.array_equal(box(BODY), wanted)


def test_fields_do_not_overlap() -> None:
    assert LAYOUT.itemsize == 128
    places = {name: (offset, kind.itemsize) for name, (kind, offset) in LAYOUT.fields.items()}
    taken = sorted(places.values())
    assert all(at + size <= after for (at, size), (after, _) in pairwise(taken))
    with pytest.raises(KeyError):
        place_of("box_dim", 5)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (ACQUIRE, "", "missing fence"),
        (PUBLISH, "", "tensor map"),
        ("st.shared.b32 [%r3], %r4;", "", "uninitialised read"),
        (PUBLISH, f"@%p1 {PUBLISH}", "barrier misuse"),
        ("0, 160;", "0, 168;", "tensor map"),
        ("0, 160;", "0, 162;", "tensor map"),
        ("b32 [%d1], 1, 4;", "b32 [%d1], 1, 300;", "tensor map"),
        ("b32 [%d1], 1;", "b32 [%d1], 6;", "tensor map"),
        ("[%a1, {%r7, %r8}]", "[%a2, {%r7, %r8}]", "tensor map"),
    ],
    ids=["no fence", "not published", "not cleared", "by one thread", "stride of 168",
         "stride of 162", "box of 300", "rank of 7", "no map there"],
)  # fmt: skip
def test_a_missing_step_is_reported(old: str, new: str, kind: str) -> None:
    assert old in BODY
    with pytest.raises(Fault) as caught:
        box(BODY.replace(old, new))
    assert caught.value.kind == kind


def test_a_map_beyond_its_memory_is_refused() -> None:
    with pytest.raises(Fault, match="out of bounds"):
        box(BODY, space=64)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("elemtype", "13", "elements below a byte"), ("interleave_layout", "1", "interleaved"),
     ("element_stride", "0, 2", "element strides")],
)  # fmt: skip
def test_unsupported_values_are_named(field: str, value: str, words: str) -> None:
    extra = REPLACE.format(field, "b32", value)
    with pytest.raises(NotCovered, match=words):
        box(BODY.replace(PUBLISH, f"{extra}\n{PUBLISH}"))


def test_another_field_is_refused_by_name() -> None:
    with pytest.raises(NotCovered, match=r"tensormap\.replace\.tile\.colour"):
        box(BODY.replace(PUBLISH, REPLACE.format("colour", "b32", "1") + PUBLISH))
