"""Bring a torch model onto our kernels: ``convert(model, fuse=True)``.

Modules are changed where they stand: parameters, buffers, hooks, names and training state stay as
they are. A chain of modules that one kernel computes is fused by letting the convolution do the
work and the others pass its result on; in evaluation mode the convolution's kernel applies a
batch norm of the chain from its own tensors, and in training mode the batch norm runs by itself.
So the ``state_dict`` stays torch's, and the model can be trained further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tconv.modules import AvgPool2d, Conv2d, MaxPool2d
from tconv.problem import ITEMSIZE, dtype_name

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
}
OURS = tuple(TWINS.values())
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

# ---- the report -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One module by its name in the model, and what became of it."""

    name: str
    note: str

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}: {self.note}"


@dataclass
class Conversion:
    """What ``convert`` did: the model itself, what it changed, and what it left and why."""

    model: nn.Module
    changed: list[Entry] = field(default_factory=list)
    fused: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        if not (self.changed or self.fused or self.left):
            return "nothing to convert: the model has no convolution and no pool"
        parts = (("changed", self.changed), ("fused", self.fused), ("left as it was", self.left))
        return "\n".join(
            line
            for title, entries in parts
            if entries
            for line in (f"{title} ({len(entries)}):", *(f"  {entry}" for entry in entries))
        )


# ---- modules of a fused chain ---------------------------------------------------------------


@dataclass(eq=False)
class Chain:
    """A convolution and the modules after it that its kernel stands in for."""

    bn: nn.BatchNorm2d | None = None
    relu: nn.Module | None = None
    pool: nn.Module | None = None

    def active(self) -> bool:
        """Whether one kernel computes all: a batch norm that is being trained keeps them apart."""
        return self.bn is None or not self.bn.training

    def run(self, conv: Conv2d, input: Tensor) -> Tensor:
        """All of the chain at once."""
        epilogue: dict[str, Any] = {}
        if self.bn is not None:
            epilogue = {
                "running_mean": self.bn.running_mean,
                "running_var": self.bn.running_var,
                "norm_weight": self.bn.weight,
                "norm_bias": self.bn.bias,
                "eps": self.bn.eps,
            }
        epilogue["activation"] = None if self.relu is None else "relu"
        epilogue["pool"] = self.pool is not None
        return conv.fused(input, conv.weight, conv.bias, **epilogue)


class FusedConv2d(Conv2d):
    """A ``Conv2d`` that does the work of the modules after it."""

    chain: Chain

    def forward(self, input: Tensor) -> Tensor:
        return self.chain.run(self, input) if self.chain.active() else super().forward(input)


class PassedBatchNorm2d(nn.BatchNorm2d):
    """A ``BatchNorm2d`` that the convolution before it has done already, in evaluation mode."""

    chain: Chain

    def forward(self, input: Tensor) -> Tensor:
        return input if self.chain.active() else super().forward(input)


class PassedReLU(nn.ReLU):
    """A ``ReLU`` that the convolution before it has done already."""

    chain: Chain

    def forward(self, input: Tensor) -> Tensor:
        return input if self.chain.active() else super().forward(input)


class PassedMaxPool2d(MaxPool2d):
    """A ``MaxPool2d`` that the convolution before it has done already."""

    chain: Chain

    def forward(self, input: Tensor) -> Tensor:
        return input if self.chain.active() else super().forward(input)


class FusedSequential(nn.Sequential):
    """A ``Sequential`` that runs chains of its modules at once; each alone is what it was."""

    chains: dict[str, Chain]  # by the convolution's name

    def forward(self, input: Any) -> Any:
        skipped: set[int] = set()
        for name, module in self._modules.items():
            assert module is not None
            chain = self.chains.get(name)
            if id(module) in skipped:
                continue
            if chain is None or not chain.active():
                input = module(input)
                continue
            assert isinstance(module, Conv2d)
            input = chain.run(module, input)
            skipped = {id(part) for part in (chain.bn, chain.relu, chain.pool) if part is not None}
        return input


