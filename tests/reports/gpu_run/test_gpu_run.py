"""The run on a GPU, as far as a CPU can tell: its order, its memory, its end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autotune.deadline import Deadline
from reports.bench.run import REHEARSAL, Run
from reports.gpu_run import steps
from reports.gpu_run.small import LAYERS, POOLS, problems
from reports.gpu_run.state import Part, State
from reports.gpu_run.steps import CannotError, Context, LeftError, Task, perform, tasks
from reports.tables import Tables, write_tables
from tconv.families import FAMILIES
from tconv.target import TARGETS
from tests.reports.conftest import measured


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("TCONV_HOME", str(tmp_path))
    state = State(tmp_path / "run.json", "code")
    return Context(tmp_path, state, Deadline(100.0), torch.device("cpu"), REHEARSAL,
                   rehearse=True, tell=lambda line: None)  # fmt: skip


def test_a_part_is_done_once_and_what_it_said_is_kept(context: Context) -> None:
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
     (LeftError(), None)],
    ids=["failed", "cannot", "left"],
)  # fmt: skip
def test_how_a_part_ends(context: Context, error: Exception, outcome: str | None) -> None:
    def run(_: Context) -> str:
        raise error

    perform(Task("bench", "one", run), context)
    if outcome is None:  # the next run takes it up
        assert context.left == ["bench: one"]
        assert not context.state.known("bench", "one")
    else:
        part = context.state.parts["bench"]["one"]
        assert part.outcome == outcome
        assert str(error) in part.note


def test_no_part_begins_that_could_not_end(context: Context) -> None:
    late = replace(context, deadline=Deadline(3.0), left=[])
    perform(Task("tune", "long", lambda _: pytest.fail("it was begun"), least=10.0), late)
    assert late.left == ["tune: long"]


def test_a_command_that_fails_or_hangs_is_told_with_its_last_words(context: Context) -> None:
    fail = [sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"]
    with pytest.raises(RuntimeError, match="exit code 3:\nlast words"):
        context.spawn(fail, 30.0, "logs/a.txt")
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RuntimeError, match=r"more than 0\.2 s; see logs/b\.txt"):
        context.spawn(hang, 0.2, "logs/b.txt")
    with pytest.raises(LeftError):
        replace(context, deadline=Deadline(0.2)).spawn(hang, 30.0, "logs/c.txt")


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text in ("{", "[]", json.dumps({"code": "a", "parts": {"tests": {"one": {"x": 1}}}})):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no state of a GPU run"):
            State.read(path, "a")
        assert path.read_text() == text


def test_first_correctness_then_tuning_then_the_bench() -> None:
    found = [(task.step, task.name) for task in tasks(rehearse=False)]
    assert len(set(found)) == len(found)
    order = list(dict.fromkeys(step for step, _ in found))
    assert order == ["tests", "sanitizer", "tune", "bench", "losses", "traces"]
    assert found.index(("tune", "vgg16 float16")) < found.index(("bench", "vgg16 float16"))
    for name in ("vgg16", "lenet5", "resnet50", "mobilenet_v2", "alexnet"):
        assert ("tune", f"{name} float16") in found
        assert ("bench", f"{name}, whole") in found
    assert {task.step for task in tasks(rehearse=True)} == set(order)


def test_the_costliest_losses_come_first(context: Context, tables: Tables) -> None:
    Run(REHEARSAL, context.device)
    golden = measured(tables)
    about = replace(Run(REHEARSAL, context.device).tables.about)
    slow = [replace(row, tconv_ms=ms, cudnn_nhwc_ms=1.0)
            for row, ms in zip(golden.layers, (1.1, 0.9, 3.0, 2.0), strict=False)]  # fmt: skip
    write_tables(context.out / "bench" / "rehearsal", Tables(about, [*slow, *golden.layers[-2:]]))
    assert [row.tconv_ms for row in steps.worst_losses(context)] == [3.0, 2.0, 1.1]


def test_every_family_runs_on_a_small_layer() -> None:
    target = TARGETS["sm_90"]
    found = {choice.family for _, _, choice in problems(target)}
    assert found == set(FAMILIES)
    assert all(shape.x_elements < 20_000 for shape in (*LAYERS.values(), *POOLS.values()))


def test_a_part_keeps_no_more_than_its_last_words(tmp_path: Path) -> None:
    state = State(tmp_path / "run.json", "code")
    state.keep("tests", "one", Part("failed", 1.0, "x" * 100_000 + "the end"))
    note = State.read(state.path, "code").parts["tests"]["one"].note
    assert len(note) < 5000
    assert note.endswith("the end")
