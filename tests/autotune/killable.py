"""Tuning runs with a fake compiler and clock, in processes that a test may kill at any time.

    python -m tests.autotune.killable

loads everything once. Each line of its input is a JSON list of runs {"home", "batches", "seed"}.
Each run gets a forked process, which may be killed, and prints what it does, line by line:

    PID start | PID try CANDIDATE | PID done CANDIDATE VALUES | PID end

and "over" when all have ended.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import scipy.stats  # noqa: F401
import sklearn.ensemble  # noqa: F401  # once, before any process is forked
from rich.console import Console

from autotune import tune as tuning
from autotune.compile import Compiled
from autotune.evaluate import Bench
from autotune.gate import Verdict
from autotune.measure import Timing
from autotune.search import DEFAULT_EFFORT
from autotune.strategies import forest
from autotune.suites import Layer, suite
from autotune.trial import Trial
from autotune.trial_store import Store
from tconv.cost.estimate import Resources
from tconv.cost.space import candidates
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.target import TARGETS, Target
from tconv.tile import Choice
from tconv_workers import Task

GPU = replace(TARGETS["sm_90"], name="nvidia-test")
EFFORT = replace(DEFAULT_EFFORT, candidates=12)
LONGEST = 0.004  # seconds that a step of the fake compiler or clock takes
LAYER = suite("lenet5", 8)[-1]
SPACE = {
    direction: candidates(Problem(LAYER.geometry, direction), GPU)[::7] for direction in PASSES
}


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, (os.getpid(), *words))) + "\n").encode())


def name(problem: Problem, choice: Choice) -> str:
    return f"{problem.key}|{choice.family}|{choice.tile}"


def chance(*of: object) -> float:
    """Return a number from 0 to 1, the same in each process."""
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6], "big") / 2**48


def milliseconds(problem: Problem, choice: Choice, again: bool = False) -> float:
    """Return a candidate's time; a second measurement differs by a few per cent."""
    time = 1 + chance(name(problem, choice))
    return time * (1 + 0.05 * chance(name(problem, choice), "again")) if again else time


def dawdle() -> None:
    time.sleep(random.uniform(0, LONGEST))


class Compilers:
    """Stand-in for worker processes; a tenth of the candidates spill."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Compiled, float]]:
        for task in tasks:
            dawdle()
            problem, choice, _ = task.arguments
            spilled = 8 * (chance(name(problem, choice), "spills") < 0.1)
            yield task, Compiled(Resources(64, spilled, 16384, 100)), 0.1

    def abandon(self) -> None:
        pass

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def gate(problem: Problem, choice: Choice) -> Verdict:
    dawdle()
    return Verdict(chance(name(problem, choice), "wrong") > 0.1, 1e-4)


def measure(problem: Problem, choice: Choice, best: float) -> Timing:
    say("try", name(problem, choice))
    dawdle()
    return Timing(*[milliseconds(problem, choice)] * 3, 10, 1.0)


def contest(problem: Problem, choices: Sequence[Choice]) -> list[Timing]:
    dawdle()
    return [Timing(*[milliseconds(problem, choice, True)] * 3, 10, 1.0) for choice in choices]


def values(trial: Trial) -> list[Any]:
    """Return the values that a trial has so far; each step adds one."""
    return [trial.error_fp64, trial.first_milliseconds, trial.milliseconds, trial.status]


def keep(bench: Bench, trial: Trial) -> Trial:
    bench._store.add(trial)
    say("done", json.dumps([name(trial.problem, trial.choice), values(trial)]))
    return trial


def of_space(problem: Problem, target: Target) -> list[Choice]:
    return SPACE[problem.direction]


def tune(home: str, batches: list[int], seed: int) -> None:
    """Tune the layer at each of ``batches``."""
    os.environ["TCONV_HOME"] = home
    random.seed(seed)
    layers = [
        Layer(LAYER.suite, LAYER.name, replace(LAYER.geometry, batch=batch)) for batch in batches
    ]
    say("start")
    outcome = tuning.tune(
        tuning.jobs(layers, PASSES, "float16"), GPU, "measured", EFFORT,
        Console(file=io.StringIO()), gate=gate, measure=measure, contest=contest,
    )  # fmt: skip
    assert not outcome.trouble, outcome.trouble
    say("end")


def main() -> None:
    forest.TREES = 4  # enough for a search path that depends on every time
    tuning.Workers = Compilers  # type: ignore[assignment, misc]
    tuning.candidates = of_space
    Bench._keep = keep  # type: ignore[method-assign]
    print("ready", flush=True)
    for line in sys.stdin:
        children = []
        for options in json.loads(line):
            if child := os.fork():
                children.append(child)
                continue
            try:
                tune(**options)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        print("over", flush=True)


def trials_at(home: str) -> list[Trial]:
    """Return all trials in the store of ``home``, after SQLite's integrity check."""
    from pathlib import Path

    with Store(Path(home) / "trials.sqlite") as store:
        assert store.path is not None, store.trouble
        sound = store._connection.execute("PRAGMA integrity_check").fetchone()
        assert sound == ("ok",), sound
        return list(store.trials())


if __name__ == "__main__":
    main()
