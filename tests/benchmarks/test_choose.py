"""Tests of the benchmark of choosing: every layer and pass is chosen for, JSON is printed."""

from __future__ import annotations

import json

import pytest

from benchmarks import choose


def test_it_prints_one_object_of_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "import_milliseconds", lambda *_: 1.0)
    chosen_for = []
    chosen = choose.choose
    monkeypatch.setattr(choose, "choose", lambda *each: chosen_for.append(each) or chosen(*each))
    monkeypatch.setattr(choose, "layers", lambda scale=1.0: _layers(scale)[:2])
    choose.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == 2
    assert len(chosen_for) == len(set(chosen_for)) == 2 * 3 * 2  # layers, passes, sizes
    assert all(value > 0 for value in found.values())


_layers = choose.layers
