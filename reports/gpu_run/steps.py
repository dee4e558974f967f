"""The parts of a GPU run, each at most a few minutes, most valuable first."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from autotune import emulate, gate
from autotune.deadline import Deadline
from autotune.evaluate import DeviceLostError
from autotune.measure import Timing, inputs, measure
from autotune.search import DEFAULT_CANDIDATES, DEFAULT_EFFORT, Effort
from autotune.suites import suite
from autotune.tune import Job, Outcome, jobs, local_gpu, tune
from reports.bench.layers import REHEARSAL as BENCH_REHEARSAL
from reports.bench.layers import HostTimer
from reports.bench.run import NETWORKS, Run, Work, default_work, rehearsal, rehearsal_work
from reports.gpu_run.outcomes import VARIABLE, Outcomes
from reports.gpu_run.predictions import TUNED, write_predictions
from reports.gpu_run.state import Part, State
from reports.rows import LayerRow
from tconv.geometry import PASSES, Pass
from tconv.launch import emulated
from tconv.ops.conv_run import compute
from tconv.problem import Problem
from tconv.target import TARGETS, Target
from tconv.tile import Choice

# Tests that run on a GPU if there is one: all that compare kernels with a reference.
TESTS = ("tests/tconv/families", "tests/tconv/ops", "tests/tconv/test_convert.py",
         "tests/tconv/test_graphs.py", "tests/tconv/models/test_train.py")  # fmt: skip
TOOLS = ("memcheck", "racecheck", "initcheck")  # of compute-sanitizer
SHARES = 4  # parts that the small kernels are split into for tools that slow them down
TEST_SECONDS, TOOL_SECONDS, PROFILE_SECONDS, PROBE_SECONDS = 240.0, 120.0, 90.0, 60.0
TEST_PROCESSES = 12  # tests spend most of their time compiling
# A minimal program that a tool must be able to watch.
PROBE = "import torch; print((torch.ones(8, device='cuda') + 1).sum().item())"
# Without it torch pools memory, and a tool sees one large block instead of tensors.
WATCHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
NO_TESTS = 5  # pytest's exit code if no test was left to run
TIDY_SECONDS = 5.0  # held back from a tune for writing its results
# Problems whose candidates are all tried, so that searches can be replayed: small and large, each
# pass, each kind of layer.
TRACED: tuple[tuple[str, str, Pass], ...] = (
    ("vgg16", "features.10", "fprop"), ("vgg16", "features.10", "wgrad"),
    ("vgg16", "features.24", "dgrad"), ("vgg16", "features.0", "fprop"),
    ("lenet5", "c3", "fprop"), ("lenet5", "c1", "wgrad"), ("resnet50", "layer2.0.conv2", "fprop"),
    ("resnet50", "layer3.0.conv1", "wgrad"), ("resnet50", "conv1", "fprop"),
    ("depthwise", "3x3 wide", "fprop"), ("depthwise", "5x5 deep", "wgrad"),
    ("grouped", "resnext layer2", "fprop"),
)  # fmt: skip
TRACE_EFFORT = replace(DEFAULT_EFFORT, candidates=1_000_000, measure_milliseconds=15.0,
                       warmup_milliseconds=3.0, workers=16)  # fmt: skip
PROFILED = 6  # losses to profile
SECTIONS = ("SpeedOfLight", "Occupancy", "SchedulerStats", "WarpStateStats")
TOLD = ("Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput", "L2 Cache Throughput",
        "Achieved Occupancy", "Issued Warp Per Scheduler", "Duration")  # fmt: skip


class LeftError(Exception):
    """The run's time ended before this part was done; the next run continues it."""


class CannotError(Exception):
    """This machine lacks something that the part needs."""


class UnfinishedError(Exception):
    """The part exceeded its own time limit or the machine failed; it is retried."""


