"""The report on a compiled model: one line per convolution or pool, served, fused or left."""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Entry:
    """One convolution or pool of a graph."""

    name: str  # of its module in the model, or of its node
    operation: str
    fused: tuple[str, ...] = ()  # operations that its kernel also computes, in order
    left: str | None = None  # why torch computes it; None if our kernels do
    note: str | None = None  # why the next operation is not fused

    def __str__(self) -> str:
        if self.left is not None:
            return f"{self.name}: {self.operation} is left: {self.left}"
        line = f"{self.name}: {' + '.join((self.operation, *self.fused))}"
        return line if self.note is None else f"{line} ({self.note})"


@dataclass
class CapturedGraph:
    """One graph that Dynamo captured, and its result."""

    name: str  # Dynamo's: frame / recapture
    entries: list[Entry]
    graph_break: str | None  # why the graph ends before the model does
    tensors: list[weakref.ref[Tensor]] = field(default_factory=list, repr=False)
    modules: list[weakref.ref[nn.Module]] = field(default_factory=list, repr=False)

    @property
    def served(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.left is None]

    @property
    def fused(self) -> list[Entry]:
        return [entry for entry in self.served if entry.fused]

    @property
    def left(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.left is not None]

    def held(self) -> set[int]:
        """Return the identities of its tensors and modules that still exist."""
        tensors = (tensor for each in self.tensors if (tensor := each()) is not None)
        modules = (module for each in self.modules if (module := each()) is not None)
        return {*map(id, tensors), *map(id, modules)}

    def __str__(self) -> str:
        lines = [f"graph {self.name}: {len(self.served)} served, {len(self.fused)} of them fused, "
                 f"{len(self.left)} left"]  # fmt: skip
        lines += [f"  {entry}" for entry in self.entries]
        if self.graph_break is not None:
            lines.append(f"  graph break: {self.graph_break}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The graphs of a model, in order of capture."""

    graphs: tuple[CapturedGraph, ...]
    breaks: tuple[str, ...] = ()  # reasons of graph breaks in this process, if there is no graph

    def __str__(self) -> str:
        if not self.graphs:
            return "\n".join(
                [
                    "nothing was compiled: call the compiled model first; if it was called, Dynamo "
                    "captured no graph of it",
                    *(f"  graph break in this process: {reason}" for reason in self.breaks),
                ]
            )
        if not any(graph.entries for graph in self.graphs):
            breaks = [str(graph) for graph in self.graphs if graph.graph_break is not None]
            return "\n".join(
                ["nothing was served: the model has no convolution and no pool", *breaks]
            )
        return "\n".join(map(str, self.graphs))


_captured: list[CapturedGraph] = []
_MOST_KEPT = 1000  # graphs; the oldest are dropped first


def keep(captured: CapturedGraph, graph: fx.GraphModule, inputs: list[object]) -> None:
    """Store a graph under the tensors that it reads and the modules of the captured frame."""
    attributes = [*graph.parameters(), *graph.buffers()]
    held = [value for value in inputs if isinstance(value, Tensor)]
    captured.tensors = [weakref.ref(tensor) for tensor in (*attributes, *held)]
    captured.modules = [weakref.ref(module) for module in _modules_of_frame()]
    _captured.append(captured)
    del _captured[:-_MOST_KEPT]


def report(model: nn.Module | None = None) -> Report:
    """Return a printable report of what ``torch.compile(..., backend="tconv")`` did to ``model``.

    Each convolution and pool has a line with the operations its kernel also computes, or why it was
    left to torch. Graph breaks are listed; if Dynamo captured no graph of the model, those of the
    whole process. A graph belongs to a model if it reads one of its parameters or buffers, or if it
    is a graph of the ``forward`` of one of its modules. A model is captured again when a condition
    guarded by Dynamo changes, and each capture is listed.

    Args:
        model: the compiled model, or the original passed to ``torch.compile``; None reports all
            captured graphs.

    >>> print(report(nn.Linear(2, 2)))  # doctest: +ELLIPSIS
    nothing was compiled: call the compiled model first; ...
    """
    if model is None:
        return _report_on(_captured)
    if not isinstance(model, nn.Module):
        raise TypeError(f"report takes a torch.nn.Module or None, not {type(model).__name__}")
    own = set(map(id, (*model.parameters(), *model.buffers(), *model.modules())))
    return _report_on([graph for graph in _captured if own & graph.held()])


def _report_on(graphs: list[CapturedGraph]) -> Report:
    from torch._dynamo.utils import counters

    reasons = [] if graphs else [*counters["graph_break"], *counters["unimplemented"]]
    lines = dict.fromkeys(reason.strip().splitlines()[0] for reason in reasons)
    return Report(tuple(graphs), tuple(lines))


def name_of(node: fx.Node) -> str:
    """Return the name of the module that made a node, or else the node's own name."""
    stack = node.meta.get("nn_module_stack")
    if stack and (inner := _innermost(list(stack.values())[-1])) is not None:
        return inner
    return node.name


def _innermost(entry: object) -> str | None:
    """Extract, for example, ``features.0`` from Dynamo's ``L['self']._modules['features'][0]``."""
    path = str(entry[0]) if isinstance(entry, tuple) else str(entry)
    path = re.sub(r"^[LG]\['\w+'\]", "", path).replace("._modules", "").replace("_modules", "")
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).replace("__self__.", "")
    return path.strip(".") or None


def _modules_of_frame() -> list[nn.Module]:
    """Return the modules among the variables of the frame that Dynamo is capturing.

    A model without parameters, of pools alone, can be found by them only.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        variables = InstructionTranslator.current_tx().output.root_tx.f_locals.values()
    except AttributeError:  # outside of a capture
        return []
    owners = [getattr(variable, "__self__", variable) for variable in variables]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def graph_name() -> str:
    """Return Dynamo's name of the graph being compiled, or ``?`` outside of a capture."""
    current = torch._guards.CompileContext.current_compile_id()
    return "?" if current is None else str(current)