# ---- finding chains -------------------------------------------------------------------------


class _Tracer(fx.Tracer):  # type: ignore[misc]
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = module.__module__.startswith("tconv.") and not list(module.children())
        scripted = isinstance(module, torch.jit.ScriptModule)
        return ours or scripted or bool(super().is_leaf_module(module, name))


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, hooks, None) for hooks in HOOKS)


def _halves(pool: nn.Module) -> bool:
    """Whether a max-pool takes 2x2 windows at stride 2, and nothing else."""

    def is_pair(value: Any, wanted: int) -> bool:
        return value == wanted or tuple(value if isinstance(value, tuple) else ()) == (wanted,) * 2

    return (
        is_pair(pool.kernel_size, 2)
        and is_pair(pool.stride, 2)
        and is_pair(pool.padding, 0)
        and is_pair(pool.dilation, 1)
        and not pool.ceil_mode
        and not pool.return_indices
    )


def _grown(chain: Chain, module: nn.Module) -> bool:
    """Whether ``module`` became the next link of ``chain``."""
    if _hooked(module) or chain.pool is not None:
        return False
    if type(module) is nn.BatchNorm2d and chain.bn is None and chain.relu is None:
        if module.running_mean is None:
            return False
        chain.bn = module
    elif type(module) is nn.ReLU and chain.relu is None:
        chain.relu = module
    elif type(module) in (nn.MaxPool2d, MaxPool2d) and chain.relu is not None and _halves(module):
        chain.pool = module
    else:
        return False
    return True


def _starts(module: nn.Module) -> bool:
    return type(module) is Conv2d and not _hooked(module)


def _traced_chains(model: nn.Module, report: Conversion) -> Iterator[tuple[str, nn.Module, Chain]]:
    """Chains that the model's graph shows: each link is called once, by one."""
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[node.target]) for node in graph.nodes if node.op == "call_module")

    def module_of(node: fx.Node) -> nn.Module | None:
        found = modules[str(node.target)] if node.op == "call_module" else None
        return found if found is not None and calls[id(found)] == 1 else None

    for node in graph.nodes:
        conv = module_of(node)
        if conv is None or not _starts(conv):
            continue
        chain, last = Chain(), node
        while len(last.users) == 1:
            follower = next(iter(last.users))
            module = module_of(follower)
            if module is None or follower.all_input_nodes != [last] or not _grown(chain, module):
                if _is_relu(follower, modules) and chain.relu is None:
                    report.left.append(Entry(node.target, _why_apart(follower, modules)))
                break
            last = follower
        if last is not node:
            yield node.target, conv, chain


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.target in (nn.functional.relu, torch.relu, torch.relu_, "relu", "relu_")


