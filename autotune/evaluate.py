"""Turn a tile into a trial: compile it, check its resources and results, and on a GPU time it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune import compile as compiling
from autotune import emulate, gate, on_gpu
from autotune.compile import Compiled
from autotune.deadline import Deadline
from autotune.gate import Verdict
from autotune.measure import Timing
from autotune.search import Effort
from autotune.trial import Trial
from autotune.trial_store import Store
from tconv.cost.estimate import Resources
from tconv.cost.model import predict
from tconv.extras import extra
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice
from tconv.winners import Kind, Winner, user_table, write_table
from tconv_workers import Failure, Task, Workers

with extra("tune"):
    from attrs import evolve

LONGEST_DETAIL = 300  # characters of a compiler's message that a trial keeps
CONTESTED = 1.1  # times the best: slower finalists are not measured again
MOST_LOST = 3  # consecutive measurements that end their process, before the GPU is considered lost
RETRIED = (
    "time limit", "crash", "measuring: time limit", "measuring: crash",
    "machine", "gate: machine", "measuring: machine",
)  # fmt: skip
GONE = ("no CUDA-capable device", "No CUDA GPUs are available", "device not found")
MOST_SPILLED = 0  # bytes per thread: a loop that spills is slower than one that does not

Gate = Callable[[Problem, Choice], "Verdict | Failure"]
Measure = Callable[[Problem, Choice, float], "Timing | Failure"]
"""Times a candidate; the last argument is the best time in ms so far, to give up early."""
Contest = Callable[[Problem, Sequence[Choice]], "list[Timing] | Failure"]
"""Times the finalists in turn, round by round, so that noise affects all of them alike."""


@dataclass(frozen=True)
class Setting:
    """Settings shared by all trials of a run."""

    target: Target
    kind: Kind
    versions: str
    source: str
    effort: Effort
    deadline: Deadline = field(default_factory=Deadline)


class OutOfTimeError(Exception):
    """The run's time limit is spent: finished trials are kept, the rest is not tried."""


class DeviceLostError(Exception):
    """The GPU no longer answers."""


