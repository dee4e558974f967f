"""Find chains in a graph that one kernel computes: a convolution and the operations after it.

    conv2d, batch norm (evaluation), residual add, activation, 2x2 max-pool
    conv1d, conv_transpose2d or conv_transpose1d, batch norm (evaluation), residual add, activation

in the order of occurrence; the residual may come before or after the activation. A link joins the
chain if the value before it has no other reader, if it keeps the dtype and (except for a pool) the
shape, and if nothing between the convolution and the link writes to memory. The last condition is
needed because the fused call reads its operands at the place of the last link.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tconv.compiler.calls import Call, mutates, read
from tconv.problem import ACTIVATIONS, FROM_RESULT


@dataclass
class Chain:
    """A convolution of a graph and the links that its kernel also computes."""

    conv: fx.Node
    call: Call
    nodes: list[fx.Node] = field(default_factory=list)  # the convolution first
    batch_norm: Call | None = None
    residual: fx.Node | None = None
    residual_last: bool = False  # whether it is added after the activation
    activation: Call | None = None
    pool: Call | None = None
    stopped: str | None = None  # why the next link, which is of a fusible kind, is not fused

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def links(self) -> list[str]:
        """The names of the operations after the convolution, in order."""
        names = []
        for node in self.nodes[1:]:
            call = read(node)
            assert call is not None
            names.append(call.name)
        return names


# The links that the kernels of each convolution can compute.
_LINKS = frozenset({"batch_norm", "add", *ACTIVATIONS})
LINKS: dict[str, frozenset[str]] = {
    "conv2d": _LINKS | {"max_pool2d"},
    "own_conv2d": _LINKS | {"max_pool2d"},
    "conv1d": _LINKS,
    "conv_transpose2d": _LINKS,
    "own_conv_transpose2d": _LINKS,
    "conv_transpose1d": _LINKS,
}


def value_of(node: Any) -> Any:
    """Return the fake tensor of a node's value, which has its shape, dtype and device."""
    if not isinstance(node, fx.Node):
        return None
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def _number(value: Any) -> Any:
    """Return the number that a call is given; under ``dynamic=True`` its argument may be a node."""
    return value_of(value) if isinstance(value, fx.Node) else value


