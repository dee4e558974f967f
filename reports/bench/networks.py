"""Whole networks: inference and training steps beside torch, and time by operator.

All backends of a network are measured in turn in one run. The host's clock times runs that end with
a device synchronisation: the time a user waits. All sides use the same float32 weights under
autocast; training uses SGD with momentum and no loss scaler.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.nn.functional import cross_entropy

from autotune.deadline import Deadline, OverdueError, time_limit
from autotune.evaluate import OutOfTimeError
from autotune.on_gpu import context_lost
from reports.bench.memory import peak_memory
from reports.bench.sides import torchs_precision
from reports.rows import NetworkRow, OperatorRow, rounded
from tconv.compiler import tconv_backend
from tconv.graphs import graphed
from tconv.models import BUILDERS, INPUT_VOLUMES, torch_twin
from tconv.models.command import compile_in_place

CLASSES = 10
WARM_UPS = 3
ROUNDS = 11  # the backends take turns in each round
LEAST_SECONDS = 0.02  # per sample: short steps run several times
PROFILED_STEPS = 3
# Seconds to prepare a backend; torch.compile in mode max-autotune compiles and times many kernels.
PREPARATION_SECONDS = 120.0
LIMITS = {"torch.compile": 240.0}
# All backends start from the same weights. ``tconv`` is torch.compile(backend="tconv").
# ``contiguous`` is torch on NCHW tensors; all others use channels_last. ``torch.compile`` runs in
# mode max-autotune, which also launches CUDA graphs.
BACKENDS = (
    "tconv", "tconv graphed", "torch", "torch contiguous", "torch graphed", "torch.compile",
)  # fmt: skip
PROFILED = ("tconv", "torch")
# The kind of an operator, by the first of these words found in its name.
OPERATORS = {
    "conv": "convolution",
    "pool": "pool",
    "subsample": "pool",
    "addmm": "matrix product",
    "aten::mm": "matrix product",
    "aten::bmm": "matrix product",
    "batch_norm": "normalisation",
    "relu": "activation",
    "threshold": "activation",
    "hardtanh": "activation",
    "dropout": "activation",
    "_foreach": "optimizer",
    "copy": "copies and casts",
    "cat": "copies and casts",
}
OTHER = "other"


@dataclass(frozen=True)
class NetworkCase:
    """A network in one mode; ``dtype`` is its activations' type under autocast."""

    model: str
    mode: str
    batch: int
    dtype: str = "float16"

    @property
    def name(self) -> str:
        return f"{self.model} {self.mode}, batch {self.batch}, {self.dtype}"


@dataclass(frozen=True)
class Measured:
    """Results of a case; ``missing`` gives the reason for each backend that could not run."""

    rows: list[NetworkRow]
    operators: list[OperatorRow]
    missing: list[str]


Step = Callable[[], Any]


def measure_network(
    case: NetworkCase,
    device: torch.device,
    rounds: int = ROUNDS,
    deadline: Deadline | None = None,
) -> Measured:
    """Measure all backends of ``case`` in turn, with torch's switches set for the case's dtype.

    Raises:
        OutOfTimeError: if ``deadline`` ended before torch.compile had its full time.
    """
    with torchs_precision(case.dtype):
        steps, peaks, missing = _prepared(case, device, deadline or Deadline())
        times = _in_turn(steps, device, rounds)
        rows = [
            NetworkRow(case.model, case.mode, case.batch, case.dtype, backend,
                       rounded(1e3 * median), rounded(case.batch / median), rounded(peaks[backend]))
            for backend, median in times.items()
        ]  # fmt: skip
        operators = [
            OperatorRow(case.model, case.mode, case.batch, case.dtype, backend, kind, rounded(ms))
            for backend in PROFILED
            if backend in steps
            for kind, ms in _profile(steps[backend], device).items()
        ]
    del steps
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Measured(rows, operators, missing)


def _prepared(
    case: NetworkCase, device: torch.device, deadline: Deadline
) -> tuple[dict[str, Step], dict[str, float | None], list[str]]:
    """Return the warmed-up steps by backend, their peak memory, and why others did not run."""
    steps: dict[str, Step] = {}
    peaks: dict[str, float | None] = {}
    missing = []
    for backend in BACKENDS:
        if device.type != "cuda" and backend not in PROFILED:
            continue  # a CPU has no graphs and nothing to compile for
        limit = LIMITS.get(backend, PREPARATION_SECONDS)
        try:
            with time_limit(min(limit, deadline.left)), peak_memory(device) as peak_mib:
                step = _step(case, backend, device)
                for _ in range(WARM_UPS):
                    step()
            steps[backend], peaks[backend] = step, peak_mib()
        except OverdueError as error:
            if deadline.left < 1:  # the run's deadline stopped it, not its own limit
                raise OutOfTimeError from error
            missing.append(f"{case.name}: {backend} did not run: it took {error}")
        except Exception as error:  # errors of torch.compile, of graph capture, or of memory
            if context_lost():
                raise
            first = " ".join(str(error).split())[:200]
            missing.append(f"{case.name}: {backend} did not run: {type(error).__name__}: {first}")
    return steps, peaks, missing


