"""From a tile to its trial: compiled, judged by its resources, gated, and on a GPU measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune import compile as compiling
from autotune import gate, on_gpu
from autotune.compile import Compiled
from autotune.gate import Verdict
from autotune.measure import Timing
from autotune.model import predict
from autotune.search import Effort
from autotune.store import Store
from autotune.trial import Resources, Trial
from autotune.workers import Failure, Task, Workers
from tconv.problem import Problem
from tconv.select import Choice
from tconv.table import Kind
from tconv.target import Target

LONGEST_DETAIL = 300  # characters of a compiler's words that a trial keeps
MOST_SPILLED = 0  # bytes a thread: a loop that spills loses to one that does not

Gate = Callable[[Problem, Choice], "Verdict | Failure"]
Measure = Callable[[Problem, Choice], "Timing | Failure"]


@dataclass(frozen=True)
class Setting:
    """What is the same for all trials of a run."""

    target: Target
    kind: Kind
    versions: str
    source: str
    effort: Effort


def shortened(text: str) -> str:
    """The end of a message, where compilers say what was wrong."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_DETAIL else "..." + line[3 - LONGEST_DETAIL :]


class Bench:
    """Tries candidates, and remembers every trial in the store as it is made.

    ``gate`` and ``measure`` are functions of a problem and a choice; ``measure`` is None
    where there is no GPU, and trials are then predictions.
    """

    def __init__(
        self,
        setting: Setting,
        store: Store,
        compilers: Workers,
        gate: Gate,
        measure: Measure | None = None,
    ) -> None:
        self.setting = setting
        self.compiled = 0  # candidates that this run compiled, rather than knew
        self.recalled = 0
        self._store = store
        self._compilers = compilers
        self._gate = gate
        self._measure = measure

    def try_all(self, problem: Problem, choices: Sequence[Choice]) -> list[Trial]:
        """A trial for each of ``choices``: recalled where nothing has changed, else compiled."""
        setting = self.setting
        where = (setting.target.name, problem, setting.kind, setting.versions, setting.source)
        known = self._store.find(*where)
        trials: dict[Choice, Trial] = {}
        tasks = []
        for choice in choices:
            earlier = known.get((choice.algorithm, choice.tile))
            if earlier is not None and earlier.status not in ("time limit", "crash"):
                trials[choice] = self._judged_again(earlier)
                self.recalled += 1
                continue
            arguments = (problem, choice, setting.target)
            tasks.append(Task(choice, compiling.compile_choice, arguments))
        results = self._compilers.run(tasks, setting.effort.compile_seconds)
        for task, result, seconds in results:
            assert isinstance(task.key, Choice)
            trials[task.key] = self._keep(self._judged(problem, task.key, result, seconds))
            self.compiled += 1
        return [trials[choice] for choice in choices]

    def _keep(self, trial: Trial) -> Trial:
        self._store.add(trial)
        return trial

    def _judged(self, problem: Problem, choice: Choice, result: Any, seconds: float) -> Trial:
        """The trial that a compilation amounts to."""
        setting = self.setting
        ranked = predict(problem, choice, setting.target).milliseconds
        blank = Trial(
            target=setting.target.name,
            problem=problem,
            algorithm=choice.algorithm,
            tile=choice.tile,
            kind=setting.kind,
            status="ok",
            ranked_milliseconds=ranked if math.isfinite(ranked) else None,
            versions=setting.versions,
            source=setting.source,
            seconds=seconds,
        )
        if isinstance(result, Failure):
            status = "compile error" if result.reason == "error" else result.reason
            return replace(blank, status=status, detail=shortened(result.detail))
        assert isinstance(result, Compiled)
        taken = result.resources
        spilled = max(taken.spill_bytes, result.helper_spill_bytes)
        return self._costed(replace(blank, resources=replace(taken, spill_bytes=spilled)))

    def _costed(self, trial: Trial) -> Trial:
        """``trial`` with the model's figures for its resources, or the reason it fails."""
        taken = trial.resources
        assert taken is not None
        if reason := self._unfit(taken):
            return replace(trial, status=reason[0], detail=reason[1], milliseconds=None)
        prediction = predict(trial.problem, trial.choice, self.setting.target, taken)
        if self.setting.kind == "measured":
            return replace(trial, occupancy=prediction.occupancy)
        return replace(trial, milliseconds=prediction.milliseconds, occupancy=prediction.occupancy)

    def _judged_again(self, trial: Trial) -> Trial:
        """A recalled prediction is costed anew: the model may have changed since."""
        if trial.kind == "measured" or trial.status != "ok" or trial.resources is None:
            return trial
        anew = self._costed(trial)
        return trial if anew == trial else self._keep(anew)

    def _unfit(self, taken: Resources) -> tuple[str, str] | None:
        limit = self.setting.target.shared_per_program
        if taken.shared_bytes > limit:
            return "shared memory", f"{taken.shared_bytes} B of at most {limit} B"
        if taken.spill_bytes > MOST_SPILLED:
            return "spills", f"{taken.spill_bytes} B a thread"
        return None

    def gated(self, trial: Trial) -> Trial:
        """``trial`` after the correctness gate; one that passed before is not run again."""
        if trial.status != "ok" or trial.error_fp64 is not None:
            return trial
        verdict = self._gate(trial.problem, trial.choice)
        if isinstance(verdict, Failure):
            words = shortened(verdict.detail)
            failed = replace(trial, status=f"gate: {verdict.reason}", detail=words)
            return self._keep(replace(failed, milliseconds=None))
        if not verdict.passed:
            error = verdict.error if math.isfinite(verdict.error) else None
            wrong = replace(trial, status="wrong result", detail=verdict.detail, error_fp64=error)
            return self._keep(replace(wrong, milliseconds=None))
        return self._keep(replace(trial, error_fp64=verdict.error))

    def measured(self, trial: Trial) -> Trial:
        """``trial`` with its times, once it has passed the gate; recalled where known."""
        passed = self.gated(trial)
        if passed.status != "ok" or passed.milliseconds is not None or self._measure is None:
            return passed
        timing = self._measure(passed.problem, passed.choice)
        if isinstance(timing, Failure):  # no memory left, or no resources at launch
            words = shortened(timing.detail)
            return self._keep(replace(passed, status=f"measuring: {timing.reason}", detail=words))
        median, p20, p80 = timing.median, timing.p20, timing.p80
        return self._keep(replace(passed, milliseconds=median, p20=p20, p80=p80))

    def winner(self, trials: Iterable[Trial]) -> Trial | None:
        """The quickest trial that passes the gate, among the finalists."""
        if self.setting.kind == "measured":
            trials = [self.measured(trial) for trial in trials]
        fit = [trial for trial in trials if trial.status == "ok" and trial.milliseconds is not None]
        fit.sort(key=lambda trial: trial.milliseconds or 0.0)  # ties: the strategy's order
        for trial in fit[: self.setting.effort.finalists]:
            if (checked := self.gated(trial)).status == "ok":
                return checked
        return None


def worker_gate(workers: Workers, effort: Effort, gpu: bool) -> Gate:
    """The gate in a worker: on its GPU, or in Triton's interpreter."""
    function = on_gpu.check if gpu else gate.check

    def run(problem: Problem, choice: Choice) -> Verdict | Failure:
        task = Task(choice, function, (problem, choice))
        ((_, verdict, _),) = workers.run([task], effort.gate_seconds)
        assert isinstance(verdict, (Verdict, Failure))
        return verdict

    return run


def worker_measure(workers: Workers, target: Target, effort: Effort) -> Measure:
    """Times a choice in a worker on its GPU."""

    def run(problem: Problem, choice: Choice) -> Timing | Failure:
        task = Task(choice, on_gpu.timing, (problem, choice, target.l2_bytes, effort))
        ((_, timing, _),) = workers.run([task], effort.gate_seconds)
        assert isinstance(timing, (Timing, Failure))
        return timing

    return run