def _why_apart(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op != "call_module":
        return "not fused: its ReLU is a function that forward calls"
    if _hooked(modules[str(node.target)]):
        return "not fused: a hook watches its ReLU"
    return "not fused: its ReLU module is called elsewhere too"


def _walked_chains(model: nn.Module) -> Iterator[tuple[str, nn.Sequential, dict[str, Chain]]]:
    """Chains that stand side by side in a ``Sequential``, for models that cannot be traced."""
    for name, container in model.named_modules():
        if type(container) is not nn.Sequential:
            continue
        chains: dict[str, Chain] = {}
        links = list(container.named_children())
        place = 0
        while place < len(links):
            first, conv = links[place]
            place += 1
            if not _starts(conv):
                continue
            chain, begin = Chain(), place
            while place < len(links) and _grown(chain, links[place][1]):
                place += 1
            if place > begin:
                chains[first] = chain
        if chains:
            yield name, container, chains


def _links(chain: Chain) -> str:
    parts = [("BatchNorm2d", chain.bn), ("ReLU", chain.relu), ("MaxPool2d", chain.pool)]
    return " + ".join(["Conv2d", *(name for name, module in parts if module is not None)])


def _fuse(model: nn.Module, report: Conversion) -> None:
    try:
        chains = list(_traced_chains(model, report))
    except Exception as error:  # whatever a model's own forward raises on symbols
        line = str(error).strip().splitlines()
        reason = line[0] if line else type(error).__name__
        for name, container, found in list(_walked_chains(model)):
            container.__class__ = FusedSequential
            container.chains = found  # type: ignore[assignment]
            for first, chain in found.items():
                full = f"{name}.{first}" if name else first
                report.fused.append(Entry(full, f"{_links(chain)}, when its Sequential runs"))
        report.left.append(Entry("", f"only Sequentials were searched for chains: {reason}"))
        return
    for name, conv, chain in chains:
        conv.__class__ = FusedConv2d
        passed = ((chain.bn, PassedBatchNorm2d), (chain.relu, PassedReLU),
                  (chain.pool, PassedMaxPool2d))  # fmt: skip
        conv.chain = chain  # type: ignore[assignment]
        for module, kind in passed:
            if module is not None:
                module.__class__ = kind
                module.chain = chain  # type: ignore[assignment]
        report.fused.append(Entry(name, _links(chain)))


# ---- changing modules -----------------------------------------------------------------------


def _reason_to_leave(module: nn.Module) -> str | None:
    """Why a module that convolves or pools stays; None for all that is ours or does neither."""
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted: its code is fixed"
    if isinstance(module, OURS) or type(module) in TWINS:
        return None
    if "quantized" in type(module).__module__ and "Conv" in kind:
        return f"{kind} computes in integers"
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return f"{kind} is transposed; there is no kernel for it"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and "Conv" in kind:
        return f"{kind} has no parameters before its first call"
    if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return f"{kind} is a subclass that may compute otherwise"
    if isinstance(module, nn.modules.conv._ConvNd):
        return f"{kind} is not two-dimensional"
    if type(module).__module__ == "torch.nn.modules.pooling":
        return f"{kind} has no kernel here"
    return None


def _visited(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, each once; of a scripted one not what lies within."""
    scripted: list[str] = []
    for name, module in model.named_modules():
        if any(not inside or name.startswith(f"{inside}.") for inside in scripted):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(name)
        yield name, module


def convert(model: nn.Module, fuse: bool = False) -> Conversion:
    """Have ``model`` compute on our kernels; it is changed in place.

    Every ``Conv2d``, ``MaxPool2d`` and ``AvgPool2d`` becomes its tconv twin, with its parameters,
    hooks, name in the ``state_dict`` and training state. With ``fuse``, chains of Conv2d,
    BatchNorm2d (in evaluation mode), ReLU and MaxPool2d(2) run as one kernel each. Chains are
    found in the model's graph by ``torch.fx``, or, where it cannot be traced, in Sequentials.
    The modules of a fused chain belong together: the convolution alone gives the chain's result.

    Args:
        model: any module; one without convolutions and pools comes back unchanged.
        fuse: whether to fuse chains.

    Returns:
        A report to print: ``.model`` is the model, ``.changed``, ``.fused`` and ``.left`` say what
        became of its modules, and why some were left as they were.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    >>> print(convert(model, fuse=True))
    changed (1):
      0: Conv2d
    fused (1):
      0: Conv2d + ReLU
    left as it was (1):
      2: AdaptiveAvgPool2d has no kernel here
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes a torch.nn.Module, not {type(model).__name__}")
    report = Conversion(model)
    for name, module in _visited(model):
        reason = _reason_to_leave(module)
        kind = type(module)
        if reason is None and kind in TWINS:
            weight = getattr(module, "weight", None)
            if weight is not None and dtype_name(weight.dtype) not in ITEMSIZE:
                reason = f"its parameters are {dtype_name(weight.dtype)}"
            else:
                module.__class__ = TWINS[kind]
                report.changed.append(Entry(name, kind.__name__))
        if reason is not None:
            report.left.append(Entry(name, reason))
    if fuse:
        _fuse(model, report)
    return report
