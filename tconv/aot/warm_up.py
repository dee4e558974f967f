"""Compile ahead, in worker processes, every kernel that a model needs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tconv import kernel_cache
from tconv.aot.build import ENVIRONMENT, Built, ensure
from tconv.aot.plan import planned
from tconv.geometry import PASSES, Pass
from tconv.launch import Launch, interpreting, runs_triton, target_for
from tconv.problem import ITEMSIZE, dtype_name
from tconv.target import Target, named_target
from tconv_workers import Failure, Task, Workers, memory_of

CPU = torch.device("cpu")
SECONDS = 300.0  # for one kernel: ptxas takes minutes where it spills
NOTHING = (
    "nothing to compile: {where}; on a GPU, or with target={example!r}, its kernels are compiled"
)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a warm-up, and Triton's hash under which its cache keeps it."""

    name: str
    key: str


@dataclass(frozen=True)
class WarmUp:
    """The result of a warm-up: the kernels compiled, those that were there, and what failed."""

    target: Target | None  # None where nothing is compiled
    compiled: tuple[Kernel, ...] = ()
    there: tuple[Kernel, ...] = ()  # in Triton's cache before
    failed: tuple[tuple[str, str], ...] = ()  # kernel, reason
    note: str = ""

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """All kernels that are in Triton's cache now."""
        return self.compiled + self.there

    def __str__(self) -> str:
        if self.target is None:
            return self.note
        counts = f"{len(self.compiled)} kernels compiled, {len(self.there)} already there"
        lines = [f"{self.target.name}: {counts}, {len(self.failed)} failed"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.failed])

    def as_json(self) -> dict[str, object]:
        """Return the counts and the failures."""
        return {
            "target": None if self.target is None else self.target.name,
            "compiled": len(self.compiled),
            "there": len(self.there),
            "failed": [{"kernel": name, "reason": reason} for name, reason in self.failed],
            "note": self.note,
        }


def warm_up(
    model: nn.Module,
    sizes: Sequence[Sequence[int]],
    *,
    dtypes: Sequence[torch.dtype] = (),
    passes: Sequence[Pass] | None = None,
    target: str | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    workers: int | None = None,
    progress: bool = True,
) -> WarmUp:
    """Compile every kernel that ``model`` needs for inputs of ``sizes``, before it is called.

    A copy of the model runs on tensors without memory, so nothing is computed and the model stays
    as it is. Each of its convolutions and pools is planned as in a real call; worker processes
    compile the kernels into Triton's cache, where a call then finds them.

    Call it as the model will be called: under ``torch.autocast`` if the calls are, and with the
    model in training or evaluation mode.

    Args:
        model: a module that takes one tensor.
        sizes: shapes of its input, each (batch, channels, height, width) or, for sequences,
            (batch, channels, length).
        dtypes: data types of parameters and input, the model's own by default.
        passes: ``fprop`` alone is inference under ``torch.no_grad``; with ``dgrad`` or ``wgrad``
            the model is run as in training. By default all three if the model is in training
            mode, else ``fprop``.
        target: an architecture (``"sm_80"``, ``"sm_90"``, ``"sm_100"``, ``"gfx942"``) to compile
            for instead of this machine's GPU, which may be absent.
        memory_format: the input's, contiguous by default.
        workers: number of processes, by default one for each of the machine's cores.
        progress: whether to show a progress bar if standard error is a terminal.

    Returns:
        A printable summary: ``compiled``, ``there`` (in the cache before), ``failed`` with reasons.
        In Triton's interpreter, and on a CPU without an emulated GPU, ``note`` says that there is
        nothing to compile.

    Raises:
        TypeError: if ``model`` is not a module, or a compiled or scripted one.
        ValueError: for an unknown target, pass or dtype, or sizes that are none.
        RuntimeError: if the model does not run on inputs of these sizes.
    """
    shapes = _checked_sizes(sizes)
    wanted = _checked_passes(passes, model)
    for dtype in dtypes:
        if dtype_name(dtype) not in ITEMSIZE:
            raise ValueError(f"dtype {dtype} has no kernels; there are: {', '.join(ITEMSIZE)}")
    gpu = _target(model, target)
    if isinstance(gpu, str):
        return WarmUp(None, note=NOTHING.format(where=gpu, example="sm_90"))
    launches = planned(model, shapes, tuple(dtypes) or (None,), wanted, gpu, memory_format)
    return compile_all(launches, gpu, workers, progress)