@dataclass
class Context:
    """The context that all parts receive."""

    out: Path
    state: State
    deadline: Deadline
    device: torch.device
    target: Target
    rehearse: bool = False
    tell: Callable[[str], None] = print
    left: list[str] = field(default_factory=list)

    def spawn(
        self,
        command: Sequence[str],
        seconds: float,
        log: str,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Run a command of this checkout, log its output in ``out``, and return its last lines.

        Its whole process group ends with it: a hanging test has workers, a tool its target.

        Raises:
            LeftError: if the run's time limit stopped it.
            UnfinishedError: if it took longer than ``seconds``.
            ExitError: if it failed.
        """
        limit = min(seconds, self.deadline.left)
        path = self.out / log
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT,
                                       env={**os.environ, **environment},
                                       start_new_session=True)  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired as error:
                if limit < seconds:
                    raise LeftError from error
                raise UnfinishedError(f"it took more than {seconds:g} s; see {log}") from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        last = "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
        if code:
            raise ExitError(code, last)
        return last


class ExitError(RuntimeError):
    """A command ended with a nonzero exit code."""

    def __init__(self, code: int, last: str) -> None:
        super().__init__(f"exit code {code}:\n{last}")
        self.code, self.last = code, last


@dataclass(frozen=True)
class Task:
    """A part of a step; it only starts with at least ``least`` seconds left."""

    step: str
    name: str
    run: Callable[[Context], str]
    least: float = 5.0


def perform(task: Task, context: Context) -> None:
    """Run a part that is not done yet and record how it ended."""
    if context.state.known(task.step, task.name):
        return
    label = f"{task.step}: {task.name}"
    if context.deadline.left < task.least:
        context.left.append(label)
        return
    before = context.deadline.left
    context.state.begin(task.step, task.name)
    try:
        part = Part("done", 0.0, task.run(context))
    except LeftError:
        context.left.append(label)
        context.state.leave()
        return
    except DeviceLostError:  # the cause is recorded and not repeated
        context.state.leave()
        raise
    except UnfinishedError as error:
        context.left.append(label)
        part = Part("unfinished", 0.0, str(error))
    except CannotError as error:
        part = Part("cannot", 0.0, str(error))
    except Exception as error:  # a failing part must not stop the others
        part = Part("failed", 0.0, f"{type(error).__name__}: {error}")
    spent = before - context.deadline.left if math.isfinite(before) else 0.0
    context.state.keep(task.step, task.name, replace(part, seconds=spent))
    last = part.note.strip().splitlines()[-1:]
    context.tell(f"{label}: {part.outcome}, {spent:.0f} s. {last[0] if last else ''}")


def tasks(rehearse: bool) -> Iterator[Task]:
    """Yield all parts in order."""
    yield Task("predictions", "H100 and H200", _predict)
    yield Task(
        "tests", "gpu", partial(_tests, arguments=("-m", "gpu or device", "tests")), least=30
    )
    for place in TESTS[2:3] if rehearse else TESTS:
        yield Task("tests", place, partial(_tests, arguments=(place,)), least=30)
    yield Task("sanitizer", "no tool", _small, least=30)
    for tool in TOOLS:
        for share in range(1, SHARES + 1):
            run = partial(_sanitize, tool=tool, share=f"{share}/{SHARES}")
            yield Task("sanitizer", f"{tool} {share}/{SHARES}", run, least=30)
    for name, dtype in TUNED[1:2] if rehearse else TUNED:
        label = f"{name} {dtype}"
        yield Task("tune", label, partial(_tune, name=name, dtype=dtype), least=15)
        yield Task("bench", label, partial(_bench, name=name, dtype=dtype), least=15)
        if dtype == "float16" and name in NETWORKS:
            yield Task("bench", f"{name}, whole", partial(_whole, name=name), least=30)
    yield Task("losses", "profile", _profile, least=30)
    for traced in TRACED[4:5] if rehearse else TRACED:
        yield Task("traces", " ".join(traced), partial(_trace, traced=traced), least=20)


def _predict(context: Context) -> str:
    """Write the cost model's predictions before anything is measured."""
    few: dict[str, Any] = {"work": TUNED[1:2], "most": 2} if context.rehearse else {}
    files = write_predictions(context.out, **few)
    return ", ".join(str(file.relative_to(context.out)) for file in files)


def _tests(context: Context, arguments: Sequence[str]) -> str:
    """Run tests in several processes; tests that ended in an earlier run are not repeated.

    Raises:
        LeftError: if the time of the run or of one attempt ends first.
        RuntimeError: if tests fail or hang.
    """
    name = "gpu" if "-m" in arguments else Path(arguments[-1]).stem
    path = tests_of(context.out, context.state) / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    plugins = ("-p", "no:cacheprovider", "-p", "reports.gpu_run.outcomes")
    many = _processes(context.rehearse)
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *many, *arguments]
    try:
        context.spawn(command, TEST_SECONDS, f"logs/tests-{name}.txt", {VARIABLE: str(path)})
    except UnfinishedError as error:  # each attempt gets further
        raise LeftError from error
    except ExitError as error:
        if error.code not in (1, NO_TESTS):
            raise
    found = Outcomes.read(path)
    if wrong := [*found.failed(), *(f"{test} hangs" for test in found.hung())]:
        raise RuntimeError(f"{len(wrong)} of {len(found.begun)} tests failed: {'; '.join(wrong)}")
    return f"{found.count('passed')} passed, {found.count('skipped')} skipped"


