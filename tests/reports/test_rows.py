"""Tests of the values that a row takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attrs import evolve

from reports.tables import Tables


@pytest.mark.parametrize(
    "change", [{"tflops": math.nan}, {"kind": "guessed"}, {"batch": -1}, {"layer": ""}]
)
def test_a_row_that_could_not_be_read_back_is_refused(tables: Tables, change: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        evolve(tables.layers[0], **change)