def _step(case: NetworkCase, backend: str, device: torch.device) -> Step:
    """Return a step: inference of one batch, or one update of the weights."""
    torch.manual_seed(0)
    model: nn.Module = BUILDERS[case.model](num_classes=CLASSES)
    layout = torch.contiguous_format if backend == "torch contiguous" else torch.channels_last
    model = torch_twin(model).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    if backend.startswith("tconv"):
        compile_in_place(model, backend=tconv_backend, options={"rest": "eager"})
    generator = torch.Generator().manual_seed(1)
    size = (case.batch, *INPUT_VOLUMES[case.model])
    x = torch.randn(size, generator=generator).to(device).contiguous(memory_format=layout)
    y = torch.randint(CLASSES, (case.batch,), generator=generator).to(device)
    dtype = None if case.dtype == "float32" else getattr(torch, case.dtype)
    build = _inference if case.mode == "inference" else _training
    return build(model, x, y, dtype, backend)


def _inference(
    model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None, backend: str
) -> Step:
    model.eval()
    if backend.endswith("graphed"):
        run = graphed(model, x, autocast=dtype)
        return lambda: run(x)
    call: Callable[[Tensor], Tensor] = model
    if backend == "torch.compile":
        call = torch.compile(model, mode="max-autotune")

    def step() -> Tensor:
        with torch.no_grad(), _casting(x, dtype):
            return call(x)

    return step


def _training(
    model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None, backend: str
) -> Step:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    if backend.endswith("graphed"):
        run = graphed(model, x, target=y, loss=cross_entropy, optimizer=optimizer, autocast=dtype)
        return lambda: run(x, y)
    call: Callable[[Tensor], Tensor] = model
    if backend == "torch.compile":
        call = torch.compile(model, mode="max-autotune")

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _casting(x, dtype):
            loss = cross_entropy(call(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def _casting(x: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(x.device.type, dtype, enabled=dtype is not None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _in_turn(steps: dict[str, Step], device: torch.device, rounds: int) -> dict[str, float]:
    """Return each backend's median seconds per step, measured in rounds of all backends."""
    counts = {}
    for backend, step in steps.items():
        counts[backend] = max(1, int(LEAST_SECONDS / max(_seconds(step, 1, device), 1e-6)))
    samples: dict[str, list[float]] = {backend: [] for backend in steps}
    for turn in range(rounds):
        order = list(steps) if turn % 2 == 0 else list(reversed(steps))
        for backend in order:
            count = counts[backend]
            samples[backend].append(_seconds(steps[backend], count, device) / count)
    return {backend: statistics.median(each) for backend, each in samples.items()}


def _seconds(step: Step, count: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return time.perf_counter() - began


def _profile(step: Step, device: torch.device) -> dict[str, float]:
    """Return the device milliseconds of a step by kind of operator, largest first."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
        _wait(device)
    found: dict[str, float] = {}
    total = 0.0  # device time of the profiler's own events, if it has any
    for event in profiled.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.device_type == DeviceType.CPU:
            kind = kind_of(event.key)
            found[kind] = found.get(kind, 0.0) + spent
        else:
            total += spent
    # time of kernels without a known operator
    found[OTHER] = found.get(OTHER, 0.0) + max(0.0, total - sum(found.values()))
    scaled = {kind: spent / 1e3 / PROFILED_STEPS for kind, spent in found.items() if spent > 0}
    return dict(sorted(scaled.items(), key=lambda item: -item[1]))


def kind_of(operator: str) -> str:
    """Return the kind that an operator's time is counted as.

    >>> kind_of("aten::cudnn_convolution"), kind_of("tconv::max_pool2d"), kind_of("aten::add_")
    ('convolution', 'pool', 'other')
    """
    name = operator.removeprefix("tconv::")  # the prefix marks every operator of ours
    return next((kind for word, kind in OPERATORS.items() if word in name), OTHER)