def compile_all(
    launches: Sequence[Launch], target: Target, workers: int | None = None, progress: bool = True
) -> WarmUp:
    """Compile the kernels of ``launches`` in worker processes, as far as they are not cached."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; there must be at least 1")
    kernel_cache.guard()  # before the workers inherit the environment
    count = min(workers or os.cpu_count() or 1, max(1, len(launches)))
    tasks = [Task(place, ensure, (launch, target)) for place, launch in enumerate(launches)]
    results: dict[object, Built | Failure] = {}
    with (
        Workers(count, ENVIRONMENT, memory=memory_of(count)) as pool,
        _progress(len(tasks), progress) as advance,
    ):
        for task, result, _ in pool.run(tasks, SECONDS):
            results[task.key] = result
            advance()
    compiled: list[Kernel] = []
    there: list[Kernel] = []
    failed: list[tuple[str, str]] = []
    for place, launch in enumerate(launches):
        result = results[place]
        if isinstance(result, Failure):
            failed.append((launch.kernel, f"{result.reason}: {result.detail}"))
        else:
            (there if result.hit else compiled).append(Kernel(launch.kernel, result.key))
    return WarmUp(target, tuple(compiled), tuple(there), tuple(failed))


# ---- arguments ------------------------------------------------------------------------------


def _checked_sizes(sizes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    found = []
    for size in sizes:
        try:
            shape = tuple(int(extent) for extent in size)
        except TypeError:
            raise ValueError(
                f"sizes are input shapes such as (8, 3, 224, 224), not {size!r}"
            ) from None
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise ValueError(f"{shape} is not an input shape such as (8, 3, 224, 224)")
        found.append(shape)
    if not found:
        raise ValueError("sizes is empty: give the shape of at least one input")
    return found


def _checked_passes(passes: Sequence[Pass] | None, model: nn.Module) -> list[Pass]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"warm_up takes a torch.nn.Module, not {type(model).__name__}")
    compiled = hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    if compiled or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"warm_up cannot look into a {type(model).__name__}: give it the module that was "
            "compiled, or tconv.export(model, args).module() for the kernels of fused chains"
        )
    if passes is None:
        return list(PASSES) if model.training else ["fprop"]
    for each in passes:
        if each not in PASSES:
            raise ValueError(f"unknown pass {each!r}; there are: {', '.join(PASSES)}")
    return [each for each in PASSES if each in passes]


def _target(model: nn.Module, name: str | None) -> Target | str:
    """Return the target to compile for, or why there is none."""
    if name is not None:
        return named_target(name)
    return here(next((each.device for each in model.parameters()), CPU))


def here(device: torch.device = CPU) -> Target | str:
    """Return the target of the GPU that would compute tensors on ``device``, or why there is none.

    A model on the CPU may still be moved to the GPU that is there.
    """
    if interpreting():
        return "Triton's interpreter runs the kernels' source (TRITON_INTERPRET=1)"
    if not runs_triton(device) and torch.cuda.is_available():
        device = torch.device("cuda")
    if not runs_triton(device):
        return "torch's own operators compute here, without a GPU"
    return target_for(device)


# ---- progress -------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Context manager: a function that advances a bar on standard error by one kernel.

    Without ``rich`` the bar is a plain count. Nothing is written if stderr is not a terminal.
    """
    if not shown or not total or sys.stderr is None or not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            print(f"\rCompiling kernels: {done} of {total}", end="", file=sys.stderr, flush=True)

        yield count
        print(file=sys.stderr)
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Compiling kernels", total=total)
        yield lambda: bar.advance(task)