class Places:
    """Where the nodes of a graph stand in its order, and which of them write to memory.

    The order is that of the graph before it is rewritten, in which every chain is looked for.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: place for place, node in enumerate(graph.nodes)}
        self._writes = [place for node, place in self.order.items() if mutates(node)]

    def writes_between(self, first: fx.Node, last: fx.Node) -> int:
        """Return how many nodes between ``first`` and ``last`` write to memory."""
        start = bisect_right(self._writes, self.order[first])
        return bisect_left(self._writes, self.order[last]) - start

    def erase(self, nodes: list[fx.Node]) -> None:
        """Forget nodes that have been replaced by a call that writes to no existing memory."""
        for node in nodes:
            place = bisect_left(self._writes, self.order[node])
            if self._writes[place : place + 1] == [self.order[node]]:
                del self._writes[place]


def grow(conv: fx.Node, call: Call, places: Places) -> Chain:
    """Return the longest chain that begins at ``conv``.

    Args:
        conv: a convolution that our kernels compute, of a kind in ``LINKS``.
        call: its operation, as returned by ``read``.
        places: the places of the graph's nodes.
    """
    chain = Chain(conv, call, [conv])
    while chain.pool is None:
        follower = _only_reader(chain)
        if follower is None:
            break
        link = read(follower)
        if link is None or not _could_join(chain, link):
            break
        if (reason := _refused(chain, follower, link, places)) is not None:
            chain.stopped = f"{link.name} is not fused: {reason}"
            break
        _join(chain, follower, link)
    _drop_overwritten(chain)
    return chain


def _only_reader(chain: Chain) -> fx.Node | None:
    users = list(chain.last.users)
    if len(users) == 1:
        return users[0]
    names = [call.name for user in users if (call := read(user)) is not None
             and _could_join(chain, call)]  # fmt: skip
    if names:
        chain.stopped = f"{names[0]} is not fused: other operations read its input too"
    return None


def _could_join(chain: Chain, link: Call) -> bool:
    """Return whether the order of links allows this kind next."""
    if link.name == "batch_norm":
        return chain.batch_norm is None and chain.residual is None and chain.activation is None
    if link.name == "add":
        return chain.residual is None
    if link.name in ACTIVATIONS:
        return chain.activation is None and not chain.residual_last
    return link.name == "max_pool2d"


def _refused(chain: Chain, node: fx.Node, link: Call, places: Places) -> str | None:
    """Return why ``node`` cannot be the chain's next link, or None if it can."""
    if link.name not in LINKS[chain.call.name]:
        return f"the kernels of {chain.call.name} do not compute it"
    own = sum(mutates(each) for each in chain.nodes[1:])  # these write only to the chain's values
    if places.writes_between(chain.conv, node) > own:
        return "an operation between them writes to memory or changes a mode"
    before, after = value_of(chain.last), value_of(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return "the graph does not say what it returns"
    if before.dtype != after.dtype:
        return f"it changes the dtype from {before.dtype} to {after.dtype}"
    if link.name == "max_pool2d":
        return _pool_refused(link)
    if before.shape != after.shape:
        return "it changes the shape"
    if link.name == "batch_norm":
        return _batch_norm_refused(chain, link, before)
    if link.name == "add":
        return _residual_refused(chain, link, before)
    if link.name == "leaky_relu" and _number(link["negative_slope"]) < 0:
        return "its slope is negative"
    return None


def _batch_norm_refused(chain: Chain, link: Call, before: Tensor) -> str | None:
    if before.dim() == (2 if chain.call.name.endswith("1d") else 3):
        return "its input has no batch"
    if link["training"]:
        return "it is in training mode"
    if link["running_mean"] is None or link["running_var"] is None:
        return "it has no running statistics"
    return None


def _residual_refused(chain: Chain, link: Call, before: Tensor) -> str | None:
    first, second = link["input"], link["other"]
    if link["alpha"] != 1:
        return f"it scales its second operand by {link['alpha']}"
    if first is second:
        return "it adds a value to itself"
    if link["inplace"] and first is not chain.last:
        return "it writes into the other operand"
    other = value_of(second if first is chain.last else first)
    if not isinstance(other, Tensor):
        return "it adds a number"
    if other.shape != before.shape or other.dtype != before.dtype:
        return "its operands differ in shape or dtype"
    return None


def _pool_refused(link: Call) -> str | None:
    def pair(value: Any) -> tuple[Any, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * 2 if len(values) == 1 else values

    window, stride = link["kernel_size"], link["stride"]
    halves = (
        pair(window) == (2, 2)
        and (stride is None or stride == [] or pair(stride) == (2, 2))
        and pair(link["padding"]) == (0, 0)
        and pair(link["dilation"]) == (1, 1)
    )
    if not halves:
        return "its windows are not 2x2 at stride 2"
    if link["ceil_mode"]:
        return "it is in ceil mode"
    return "it returns indices" if link["return_indices"] else None


def _join(chain: Chain, node: fx.Node, link: Call) -> None:
    if link.name == "batch_norm":
        chain.batch_norm = link
    elif link.name == "add":
        first, second = link["input"], link["other"]
        chain.residual = second if first is chain.last else first
        chain.residual_last = chain.activation is not None
    elif link.name == "max_pool2d":
        chain.pool = link
    else:
        chain.activation = link
    chain.nodes.append(node)


def _drop_overwritten(chain: Chain) -> None:
    """Cut the chain before an activation whose result is overwritten before backward reads it."""
    if chain.activation is None or chain.activation.name not in FROM_RESULT:
        return
    if not _overwritten(chain.last):
        return
    links = chain.nodes[1:]
    chain.nodes, chain.batch_norm, chain.residual = chain.nodes[:1], None, None
    chain.residual_last, chain.activation, chain.pool = False, None, None
    for node in links:
        link = read(node)
        assert link is not None
        if link.name in FROM_RESULT:
            chain.stopped = f"{link.name} is not fused: its result is overwritten later"
            return
        _join(chain, node, link)


def _overwritten(value: fx.Node) -> bool:
    """Return whether a node may write to the memory of ``value``, directly or through a view."""
    memory, pending, seen = _storage(value), [value], {value}
    while pending:
        node = pending.pop()
        for user in node.users:
            if _overwrites(user, node):
                return True
            if user not in seen and _storage(user) == memory is not None:
                seen.add(user)
                pending.append(user)
    return False


def _storage(node: fx.Node) -> int | None:
    """Return the identity of the memory of a node's value, which its views share."""
    value = value_of(node)
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None  # torch forbids writes to several views of one call, such as ``chunk``
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)  # of ``torch.func.grad`` or ``vmap``
    return value.untyped_storage()._cdata


def _overwrites(user: fx.Node, value: fx.Node) -> bool:
    """Return whether ``user`` may write to ``value``, which it reads: ``y += value`` does not."""
    call = read(user)
    if call is None:
        return mutates(user)
    return bool(call["inplace"]) and call["input"] is value


def unserved(call: Call, node: fx.Node) -> str | None:
    """Return why torch must compute a convolution or pool, or None if our kernels can."""
    for operand in ("input", "weight"):
        value = value_of(call.arguments.get(operand))
        if value is None:
            continue
        if not isinstance(value, Tensor):
            return f"its {operand} is not a tensor"
        if value.layout != torch.strided:
            return f"its {operand} is {value.layout}"
        if value.is_quantized or value.dtype not in SERVED_DTYPES:
            return f"its {operand} is {value.dtype}"
        if value.device.type not in ("cpu", "cuda"):
            return f"its {operand} is on {value.device.type}"
    return None


SERVED_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
