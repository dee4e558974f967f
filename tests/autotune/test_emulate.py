"""Tests of checking compiled code on the emulated GPU before it may win."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve
from typer.testing import CliRunner

from autotune import emulate, gate
from autotune.cli import app
from autotune.emulate import Emulation
from autotune.evaluate import Bench, Setting, worker_gate
from autotune.gate import Verdict
from autotune.search import DEFAULT_EFFORT
from autotune.trial_store import Store
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tconv_workers import Task
from tests.autotune.test_trial_store import TRIAL

PROBLEM = Problem(ConvGeometry(2, 16, 8, 8, 16, 3, 3, pad_h=1, pad_w=1), "fprop")
CHOICE = Choice("implicit_gemm", Tile(32, 16, 16))
BROKEN = Choice("implicit_gemm", Tile(64, 64, 64, stages=18))  # more shared memory than there is
COUNTERS = {"results": 2048, "instructions": 640, "instructions_by_class": {"matrix": 64}}


@pytest.mark.parametrize(
    ("name", "checked", "seen"),
    [
        ("sm_80", "emulated", {"TRITON_INTERPRET": None, "TCONV_EMULATE": "sm_80"}),
        ("sm_90", "emulated", {"TRITON_INTERPRET": None, "TCONV_EMULATE": "sm_90"}),
        ("sm_100", "interpreted", {"TRITON_INTERPRET": "1", "TCONV_EMULATE": None}),
        ("gfx942", "interpreted", {"TRITON_INTERPRET": "1", "TCONV_EMULATE": None}),
    ],
)
def test_each_target_is_checked_by_its_best_method(
    name: str, checked: str, seen: dict[str, str | None]
) -> None:
    assert gate.checked_by(TARGETS[name]) == checked
    assert gate.environment(TARGETS[name]) == seen

    class Asked:
        def run(self, tasks: list[Task], seconds: float) -> list[tuple[Task, Verdict, float]]:
            own = emulate.check if checked == "emulated" else gate.check
            assert [task.function for task in tasks] == [own]
            return [(tasks[0], Verdict(True, 0.0), 0.0)]

    ask = worker_gate(Asked(), DEFAULT_EFFORT, TARGETS[name], "predicted")  # type: ignore[arg-type]
    assert ask(PROBLEM, CHOICE) == Verdict(True, 0.0)


@pytest.mark.parametrize(("target", "checks"), [("sm_90", 1), ("sm_100", 0)])
def test_trials_that_passed_in_the_interpreter_are_checked_again_when_compiled(
    target: str, checks: int
) -> None:
    calls = []

    def check(problem: Problem, choice: Choice) -> Verdict:
        calls.append(choice)
        return Verdict(True, 2e-4, "", "emulated", COUNTERS)

    setting = Setting(TARGETS[target], "predicted", "", "", DEFAULT_EFFORT)
    earlier = evolve(TRIAL, target=target, error_fp64=1e-4, checked="interpreted")
    with Store() as store:
        bench = Bench(setting, store, None, check)  # type: ignore[arg-type]
        found = bench.gated(earlier)
        assert len(calls) == checks
        assert bench.gated(found) == found
        assert len(calls) == checks
        if checks:
            assert (found.checked, found.error_fp64, found.counters) == (
                "emulated", 2e-4, COUNTERS
            )  # fmt: skip
            assert list(store.trials()) == [found]


def test_the_command_runs_compiled_kernels(tmp_path: Path) -> None:
    """Two choices for one small layer, one of which cannot be launched."""
    path = tmp_path / "choices.json"
    entries = [
        Emulation(PROBLEM, choice, "", Verdict(True, 0.0)).as_dict() for choice in (CHOICE, BROKEN)
    ]
    path.write_text(json.dumps({"problems": entries}))
    done = CliRunner().invoke(app, ["emulate", "--choices", str(path), "--json", "--resources"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["target"] == "sm_90"
    right, wrong = found["problems"]
    assert (right["problem"], right["family"], right["tile"]) == (
        PROBLEM.key, "implicit_gemm", str(CHOICE.tile)
    )  # fmt: skip
    assert right["passed"]
    assert 0 < right["error"] < 1e-2
    assert right["faults"] == []
    assert right["counters"]["results"] == PROBLEM.results
    assert right["counters"]["instructions_by_class"]["matrix"] > 0
    assert right["resources"]["registers"] > 0
    assert not wrong["passed"]
    assert "shared memory" in wrong["detail"]
    assert "1 of 2 problems failed on the emulated sm_90" in done.stderr


@pytest.mark.parametrize("text", ["[]", "{}", '{"problems": [{"problem": "x"}]}', "no JSON"])
def test_a_bad_file_of_choices_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text(text)
    done = CliRunner().invoke(app, ["emulate", "--choices", str(path)])
    assert done.exit_code == 2
    assert "is not what emulate --json prints" in done.stderr


@pytest.mark.parametrize("target", ["gfx942", "sm_100", "h100"])
def test_a_target_without_emulation_is_refused(target: str) -> None:
    done = CliRunner().invoke(app, ["emulate", "--target", target])
    assert done.exit_code == 2
    assert "there are: sm_80, sm_90" in done.stderr
