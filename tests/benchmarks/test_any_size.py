"""The benchmark of image sizes counts kernels by what Triton compiles, and loses what it says."""

from __future__ import annotations

import pytest

from benchmarks import any_size


def test_sizes_are_the_same_each_time_and_within_bounds() -> None:
    met = any_size.sizes()
    assert met == any_size.sizes()
    assert len(set(met)) == any_size.SIZES
    assert any_size.SMALLEST <= min(met) <= max(met) <= any_size.LARGEST


def test_later_sizes_compile_less(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = any_size.layers_at
    monkeypatch.setattr(any_size, "layers_at", lambda size: layers(size)[3:6])
    found = any_size.measure([320, 330, 310, 320])
    assert sum(found["kernels_by_size"]) == found["kernels"]  # type: ignore[call-overload]
    first, *_, last = found["kernels_by_size"]  # type: ignore[misc]
    assert first >= 3
    assert last == 0
    assert 0 <= found["loss_geomean"] <= found["loss_worst"] < 0.3  # type: ignore[operator]
