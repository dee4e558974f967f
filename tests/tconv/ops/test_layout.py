"""Tests of the memory format that torch assigns to a tensor."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._prims_common import suggest_memory_format

from tconv.ops.layout import prefers_channels_last

size = st.integers(0, 3)


@given(size, size, size, size, st.permutations(range(4)), st.tuples(*[st.booleans()] * 4))
@settings(max_examples=300, deadline=None)
def test_format_is_torchs(
    a: int, b: int, c: int, d: int, order: list[int], expand: tuple[bool, ...]
) -> None:
    base = torch.zeros([1 if narrow else n for n, narrow in zip((a, b, c, d), expand, strict=True)])
    x = base.expand(a, b, c, d).permute(order)
    assert prefers_channels_last(x) == (suggest_memory_format(x) == torch.channels_last)
