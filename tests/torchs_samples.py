"""Torch's own samples and error inputs of its operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.testing._internal import common_utils
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo import core

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import ErrorInput, OpInfo, SampleInput


@contextmanager
def _unnamed() -> Iterator[None]:
    """Spare torch the search of the stack, at each sample, for a unittest that asked for it."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (common_utils, core):
            patch.setattr(module, "extract_test_fn", lambda: None)  # what it finds under pytest
        yield


def opinfo(name: str) -> OpInfo:
    """Return torch's entry of ``torch.nn.functional.NAME``, without a variant."""
    (found,) = (
        info
        for info in op_db
        if info.name == f"nn.functional.{name}" and not info.variant_test_name
    )
    return found


def samples(
    name: str, dtype: torch.dtype, device: torch.device | str, **how: Any
) -> list[SampleInput]:
    """Return torch's samples, always the same; torch's generator is seeded as a side effect."""
    with _unnamed():
        return list(opinfo(name).sample_inputs(device, dtype, **how))


def errors(name: str, device: torch.device | str = "cpu") -> list[ErrorInput]:
    """Return torch's wrong inputs, with the errors that they raise."""
    with _unnamed():
        return list(opinfo(name).error_inputs(device))