def tests_of(out: Path, state: State) -> Path:
    """Return the path of the tests' outcomes, which contains the kernels' version."""
    return out / "tests" / state.code


def _processes(rehearse: bool) -> list[str]:
    """Return pytest's options for parallel tests, if pytest-xdist is installed."""
    count = 1 if rehearse else min(TEST_PROCESSES, os.cpu_count() or 1)
    if count == 1 or find_spec("xdist") is None:
        return []
    return ["-n", str(count), "--dist", "worksteal"]


def _small(context: Context) -> str:
    """Run every kernel once, which also fills Triton's cache for the tools."""
    program = [sys.executable, "-m", "reports.gpu_run.small"]
    return context.spawn(program, TEST_SECONDS, "logs/small.txt")


def _sanitize(context: Context, tool: str, share: str) -> str:
    """Run a share of the kernels once under a tool of compute-sanitizer."""
    found = None if context.rehearse else shutil.which("compute-sanitizer")
    if found is None:
        raise CannotError("compute-sanitizer is not on this machine")
    watched = [found, "--tool", tool, "--error-exitcode", "9", sys.executable]
    log = f"logs/sanitizer-{tool}-{share.replace('/', '-')}.txt"
    try:
        context.spawn([*watched, "-c", PROBE], PROBE_SECONDS, log, WATCHED)
    except (ExitError, UnfinishedError) as error:
        raise CannotError(f"compute-sanitizer does not run here: {error}") from error
    program = [*watched, "-m", "reports.gpu_run.small", "--share", share]
    return context.spawn(program, TOOL_SECONDS, log, WATCHED)


def _tune(context: Context, name: str, dtype: str) -> str:
    """Tune a suite, as far as the time allows."""
    work = jobs(suite(name), PASSES, dtype)
    effort = replace(DEFAULT_EFFORT, candidates=DEFAULT_CANDIDATES["measured"])
    if context.rehearse:
        work, effort = work[:2], replace(effort, candidates=2)
    return _told(_tuned(context, work, effort, None))


def _tuned(context: Context, work: Sequence[Job], effort: Effort, strategy: str | None) -> Outcome:
    limit = Deadline(max(1.0, context.deadline.left - TIDY_SECONDS))
    if not context.rehearse:
        return tune(work, context.target, "measured", effort, strategy=strategy, deadline=limit)
    compiled = replace(TARGETS["sm_90"], name=rehearsal().name)
    return tune(work, compiled, "measured", effort, strategy=strategy, deadline=limit,
                gate=emulate.check if emulated() else gate.check, measure=host_measure)  # fmt: skip


def host_measure(problem: Problem, choice: Choice, best: float) -> Timing:
    """Time a small copy of the problem by the host's clock, without a GPU."""
    small, tile = gate.scaled_down(problem, choice)
    tensors = inputs(small, "cpu")
    call = partial(compute, small, replace(choice, tile=tile), **tensors)
    return measure(HostTimer([call]), BENCH_REHEARSAL, best)


def _told(outcome: Outcome) -> str:
    """Return a summary of a tune in one line.

    Raises:
        LeftError: if its time ended first; its trials are in the store.
        UnfinishedError: if the machine prevented part of it.
    """
    failed = sum(finding.winner is None for finding in outcome.findings)
    if outcome.trouble or outcome.interrupted:
        raise UnfinishedError("; ".join(outcome.trouble) or "interrupted")
    if outcome.left:
        raise LeftError
    words = f"{len(outcome.findings)} problems, {outcome.compiled} candidates compiled"
    without = f", {failed} without a winner" if failed else ""
    return f"{words}, drift {outcome.drift:.3f}{without}"


