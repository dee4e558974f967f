"""Tests of the GPU run that need no GPU: order of parts, stored state, time limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve

from autotune.deadline import Deadline
from autotune.evaluate import DeviceLostError
from reports.bench.run import Run, rehearsal
from reports.gpu_run import steps
from reports.gpu_run.__main__ import supervise
from reports.gpu_run.outcomes import VARIABLE
from reports.gpu_run.small import LAYERS, POOLS, problems
from reports.gpu_run.state import Part, State
from reports.gpu_run.steps import (
    CannotError,
    Context,
    ExitError,
    LeftError,
    Task,
    UnfinishedError,
    perform,
    tasks,
)
from reports.tables import Tables, write_tables
from tconv.families import FAMILIES
from tconv.source import source_hash
from tconv.target import TARGETS
from tests.reports.conftest import measured
from tests.tconv_workers.test_workers import gone, until


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("TCONV_HOME", str(tmp_path))
    state = State(tmp_path / "run.json", "code")
    return Context(tmp_path, state, Deadline(100.0), torch.device("cpu"), rehearsal(),
                   rehearse=True, tell=lambda line: None)  # fmt: skip


def test_a_part_runs_once_and_its_note_is_kept(context: Context) -> None:
    made = []
    task = Task("tests", "one", lambda _: made.append(1) or "all passed")
    perform(task, context)
    perform(task, context)
    assert made == [1]
    again = State.read(context.state.path, "code")
    assert again.parts["tests"]["one"].outcome == "done"
    assert again.parts["tests"]["one"].note == "all passed"
    assert State.read(context.state.path, "other kernels").parts == {}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(RuntimeError("wrong result"), "failed"), (CannotError("no ncu"), "cannot"),
     (LeftError(), None), (UnfinishedError("it took too long"), "unfinished")],
    ids=["failed", "cannot", "left", "unfinished"],
)  # fmt: skip
def test_how_a_part_ends(context: Context, error: Exception, outcome: str | None) -> None:
    def run(_: Context) -> str:
        raise error

    perform(Task("bench", "one", run), context)
    if outcome is None:  # the next run repeats it
        assert context.left == ["bench: one"]
        assert not context.state.known("bench", "one")
    else:
        part = context.state.parts["bench"]["one"]
        assert part.outcome == outcome
        assert str(error) in part.note


def test_no_part_starts_without_time_to_finish(context: Context) -> None:
    late = replace(context, deadline=Deadline(3.0), left=[])
    perform(Task("tune", "long", lambda _: pytest.fail("it was begun"), least=10.0), late)
    assert late.left == ["tune: long"]


def test_a_part_that_ran_out_of_time_is_retried_a_few_times(context: Context) -> None:
    tried = []

    def slow(_: Context) -> str:
        tried.append(1)
        raise UnfinishedError("it took more than 240 s")

    for _ in range(5):
        again = replace(context, state=State.read(context.state.path, "code"))
        perform(Task("sanitizer", "memcheck 1/4", slow), again)
    assert len(tried) == 3
    ((label, part),) = State.read(context.state.path, "code").troubles()
    assert (label, part.outcome, part.over) == ("sanitizer memcheck 1/4", "unfinished", True)


def test_a_lost_gpu_ends_the_process_and_does_not_fail_the_part(context: Context) -> None:
    def lose(_: Context) -> str:
        assert State.read(context.state.path, "code").at_work == ("bench", "vgg16")
        raise DeviceLostError("the GPU context was lost")

    with pytest.raises(DeviceLostError):
        perform(Task("bench", "vgg16", lose), context)
    state = State.read(context.state.path, "code")
    assert state.at_work is None
    assert not state.known("bench", "vgg16")


def test_a_command_that_fails_or_hangs_is_reported_with_its_last_lines(context: Context) -> None:
    fail = [sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"]
    with pytest.raises(RuntimeError, match="exit code 3:\nlast words"):
        context.spawn(fail, 30.0, "logs/a.txt")
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(UnfinishedError, match=r"more than 0\.2 s; see logs/b\.txt"):
        context.spawn(hang, 0.2, "logs/b.txt")
    with pytest.raises(LeftError):
        replace(context, deadline=Deadline(0.2)).spawn(hang, 30.0, "logs/c.txt")


def test_children_of_a_stopped_command_end_with_it(context: Context) -> None:
    """A tool may leave its target running, and pytest its workers."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with pytest.raises(UnfinishedError):
        context.spawn([sys.executable, "-c", code], 3.0, "logs/d.txt")
    pid = int((context.out / "logs/d.txt").read_text())
    assert until(lambda: gone(pid), 30)