def shortened(text: str) -> str:
    """Return the end of a message, where compilers report the error."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_DETAIL else "..." + line[3 - LONGEST_DETAIL :]


class Bench:
    """Tries candidates and stores every trial as soon as it is made.

    ``gate``, ``measure`` and ``contest`` run a candidate. Without a GPU the last two are None and
    trials are predictions. Without ``compilers`` the launch compiles: see ``tried``.
    """

    def __init__(
        self,
        setting: Setting,
        store: Store,
        compilers: Workers | None,
        gate: Gate,
        measure: Measure | None = None,
        contest: Contest | None = None,
    ) -> None:
        self.setting = setting
        self.compiled = 0  # candidates that this run compiled instead of recalling
        self.recalled = 0
        self._store = store
        self._compilers = compilers
        self._gate = gate
        self._measure = measure
        self._contest = contest
        self._reference: float | None = None  # ms of the first reference measurement
        self.drift = 1.0  # reference time over the first, the ratio farthest from 1
        self._lost = 0  # consecutive measurements that ended their process
        self._turns: dict[Problem, dict[Choice, int]] = {}  # each choice's place in its search

    def try_all(self, problem: Problem, choices: Sequence[Choice]) -> list[Trial]:
        """Return a trial for each of ``choices``, recalled if still valid, else compiled."""
        setting = self.setting
        where = (setting.target.name, problem, setting.kind, setting.versions, setting.source)
        known = self._store.find(*where)
        trials: dict[Choice, Trial] = {}
        tasks = []
        turns = self._turns.setdefault(problem, {})
        for choice in choices:
            turns.setdefault(choice, len(turns))
            earlier = known.get((choice.family, choice.tile))
            if earlier is not None and earlier.status not in RETRIED:
                trials[choice] = self._predicted_again(earlier)
                self.recalled += 1
                continue
            arguments = (problem, choice, setting.target)
            tasks.append(Task(choice, compiling.compile_choice, arguments))
        for task, result, seconds in self._compiled(tasks):
            assert isinstance(task.key, Choice)
            judged = self._trial_of(problem, task.key, result, seconds)
            trials[task.key] = self._keep(evolve(judged, turn=turns[task.key]))
            self.compiled += 1
        return [trials[choice] for choice in choices]

    def _compiled(self, tasks: list[Task]) -> Iterator[tuple[Task, Any, float]]:
        """Yield results as they finish, until the run's time limit."""
        assert self._compilers is not None
        limit = self.setting.effort.compile_seconds
        left = self.setting.deadline.left
        if tasks and not left:
            raise OutOfTimeError
        for task, result, seconds in self._compilers.run(tasks, min(limit, left)):
            stopped = isinstance(result, Failure) and result.reason == "time limit"
            if stopped and seconds < limit:  # stopped by the run's time limit, not by its own
                raise OutOfTimeError
            yield task, result, seconds
            if not self.setting.deadline.left:
                raise OutOfTimeError

    def _keep(self, trial: Trial) -> Trial:
        self._store.add(trial)
        return trial

    def _trial_of(self, problem: Problem, choice: Choice, result: Any, seconds: float) -> Trial:
        """Return the trial for a compilation's result."""
        blank = self._blank(problem, choice, seconds)
        if isinstance(result, Failure):
            status = "compile error" if result.reason == "error" else result.reason
            return evolve(blank, status=status, detail=shortened(result.detail))
        assert isinstance(result, Compiled)
        taken = result.resources
        spilled = max(taken.spill_bytes, result.helper_spill_bytes)
        return self._costed(evolve(blank, resources=replace(taken, spill_bytes=spilled)))

    def tried(
        self, problem: Problem, choices: Iterable[Choice], deadline: Deadline
    ) -> Iterator[Trial]:
        """Yield a measured trial for each of ``choices``, recalled or compiled by its own launch.

        After the first successful time, ``deadline`` ends the iteration.
        """
        setting = self.setting
        where = (setting.target.name, problem, setting.kind, setting.versions, setting.source)
        known, best = self._store.find(*where), math.inf
        for choice in choices:
            trial = known.get((choice.family, choice.tile))
            if trial is None or trial.status in RETRIED:
                if best < math.inf and not deadline.left:
                    return
                trial = self._blank(problem, choice, 0.0)
            trial = self.measured(trial, best)
            best = min(best, trial.searched or math.inf)
            yield trial

    def _blank(self, problem: Problem, choice: Choice, seconds: float) -> Trial:
        """Return a trial that holds only the model's predicted time."""
        setting = self.setting
        ranked = predict(problem, choice, setting.target).milliseconds
        return Trial(
            target=setting.target.name,
            problem=problem,
            family=choice.family,
            tile=choice.tile,
            kind=setting.kind,
            status="ok",
            ranked_milliseconds=ranked if math.isfinite(ranked) else None,
            versions=setting.versions,
            source=setting.source,
            seconds=seconds,
        )

    def _costed(self, trial: Trial) -> Trial:
        """Return ``trial`` with the model's figures for its resources, or the reason it fails."""
        taken = trial.resources
        assert taken is not None
        if reason := self._unfit_reason(taken):
            return evolve(trial, status=reason[0], detail=reason[1], milliseconds=None)
        prediction = predict(trial.problem, trial.choice, self.setting.target, taken)
        if math.isinf(prediction.milliseconds):  # too many registers for one program
            return evolve(trial, status=prediction.bound, milliseconds=None)
        if self.setting.kind == "measured":
            return evolve(trial, occupancy=prediction.occupancy)
        return evolve(trial, milliseconds=prediction.milliseconds, occupancy=prediction.occupancy)

    def _predicted_again(self, trial: Trial) -> Trial:
        """Re-predict a recalled prediction: the model may have changed since."""
        if trial.kind == "measured" or trial.status != "ok" or trial.resources is None:
            return trial
        anew = self._costed(trial)
        return trial if anew == trial else self._keep(anew)

    def _unfit_reason(self, taken: Resources) -> tuple[str, str] | None:
        limit = self.setting.target.shared_per_program
        if taken.shared_bytes > limit:
            return "shared memory", f"{taken.shared_bytes} B, limit {limit} B"
        if taken.spill_bytes > MOST_SPILLED:
            return "spills", f"{taken.spill_bytes} B a thread"
        return None

    def gated(self, trial: Trial) -> Trial:
        """Return ``trial`` after the correctness gate, which is skipped if passed before."""
        setting = self.setting
        better = setting.kind == "predicted" and gate.checked_by(setting.target) == "emulated"
        stale = better and trial.checked == "interpreted"  # check again, now on the compiled code
        if trial.status != "ok" or (trial.error_fp64 is not None and not stale):
            return trial
        verdict = self._gate(trial.problem, trial.choice)
        if isinstance(verdict, Failure):
            if self.setting.kind == "measured":
                self._count_failure(verdict)
            words = shortened(verdict.detail)
            failed = evolve(trial, status=f"gate: {verdict.reason}", detail=words)
            return self._keep(evolve(failed, milliseconds=None))
        if not verdict.passed:
            error = verdict.error if math.isfinite(verdict.error) else None
            wrong = evolve(trial, status="wrong result", detail=verdict.detail, error_fp64=error)
            return self._keep(evolve(wrong, checked=verdict.checked, milliseconds=None))
        passed = evolve(trial, error_fp64=verdict.error, checked=verdict.checked)
        return self._keep(evolve(passed, counters=verdict.counters))

    def measured(self, trial: Trial, best: float = math.inf) -> Trial:
        """Return ``trial`` with its times if it passes the gate; stored times are reused."""
        passed = self.gated(trial)
        if passed.status != "ok" or passed.milliseconds is not None or self._measure is None:
            return passed
        if not self.setting.deadline.left:
            raise OutOfTimeError
        timing = self._measure(passed.problem, passed.choice, best)
        if isinstance(timing, Failure):  # out of memory, or too many resources at launch
            self._count_failure(timing)
            words = shortened(timing.detail)
            return self._keep(evolve(passed, status=f"measuring: {timing.reason}", detail=words))
        self._lost = 0
        return self._keep(self._timed(passed, timing))

    def _count_failure(self, failure: Failure) -> None:
        """Count a failed measurement; several in a row mean that the GPU is lost."""
        self._lost = self._lost + 1 if failure.reason in ("crash", "time limit") else 0
        gone = any(words in failure.detail for words in GONE)
        if gone or self._lost >= MOST_LOST:
            raise DeviceLostError(f"the GPU no longer answers: {shortened(failure.detail)}")

    def _timed(self, trial: Trial, timing: Timing) -> Trial:
        if timing.reference:
            self._reference = self._reference or timing.reference
            drift = timing.reference / self._reference
            if abs(math.log(drift)) > abs(math.log(self.drift)):
                self.drift = drift
        return evolve(trial, milliseconds=timing.median, p20=timing.p20, p80=timing.p80)

    def winner(self, trials: Iterable[Trial]) -> Trial | None:
        """Return the fastest trial that passes the gate; on a GPU, after the finalists' contest."""
        if self.setting.kind == "measured":
            trials = [self.measured(trial) for trial in trials]
        fit = [trial for trial in trials if trial.status == "ok" and trial.milliseconds is not None]
        # the sort is stable: ties keep the strategy's order
        fit.sort(key=lambda trial: trial.searched or 0.0)
        fit = fit[: self.setting.effort.finalists]
        if self._contest is not None and len(fit) > 1:
            fit = self._contested(fit)
        for trial in fit:
            if (checked := self.gated(trial)).status == "ok":
                return checked
        return None

    def _contested(self, finalists: list[Trial]) -> list[Trial]:
        """Measure the finalists again in turn and return them fastest first.

        Finalists that an earlier run compared are not compared again.
        """
        near = (finalists[0].searched or 0.0) * CONTESTED
        close = [trial for trial in finalists if (trial.searched or 0.0) <= near]
        if len(close) < 2 or self._contest is None:
            return finalists
        if any(trial.first_milliseconds is None for trial in close):
            found = self._contest(close[0].problem, [trial.choice for trial in close])
            if isinstance(found, Failure):
                self._count_failure(found)
                return finalists
            close = [
                self._keep(self._timed(evolve(trial, first_milliseconds=trial.searched), timing))
                for trial, timing in zip(close, found, strict=True)
            ]
        return sorted(close, key=lambda trial: trial.milliseconds or 0.0)


