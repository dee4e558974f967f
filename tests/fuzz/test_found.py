"""What fuzzing found stays found; and the fuzzer finds what is wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fuzz import __main__ as fuzzer
from tests.fuzz import families, models, operators
from tests.fuzz.found import CALLS
from tests.fuzz.models import Edited
from tests.fuzz.operators import VIEWS, Call, check, made

ROOT = Path(__file__).parents[2]
CALL = Call(
    operator="conv2d", batch=2, channels=3, filters=4, groups=1, size=(6, 7), window=(3, 3),
    stride=(1, 1), padding=(1, 1), dilation=(1, 1), dtype="float32",
    views=("contiguous", "contiguous"), special="none", bias=True, ceil_mode=False, frozen=False,
    seed=0,
)  # fmt: skip


def clock() -> Callable[[], float]:
    """A clock that moves on by a second each time that it is read."""
    return partial(next, itertools.count(0.0))


@pytest.mark.parametrize("name", CALLS)
def test_what_was_found(name: str) -> None:
    check(CALLS[name])


@pytest.mark.parametrize("operator", sorted(set(operators.OPERATORS)))
def test_a_plain_call_of_each_operator_is_computed(operator: str) -> None:
    assert check(replace(CALL, operator=operator))


def test_a_tangent_is_computed_and_a_lost_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    call = replace(CALL, tangent=True)
    assert check(call)
    right = operators.functional.conv2d

    def lost(x: torch.Tensor, w: torch.Tensor, *form: Any) -> Any:
        return right(x.detach(), w.detach(), *form)

    monkeypatch.setattr(operators.functional, "conv2d", lambda x, w, b, *form, **_: lost(x, w))
    with pytest.raises(AssertionError, match="the tangent is lost"):
        check(call)


@pytest.mark.parametrize("numbers", ["int", "numpy", "float"])
def test_numbers_of_other_types_are_taken_as_torch_takes_them(numbers: str) -> None:
    assert check(replace(CALL, numbers=numbers)) == (numbers != "float")


@pytest.mark.parametrize("compiled", [False, True])
def test_edits_after_conversion_are_followed(compiled: bool) -> None:
    assert models.check(Edited(compiled, ("set_eps", "replace_activation"), gradient=True))


def test_an_edit_that_is_not_followed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    edits = iter([lambda model: None, lambda model: setattr(model[1], "eps", 0.5)])
    monkeypatch.setitem(models.BY_NAME, "set_eps", lambda model: next(edits)(model))
    with pytest.raises(AssertionError, match="after set_eps"):
        models.check(Edited(False, ("set_eps",), gradient=False))


@pytest.mark.parametrize("view", VIEWS)
def test_views_hold_the_values_that_were_drawn(view: str) -> None:
    """Around them lies NaN: a kernel that reads beside its operand is seen."""
    tensors = [
        made((2, 3, 4, 5), replace(CALL, dtype="float64"), each, torch.Generator().manual_seed(1))
        for each in ("contiguous", view)
    ]
    if view == "expanded":  # all images are the first
        tensors[0] = tensors[0][:1].expand(2, 3, 4, 5)
        assert tensors[1].stride(0) == 0
    assert torch.equal(*tensors)
    assert not tensors[1].isnan().any()
    if view not in ("contiguous", "offset"):
        assert not tensors[1].is_contiguous()


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operators.functional.conv2d
    wrong = partial(right, activation="relu")
    monkeypatch.setattr(operators.functional, "conv2d", lambda *given, **_: wrong(*given))
    with pytest.raises(AssertionError, match=r"y\[.*\] is 0.0, torch's in fp64 -"):
        check(CALL)
    monkeypatch.setattr(operators.functional, "conv2d", lambda x, w, *_, **__: x.new_zeros(1))
    with pytest.raises(AssertionError, match="ours refuses"):  # without a gradient
        check(CALL)


def test_tangents_of_expanded_operands_are_compared() -> None:
    """torch's side is a dense float64 copy: ours must not be refused for its strides alone."""
    assert check(replace(CALL, views=("contiguous", "expanded"), tangent=True))


def test_what_fails_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: Call) -> bool:
        assert call.window[0] == 1, "a tall window"
        return True

    monkeypatch.setattr(operators, "check", refuse)
    monkeypatch.setattr(fuzzer, "monotonic", clock())
    found = fuzzer.fuzz("operators", seed=3, seconds=60)
    ((case, error),) = found.failed
    assert error == "AssertionError: a tall window\nassert 2 == 1"
    assert "window=(2, 1)" in case
    assert "batch=0" in case


def test_right_results_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "check", lambda work: work.family != "direct")
    monkeypatch.setattr(fuzzer, "monotonic", clock())
    found = fuzzer.fuzz("families", seed=1, seconds=2 * fuzzer.ROUND)
    assert not found.failed
    assert found.computed.total() + found.refused.total() >= fuzzer.ROUND
    assert {name.split()[0] for name in found.refused} == {"direct"}


def test_no_case_begins_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of models takes minutes, so the clock is read at each case."""
    monkeypatch.setattr(models, "check", lambda case: True)
    monkeypatch.setattr(fuzzer, "monotonic", clock())
    found = fuzzer.fuzz("models", seed=1, seconds=5)
    assert found.computed.total() == 3  # read to begin, for the round, and before each case


def test_the_command_runs_kernels_in_the_interpreter(tmp_path: Path) -> None:
    """It sets the interpreter before it imports the library, whose kernels are made at import."""
    code = (
        "import runpy, sys\n"
        "sys.argv = ['fuzz', '--help']\n"
        "try:\n"
        "    runpy.run_module('tests.fuzz', run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n"
        "    pass\n"
        "from tconv.launch import interpreting\n"
        "assert interpreting()\n"
    )
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("TRITON_INTERPRET", "TCONV_EMULATE")}  # fmt: skip
    environment |= {"PYTHONPATH": str(ROOT), "TCONV_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