REFUSES = """#!/bin/sh
case "$*" in *small*) echo "kernels ran: $PYTORCH_NO_CUDA_MEMORY_CACHING"; exit {small};; esac
echo "{words}"; exit {probe}
"""


@pytest.mark.parametrize(
    ("probe", "small", "outcome", "words"),
    [(1, 0, "cannot", "Device not supported"), (0, 0, "done", "kernels ran: 1"),
     (0, 9, "failed", "exit code 9")],
    ids=["refused", "clean", "fault"],
)  # fmt: skip
def test_a_tool_that_refuses_the_device_is_not_a_failure(
    probe: int, small: int, outcome: str, words: str,
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(REFUSES.format(probe=probe, small=small, words="Device not supported"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    run = partial(steps._sanitize, tool="memcheck", share="1/4")
    perform(Task("sanitizer", "memcheck 1/4", run), replace(context, rehearse=False))
    part = context.state.parts["sanitizer"]["memcheck 1/4"]
    assert part.outcome == outcome
    assert words in part.note


SUITE = """
import os, time
from pathlib import Path
import pytest

SEEN = Path(os.environ["SEEN"])

def note(word):
    with SEEN.open("a") as file:
        file.write(word + " ")

def test_passes():
    note("passes")

def test_fails():
    note("fails")
    assert False

def test_hangs():
    note("hangs")
    time.sleep(600)

def test_follows():
    note("follows")
"""


def test_tests_resume_after_the_time_limit_without_one_that_hangs(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = tmp_path / "test_suite.py"
    suite.write_text(SUITE)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setattr(steps, "_processes", lambda _: ["--rootdir", str(tmp_path)])
    outcomes = steps.tests_of(context.out, context.state) / "test_suite.txt"
    outcomes.parent.mkdir(parents=True)

    def spawn(self: Context, command: list[str], *_: object) -> str:
        """Run until the test hangs, however slow the machine is."""
        before = (tmp_path / "seen").read_text() if (tmp_path / "seen").exists() else ""
        process = subprocess.Popen(command, env={**os.environ, VARIABLE: str(outcomes)},
                                   stdout=subprocess.PIPE, start_new_session=True)  # fmt: skip

        def over() -> bool:
            seen = (tmp_path / "seen").read_text() if (tmp_path / "seen").exists() else ""
            return process.poll() is not None or "hangs" in seen[len(before) :]

        assert until(over, 120)
        code = process.poll()
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if code is None:
            raise UnfinishedError("it took too long")
        if code:
            raise ExitError(code, "")
        return ""

    monkeypatch.setattr(Context, "spawn", spawn)
    task = Task("tests", "suite", partial(steps._tests, arguments=(str(suite),)))
    for _ in range(2):
        perform(task, context)
        assert not context.state.known("tests", "suite")
    perform(task, context)
    assert (tmp_path / "seen").read_text().split() == [
        "passes", "fails", "hangs", "hangs", "follows"
    ]  # fmt: skip
    part = context.state.parts["tests"]["suite"]
    assert part.outcome == "failed"
    assert "2 of 4 tests failed" in part.note
    assert "test_suite.py::test_fails" in part.note
    assert "test_suite.py::test_hangs hangs" in part.note


CHILD = """
import os, sys
from pathlib import Path
from reports.gpu_run.state import State

out, code = Path(sys.argv[1]), sys.argv[2]
state = State.read(out / "run.json", code)
starts = out / "starts"
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
if count == 0:
    state.begin("bench", "crashes")
    os.abort()
if count == 1:
    assert state.known("bench", "crashes")
    state.begin("bench", "loses the GPU")
    os._exit(70)
assert not state.known("bench", "loses the GPU")
"""


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    commands = []

    def command(left: float, first: bool) -> list[str]:
        commands.append(first)
        return [sys.executable, str(tmp_path / "child.py"), str(tmp_path), source_hash()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.getcwd())
        assert supervise(command, tmp_path, 600.0) == 0
    assert commands == [True, False, False]
    state = State.read(tmp_path / "run.json", source_hash())
    ((label, part),) = state.troubles()
    assert (label, part.outcome) == ("bench crashes", "failed")
    assert "exit code -6" in part.note


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.gpu_run.__main__.GRACE", 0.0)
    State(tmp_path / "run.json", source_hash()).begin("tune", "vgg16 float16")
    hang = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert supervise(lambda *_: hang, tmp_path, 0.2) == 1
    ((label, part),) = State.read(tmp_path / "run.json", source_hash()).troubles()
    assert (label, part.outcome, part.over) == ("tune vgg16 float16", "unfinished", False)


# Packages that the machine with the GPU lacks.
ABSENT = ("nox", "platformdirs", "dask", "distributed", "optuna", "pydantic", "keras", "expecttest",
          "kernel_tuner", "xdist", "twine")  # fmt: skip
IMPORTS = """
import sys
absent = {absent!r}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ImportError(name + " is not on this machine")

sys.meta_path.insert(0, Blocked())
sys.argv = ["reports.gpu_run", "--help"]
import pkgutil, reports.gpu_run, reports.bench, autotune, tconv, importlib
for package in (reports.gpu_run, reports.bench):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
import reports.gpu_run.__main__ as command
command.run.__code__  # its imports are made in it
from autotune.trial_store import Store
from autotune.tune import tune
from reports.gpu_run.steps import tasks
from reports.gpu_run.take_home import take_home
from tconv.winners import home
assert list(tasks(False)) and home()
with Store() as store:
    list(store.trials("nvidia-h200", "measured"))
print("imported")
"""


def test_no_import_is_missing_on_the_gpu_machine(tmp_path: Path) -> None:
    code = IMPORTS.format(absent=ABSENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "TCONV_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("imported")


def test_a_damaged_state_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text in ("{", "[]", json.dumps({"code": "a", "parts": {"tests": {"one": {"x": 1}}}})):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not the state of a GPU run"):
            State.read(path, "a")
        assert path.read_text() == text


def test_correctness_comes_before_tuning_and_the_bench() -> None:
    found = [(task.step, task.name) for task in tasks(rehearse=False)]
    assert len(set(found)) == len(found)
    order = list(dict.fromkeys(step for step, _ in found))
    assert order == ["predictions", "tests", "sanitizer", "tune", "bench", "losses", "traces"]
    assert found.index(("tune", "vgg16 float16")) < found.index(("bench", "vgg16 float16"))
    for name in ("vgg16", "lenet5", "resnet50", "mobilenet_v2", "alexnet"):
        assert ("tune", f"{name} float16") in found
        assert ("bench", f"{name}, whole") in found
    assert {task.step for task in tasks(rehearse=True)} == set(order)


def test_the_costliest_losses_come_first(context: Context, tables: Tables) -> None:
    Run(rehearsal(), context.device)
    golden = measured(tables)
    about = replace(Run(rehearsal(), context.device).tables.about)
    slow = [evolve(row, tconv_ms=ms, cudnn_nhwc_ms=1.0)
            for row, ms in zip(golden.layers, (1.1, 0.9, 3.0, 2.0), strict=False)]  # fmt: skip
    write_tables(context.out / "bench" / "rehearsal", Tables(about, [*slow, *golden.layers[-2:]]))
    assert [row.tconv_ms for row in steps.worst_losses(context)] == [3.0, 2.0, 1.1]


def test_every_family_runs_on_a_small_layer() -> None:
    target = TARGETS["sm_90"]
    found = {choice.family for _, _, choice in problems(target)}
    assert found == set(FAMILIES)
    assert all(shape.x_elements < 20_000 for shape in (*LAYERS.values(), *POOLS.values()))


def test_a_part_keeps_only_its_last_lines(tmp_path: Path) -> None:
    state = State(tmp_path / "run.json", "code")
    state.keep("tests", "one", Part("failed", 1.0, "x" * 100_000 + "the end"))
    note = State.read(state.path, "code").parts["tests"]["one"].note
    assert len(note) < 5000
    assert note.endswith("the end")
