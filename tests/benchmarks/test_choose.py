"""The benchmark of choosing chooses for every layer and pass, and prints figures only."""

from __future__ import annotations

import json

import pytest

from benchmarks import choose


def test_it_prints_one_object_of_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "import_milliseconds", lambda: 1.0)
    asked = []
    chosen = choose.choose
    monkeypatch.setattr(choose, "choose", lambda *each: asked.append(each) or chosen(*each))
    monkeypatch.setattr(choose, "layers", lambda scale=1.0: _layers(scale)[:2])
    choose.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["layers"] == 2
    assert len(asked) == len(set(asked)) == 2 * 3 * 2  # layers, passes, sizes
    assert all(value > 0 for value in found.values())


_layers = choose.layers
