"""Tests that candidates, predictions, plans and stored keys are unchanged."""

from __future__ import annotations

import pytest

from tconv.target import TARGETS, Target
from tests.tconv.behaviour import FILE, groups, line

LINES = FILE.read_text(encoding="utf-8").splitlines()


def _cases() -> list[object]:
    """Return a few lines with every family and target; the others are marked thorough."""
    cases: list[object] = []
    for each in LINES:
        name, target_name, arithmetic = each.split()[:3]
        target = TARGETS[target_name]
        small = name == "odd" and arithmetic in ("float16", "tf32")
        broad = name in ("lenet5_1998", "depthwise", "grouped") and target.name == "sm_90"
        quick = small or (broad and arithmetic == "float16")
        marks = () if quick else pytest.mark.thorough
        cases.append(pytest.param(name, target, arithmetic, id=f"{name}-{target.name}-{arithmetic}",
                                  marks=marks))  # fmt: skip
    return cases


@pytest.mark.parametrize(("name", "target", "arithmetic"), _cases())
def test_decisions_are_unchanged(name: str, target: Target, arithmetic: str) -> None:
    (known,) = (each for each in LINES if each.startswith(f"{name} {target.name} {arithmetic} "))
    assert line(name, target, arithmetic) == known, (
        "after a deliberate change: python -m tests.tconv.behaviour --write"
    )


def test_the_digest_has_a_line_for_every_group() -> None:
    keys = [tuple(each.split()[:3]) for each in LINES]
    assert keys == [(name, target.name, arithmetic) for name, target, arithmetic in groups()]