def publish(target: Target, winners: Iterable[Trial]) -> None:
    """Add ``winners`` to the user's table of ``target``.

    Raises:
        TableError: if the table is unusable; the file is left untouched.
        OSError: if the table cannot be written.
    """
    entries = {
        trial.problem.key: Winner(trial.family, trial.tile, trial.kind, trial.milliseconds or 0.0)
        for trial in winners
    }
    write_table(user_table(target.name), target.name, entries)


def worker_gate(workers: Workers, effort: Effort, target: Target, kind: Kind) -> Gate:
    """Return the gate in a worker: on its GPU, on an emulated one, or in Triton's interpreter."""
    function = gate.check
    if kind == "measured":
        function = on_gpu.check
    elif gate.checked_by(target) == "emulated":
        function = emulate.check

    def run(problem: Problem, choice: Choice) -> Verdict | Failure:
        task = Task(choice, function, (problem, choice))
        ((_, verdict, _),) = workers.run([task], effort.gate_seconds)
        assert isinstance(verdict, (Verdict, Failure))
        return verdict

    return run


def worker_measure(workers: Workers, target: Target, effort: Effort) -> Measure:
    """Return a function that times a choice in a worker on its GPU."""

    def run(problem: Problem, choice: Choice, best: float) -> Timing | Failure:
        task = Task(choice, on_gpu.timing, (problem, choice, target.l2_bytes, effort, best))
        ((_, timing, _),) = workers.run([task], effort.gate_seconds)
        assert isinstance(timing, (Timing, Failure))
        return timing

    return run


def worker_contest(workers: Workers, target: Target, effort: Effort) -> Contest:
    """Return a function that times choices in turn in a worker on its GPU."""

    def run(problem: Problem, choices: Sequence[Choice]) -> list[Timing] | Failure:
        task = Task(problem, on_gpu.contest, (problem, tuple(choices), target.l2_bytes, effort))
        ((_, timings, _),) = workers.run([task], effort.gate_seconds * len(choices))
        assert isinstance(timings, (list, Failure))
        return timings

    return run