def _measured(context: Context, work: Work) -> str:
    """Run part of the bench.

    Raises:
        LeftError: if its time ended first; its rows are kept.
    """
    target = rehearsal() if context.rehearse else context.target
    run = Run(target, context.device, context.deadline, context.tell)
    run.do(work)
    if run.left:
        raise LeftError
    return f"{len(run.tables.layers)} layers, {len(run.tables.networks)} rows of networks so far"


def _bench(context: Context, name: str, dtype: str) -> str:
    if context.rehearse:
        return _measured(context, replace(rehearsal_work(), networks=(), memory=()))
    work = default_work([name], PASSES, [dtype], networks=())
    return _measured(context, work if dtype == "float16" else replace(work, memory=()))


def _whole(context: Context, name: str) -> str:
    if context.rehearse:
        return _measured(context, Work(networks=rehearsal_work().networks[:1]))
    return _measured(context, default_work([], networks=[name]))


def _trace(context: Context, traced: tuple[str, str, Pass]) -> str:
    """Measure all candidates of one problem, each briefly."""
    network, layer, direction = traced
    (found,) = (each for each in suite(network) if each.name == layer)
    work = jobs([found], (direction,), "float16")
    effort = replace(TRACE_EFFORT, candidates=3, workers=1) if context.rehearse else TRACE_EFFORT
    return _told(_tuned(context, work, effort, "exhaustive"))


def _profile(context: Context) -> str:
    """Profile the passes that lose the most time to cuDNN."""
    lost = worst_losses(context)
    if not lost:
        return "no losses are known"
    ncu = shutil.which("ncu")
    if ncu is None:
        raise CannotError("ncu is not on this machine")
    profiled = []
    for number, row in enumerate(lost):
        where = f"logs/ncu-{number}.csv"
        command = [ncu, "--clock-control", "none", "--profile-from-start", "off", "--csv",
                   *(word for section in SECTIONS for word in ("--section", section)),
                   sys.executable, "-m", "reports.gpu_run.one", row.problem.key]  # fmt: skip
        context.spawn(command, PROFILE_SECONDS, where)
        figures = metrics((context.out / where).read_text(encoding="utf-8", errors="replace"))
        words = ", ".join(f"{name} {value}" for name, value in figures.items())
        profiled.append(f"{row.suite} {row.layer} {row.direction} ({row.times_nhwc:.2f}): {words}")
    return "\n".join(profiled)


def worst_losses(context: Context) -> list[LayerRow]:
    """Return the plain convolutions slower than cuDNN's, most time lost first."""
    target = rehearsal() if context.rehearse else context.target
    rows = Run(target, context.device, context.deadline, context.tell).tables.layers
    lost = [row for row in rows if row.filters and not row.epilogue and (row.times_nhwc or 1) < 1]
    lost.sort(key=lambda row: (row.cudnn_nhwc_ms or 0.0) - (row.tconv_ms or 0.0))
    return lost[:PROFILED]


def metrics(text: str) -> dict[str, str]:
    """Return the metrics of the longest kernel in ncu's CSV, by name.

    >>> metrics('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\\n'
    ...         '"0","k","Duration","us","12.5"\\n"0","k","DRAM Throughput","%","71"\\n')
    {'Duration': '12.5 us', 'DRAM Throughput': '71 %'}
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, str]] = {}
    longest: dict[str, float] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        name, number = row.get("Metric Name", ""), row.get("ID", "")
        if name in TOLD:
            value = row.get("Metric Value", "").replace(",", "")
            kernels.setdefault(number, {})[name] = f"{value} {row.get('Metric Unit', '')}".strip()
            if name == "Duration":
                longest[number] = float(value or 0)
    if not longest:
        return {}
    return kernels[max(longest, key=lambda number: longest[number])]


def here(rehearse: bool) -> tuple[torch.device, Target]:
    """Return this machine's GPU, or the CPU for a rehearsal.

    Raises:
        CannotError: if there is no GPU and this is not a rehearsal.
    """
    if rehearse:
        return torch.device("cpu"), rehearsal()
    found = local_gpu()
    if found is None:
        raise CannotError("there is no GPU here; --rehearse runs the same steps on a CPU")
    return torch.device("cuda", torch.cuda.current_device()), found[0]
