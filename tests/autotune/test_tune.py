"""Tests of a tuning run from problems to winners, with a fake compiler and gate.

``test_cli.py`` uses the real ones.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autotune import tune as tune_module
from autotune.compile import Compiled
from autotune.deadline import Deadline
from autotune.gate import Verdict
from autotune.measure import Timing
from autotune.search import DEFAULT_EFFORT
from autotune.suites import suite
from autotune.trial_store import Store, default_path
from autotune.tune import Outcome, jobs, tune
from reports.collect import latest
from tconv import select
from tconv.cost.estimate import Resources
from tconv.geometry import PASSES, Pass
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice
from tconv.winners import read_table, user_table
from tconv_workers import Failure, Task
from tests.autotune.test_trial_store import SPOILT

H200 = TARGETS["sm_90"]
EFFORT = replace(DEFAULT_EFFORT, candidates=2)
C5 = suite("lenet5", 8)[2:]


class Compilers:
    """Stand-in for worker processes; every candidate compiles to the same figures."""

    def __init__(self, count: int, environment: object, memory: int | None = None) -> None:
        pass

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Compiled, float]]:
        for task in tasks:
            yield task, Compiled(Resources(64, 0, 16384, 100)), 0.1

    def abandon(self) -> None:
        pass

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "Workers", Compilers)


def passing(problem: Problem, choice: Choice) -> Verdict:
    return Verdict(True, 1e-4)


def run(gate: object = passing, text: io.StringIO | None = None) -> Outcome:
    screen = Console(file=text or io.StringIO(), width=200)
    work = jobs(C5, ("fprop",), "float16")
    return tune(work, H200, "predicted", EFFORT, screen, gate=gate)  # type: ignore[arg-type]


def test_a_winner_takes_effect_and_a_second_run_compiles_nothing() -> None:
    select.forget()
    text = io.StringIO()
    first = run(text=text)
    assert (first.compiled, first.recalled) == (2, 0)
    (finding,) = first.findings
    assert finding.winner is not None
    assert [trial.turn for trial in finding.trials] == [0, 1]
    assert finding.winner.milliseconds == min(t.milliseconds or 9e9 for t in finding.trials)
    assert "predicted" in text.getvalue()
    assert "measured" not in text.getvalue()

    (winner,) = read_table(user_table("sm_90")).values()
    assert (winner.tile, winner.kind) == (finding.winner.tile, "predicted")
    select.forget()
    choice = select.choose(finding.job.problem, H200)
    assert (choice.tile, choice.ground) == (winner.tile, "predicted")

    def never(problem: Problem, choice: Choice) -> Verdict:
        raise AssertionError("a candidate that passed is not checked again")

    second = run(never)
    assert (second.compiled, second.recalled) == (0, 2)
    assert second.findings[0].winner == finding.winner
    select.forget()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Verdict(False, 0.7, "all wrong"), "wrong result"),
        (Failure("time limit", "stopped"), "gate: time limit"),
    ],
)
def test_candidates_that_fail_the_gate_cannot_win(answer: Verdict | Failure, status: str) -> None:
    outcome = run(lambda problem, choice: answer)
    assert outcome.findings[0].winner is None
    assert not user_table("sm_90").exists()
    with Store() as store:
        assert {trial.status for trial in store.trials()} == {status}
        assert {trial.milliseconds for trial in store.trials()} == {None}


def test_the_runner_up_wins_if_the_first_is_wrong() -> None:
    seen: list[Choice] = []

    def first_is_wrong(problem: Problem, choice: Choice) -> Verdict:
        seen.append(choice)
        return Verdict(len(seen) > 1, 0.5)

    outcome = run(first_is_wrong)
    winner = outcome.findings[0].winner
    assert winner is not None
    assert winner.tile == seen[1].tile != seen[0].tile


def test_an_interrupt_keeps_the_trials() -> None:
    def interrupted(problem: Problem, choice: Choice) -> Verdict:
        if problem.direction == "dgrad":
            raise KeyboardInterrupt
        return Verdict(True, 1e-4)

    work = jobs(C5, PASSES, "float16")
    screen = Console(file=io.StringIO())
    outcome = tune(work, H200, "predicted", EFFORT, screen, gate=interrupted)
    assert outcome.interrupted
    assert len(outcome.findings) == len(read_table(user_table("sm_90"))) == 1
    with Store() as store:
        assert len(list(store.trials())) == 4


def test_a_damaged_table_is_reported_and_left_unchanged() -> None:
    path = user_table("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    outcome = run()
    assert outcome.findings[0].winner is not None
    assert str(path) in outcome.trouble[0]
    assert path.read_text() == "{"


@dataclass
class Gpu:
    """A fake GPU clock that returns the given times in order."""

    times: list[float | Failure]
    again: list[float]
    references: list[float]

    def measure(self, problem: Problem, choice: Choice, best: float) -> Timing | Failure:
        time = self.times.pop(0)
        reference = self.references.pop(0) if self.references else 1.0
        return time if isinstance(time, Failure) else Timing(time, time, time, 10, reference)

    def contest(self, problem: Problem, choices: Sequence[Choice]) -> list[Timing]:
        return [Timing(time, time, time, 10, 1.0) for time in self.again[: len(choices)]]


def measured(gpu: Gpu, passes: Sequence[Pass] = ("fprop",), **more: object) -> Outcome:
    text = Console(file=io.StringIO(), width=200)
    target = replace(H200, name="nvidia-test")
    how: dict[str, Any] = {"gate": passing, "measure": gpu.measure, "contest": gpu.contest, **more}
    effort = replace(EFFORT, candidates=4)
    return tune(jobs(C5, passes, "float16"), target, "measured", effort, text, **how)


def test_finalists_are_measured_again_side_by_side() -> None:
    # Of three close times the luckiest led; the fourth is too slow to be a finalist.
    outcome = measured(Gpu([1.0, 1.02, 1.04, 9.0], [1.03, 1.01, 1.05], []))
    winner = outcome.findings[0].winner
    assert winner is not None
    assert (winner.tile, winner.milliseconds) == (outcome.findings[0].trials[1].tile, 1.01)
    with Store() as store:
        assert sorted(t.milliseconds or 0 for t in store.trials()) == [1.01, 1.03, 1.05, 9.0]
        assert sorted(t.searched or 0 for t in store.trials()) == [1.0, 1.02, 1.04, 9.0]


def test_finalists_are_not_compared_twice() -> None:
    gpu = Gpu([1.0, 1.02, 1.04, 9.0], [1.03, 1.01, 1.05], [])
    first = measured(gpu)
    gpu.again = []  # a second contest would run out of times
    second = measured(gpu)
    assert second.findings[0].winner == first.findings[0].winner
    assert second.findings[0].trials[0].searched == 1.0
    assert (second.compiled, second.recalled) == (0, 4)


def test_clock_drift_is_reported() -> None:
    assert measured(Gpu([1.0, 2.0, 3.0, 4.0], [], [1.0, 1.01, 1.3, 1.0])).drift == 1.3
    assert measured(Gpu([], [], [])).drift == 1.0  # all trials are known, so nothing is measured


def test_a_lost_gpu_ends_the_run_without_losing_trials() -> None:
    gone = Failure("crash", "the worker process ended")
    outcome = measured(Gpu([1.0, gone, gone, gone], [], []), PASSES)
    assert "no longer answers" in outcome.trouble[0]
    assert len(outcome.left) == 3
    with Store() as store:
        assert sorted(t.status for t in store.trials()) == ["measuring: crash"] * 2 + ["ok"] * 2
    # With the GPU back, the run resumes: three are measured, one is known.
    back = measured(Gpu([2.0, 3.0, 4.0], [], []), ("fprop",))
    assert back.findings[0].winner is not None
    assert back.findings[0].winner.milliseconds == 1.0
    assert not back.trouble


def test_one_faulting_candidate_is_not_a_lost_gpu() -> None:
    fault = Failure("crash", "the worker process ended")
    outcome = measured(Gpu([fault, 1.0, fault, 2.0], [], []))
    assert outcome.findings[0].winner is not None
    assert not outcome.trouble


def test_the_next_run_continues_after_the_time_limit() -> None:
    now = [0.0]

    def slow(problem: Problem, choice: Choice) -> Verdict:
        now[0] += 40
        return Verdict(True, 1e-4)

    work = jobs(C5, PASSES, "float16")
    screen = Console(file=io.StringIO())
    deadline = Deadline(60, clock=lambda: now[0])
    first = tune(work, H200, "predicted", EFFORT, screen, gate=slow, deadline=deadline)
    assert [job.problem.direction for job in first.left] == ["wgrad"]
    assert len(first.findings) == len(read_table(user_table("sm_90"))) == 2
    assert not first.interrupted
    assert not first.trouble
    second = tune(work, H200, "predicted", EFFORT, screen, gate=slow)
    assert (second.left, second.compiled, second.recalled) == ([], 2, 4)


def _cut_off(path: Path) -> None:
    Store(path).close()
    with path.open("r+b") as file:
        file.truncate(5000)


@pytest.mark.parametrize("spoil", [*SPOILT, _cut_off], ids=lambda spoil: spoil.__name__[1:])
def test_an_unusable_store_is_reported_as_trouble(spoil: object) -> None:
    default_path().parent.mkdir(parents=True, exist_ok=True)
    assert callable(spoil)
    spoil(default_path())
    before = default_path().read_bytes()
    with pytest.warns(UserWarning, match="left alone"):
        outcome = run()
    assert outcome.findings[0].winner is not None
    assert "trials could not be kept" in outcome.trouble[0]
    assert str(default_path()) in outcome.trouble[0]
    assert outcome.store is None
    assert default_path().read_bytes() == before


def test_setting_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = (2e9 + day * 86400 * (-1) ** day for day in itertools.count())  # back and forth
    monkeypatch.setattr("time.time", lambda: next(clock))
    work = jobs(C5, PASSES, "float16")
    deadline = Deadline(3600)
    for compiled, recalled in ((6, 0), (0, 6)):
        outcome = tune(
            work, H200, "predicted", EFFORT, Console(file=io.StringIO()), gate=passing,
            deadline=deadline,
        )  # fmt: skip
        assert (outcome.compiled, outcome.recalled) == (compiled, recalled)
        assert not outcome.left
    with Store() as store:
        newest = latest(store.trials())
        assert {len(trials) for trials in newest.values()} == {2}
    assert abs(next(clock) - 2e9) > 6 * 86400  # the clock was used


class FullDisk(Compilers):
    """Workers whose every compilation fails with a full disk."""

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Any, float]]:
        for task in tasks:
            yield task, Failure("machine", "OSError: [Errno 28] No space left on device"), 0.1


def test_a_full_disk_fails_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "Workers", FullDisk)
        full = run()
    assert full.findings[0].winner is None
    assert "2 candidates could not be tried" in full.trouble[0]
    assert "No space left" in full.trouble[0]
    room = run()
    assert (room.compiled, room.recalled, room.trouble) == (2, 0, [])
    assert room.findings[0].winner is not None


def test_a_gpu_lost_at_the_gate_fails_no_candidate() -> None:
    gone = Failure("error", "RuntimeError: No CUDA GPUs are available")
    outcome = measured(Gpu([], [], []), gate=lambda problem, choice: gone)
    assert "no longer answers" in outcome.trouble[0]
    with Store() as store:
        assert {trial.status for trial in store.trials()} == {"ok"}  # only compiled


def test_layers_shared_by_suites_are_tuned_once() -> None:
    work = jobs([*C5, *C5], PASSES, "float16")
    assert [job.problem.direction for job in work] == list(PASSES)
