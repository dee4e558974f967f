"""Tests of ``warm_up``: afterwards a model's call compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tconv
from tconv.aot import warm_up as module
from tconv.launch import planning, recorded, target_for
from tconv.target import TARGETS
from tconv_workers import Failure

ROOT = Path(__file__).parents[3]
HOPPER = TARGETS["sm_90"]
SIZE = (2, 8, 16, 16)


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TCONV_EMULATE": "sm_90"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache") / "triton")
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.tconv.aot.warmed"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def test_a_call_after_a_warm_up_compiles_nothing(warmed: dict[str, Any]) -> None:
    assert warmed["first"]["compiled"] == len(warmed["hits"]) >= 5
    assert warmed["first"]["there"] == 0
    assert not warmed["first"]["failed"]
    assert all(warmed["hits"])
    assert warmed["gradients"]


def test_carried_kernels_are_found_in_another_cache(warmed: dict[str, Any]) -> None:
    assert warmed["saved"] == warmed["first"]["compiled"]
    assert warmed["loaded"] == {"installed": warmed["saved"], "there": 0}
    assert warmed["again"]["compiled"] == 0
    assert warmed["again"]["there"] == warmed["first"]["compiled"]


# ---- what is planned, without compiling -----------------------------------------------------


class Net(nn.Module):
    """A network with every kind of layer, and a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.down = tconv.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.pool = tconv.MaxPool2d(2)
        self.up = tconv.ConvTranspose2d(16, 8, 2, 2)
        self.mean = tconv.AvgPool2d(2)
        self.scale = torch.full((8, 1, 1), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean(self.up(self.pool(self.norm(self.down(x)).relu()))) * self.scale


def planned(model: nn.Module, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[str]:
    """Kernels that a warm-up would compile for sm_90."""
    found: list[str] = []

    def note(launches: Any, target: Any, *_: Any) -> tconv.WarmUp:
        assert target == HOPPER
        found.extend(launch.kernel for launch in launches)
        return tconv.WarmUp(target)

    monkeypatch.setattr(module, "compile_all", note)
    tconv.warm_up(model, [SIZE], target="sm_90", **how)
    return found


def test_inference_needs_the_forward_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name.split(".")[1] for name in planned(Net().eval(), monkeypatch)}
    assert {"max_pool_fprop", "avg_pool_fprop"} < kinds
    assert any("dgrad" in kind for kind in kinds)  # of the transposed layer
    assert not any("wgrad" in kind or "pool_dgrad" in kind for kind in kinds)


def test_training_needs_those_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = {name.split(".")[1] for name in planned(model, monkeypatch)}
    assert {"max_pool_dgrad", "avg_pool_dgrad"} < kinds
    assert any("wgrad" in kind for kind in kinds)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


def test_passes_and_dtypes_narrow_and_widen(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = planned(Net(), monkeypatch)
    assert len(planned(Net(), monkeypatch, passes=["wgrad"])) < len(everything)
    dtypes = [torch.float16, torch.bfloat16]
    assert len(planned(Net(), monkeypatch, dtypes=dtypes)) > len(everything)
    with torch.autocast("cpu", torch.bfloat16):
        assert planned(Net(), monkeypatch) != everything


def test_planning_leaves_this_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    planned(Net(), monkeypatch)
    cpu = torch.device("cpu")
    model, x = Net().eval(), torch.randn(SIZE)
    with recorded() as launches, torch.no_grad():
        model(x)
    assert launches
    plans: list[Any] = []
    with planning(HOPPER, plans):
        assert target_for(cpu) == HOPPER
        launches[0].run({"x": x})
    assert target_for(cpu) != HOPPER
    assert plans == [(launches[0],)]


# ---- results and errors ---------------------------------------------------------------------


@pytest.mark.interpreter
def test_the_interpreter_has_nothing_to_compile() -> None:
    found = tconv.warm_up(tconv.Conv2d(4, 8, 3), [(1, 4, 8, 8)])
    assert found.target is None
    assert str(found).startswith("nothing to compile: Triton's interpreter")


def test_a_kernel_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, tasks: list[Any], seconds: float) -> Any:
            return [(task, Failure("crash", "the worker process ended"), 0.0) for task in tasks]

    monkeypatch.setattr(module, "Workers", Pool)
    found = tconv.warm_up(tconv.Conv2d(8, 8, 3).eval(), [SIZE], target="sm_90", progress=False)
    assert not found.compiled
    assert found.failed
    assert "failed\n  " in str(found)
    assert "crash: the worker process ended" in str(found)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"sizes": []}, ValueError, "sizes is empty"),
        ({"sizes": [224]}, ValueError, "not 224"),
        ({"sizes": [(1, 8, 0, 16)]}, ValueError, r"\(1, 8, 0, 16\) is not an input shape"),
        ({"target": "sm_91"}, ValueError, "unknown target 'sm_91'; there are: sm_80"),
        ({"passes": ["backward"]}, ValueError, "unknown pass 'backward'"),
        ({"dtypes": [torch.int8]}, ValueError, "torch.int8 has no kernels"),
        ({"model": torch.zeros(1)}, TypeError, "not Tensor"),
        ({"model": torch.compile(nn.ReLU(), backend="eager")}, TypeError, "OptimizedModule"),
        ({"workers": 0}, ValueError, "workers is 0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_errors_name_the_value(how: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"model": tconv.Conv2d(8, 8, 3), "sizes": [SIZE]}
    with pytest.raises(error, match=words):
        tconv.warm_up(**arguments | {"target": "sm_90"} | how)
