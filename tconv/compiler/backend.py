"""The backend ``"tconv"`` of ``torch.compile``: a graph's convolutions and pools on our kernels.

Dynamo captures the graph and guards all that it depends on: shapes, the training flag, attributes,
modules. We replace each chain of the graph by one call and give the rest to Inductor, or run it
eagerly. Parameters and buffers stay the model's own; gradients are those of our operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from tconv import functional
from tconv.compiler.calls import Call, own_operation, read
from tconv.compiler.chains import LINKS, Chain, Places, grow, unserved
from tconv.compiler.report import CapturedGraph, Entry, graph_name, keep, name_of
from tconv.ops.conv_transpose2d import transposed

RESTS = ("inductor", "eager")
OPTIONS = ("rest",)
_LEFT = {
    "conv3d": "there is no kernel for three dimensions",
    "conv_transpose3d": "there is no kernel for three dimensions",
}


def tconv_backend(
    graph: fx.GraphModule,
    inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The compiler backend that ``torch.compile`` calls with each captured graph.

    Args:
        graph: torch's operations, as Dynamo captured them.
        inputs: what the graph will be called with: parameters, buffers and the model's inputs.
        mode: one of ``torch.compile``'s, for the rest of the graph; ``"reduce-overhead"`` replays
            it as CUDA graphs.
        options: ``{"rest": "inductor"}`` (the default) or ``{"rest": "eager"}``: who runs what is
            neither a convolution nor a pool.

    Returns:
        A function that computes what the graph does.

    Raises:
        ValueError: for an option, a value or a mode that does not exist, or a mode with
            ``{"rest": "eager"}``.
    """
    rest, patches = _checked_rest(options), _checked_mode(mode)
    if rest == "eager" and patches:
        raise ValueError(f"mode {mode!r} is Inductor's: it cannot be used with rest 'eager'")
    entries = fuse(graph)
    captured = CapturedGraph(graph_name(), entries, _graph_break(graph))
    keep(captured, graph, inputs)
    if rest == "eager":
        return graph.forward  # type: ignore[no-any-return]
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs, config_patches=patches)  # type: ignore[no-any-return, return-value]


def _checked_rest(options: dict[str, Any] | None) -> str:
    options = dict(options or {})
    rest = options.pop("rest", "inductor")
    if options:
        raise ValueError(
            f"unknown option {next(iter(options))!r} of backend 'tconv'; those that exist: "
            f"{', '.join(OPTIONS)}"
        )
    if rest not in RESTS:
        raise ValueError(f"option 'rest' is {rest!r}; it is one of {', '.join(RESTS)}")
    return str(rest)


def _checked_mode(mode: str | None) -> dict[str, Any]:
    """Return Inductor's settings for one of the modes of ``torch.compile``."""
    if mode in (None, "default"):
        return {}
    from torch._inductor import list_mode_options

    known = list_mode_options()
    if mode not in known:
        raise ValueError(f"mode is {mode!r}; it is one of {', '.join(known)}")
    return dict(known[mode])


def _graph_break(graph: fx.GraphModule) -> str | None:
    reason = getattr(graph, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None
    place = reason.user_stack[-1] if reason.user_stack else None
    line = str(reason.reason).strip().splitlines()[0]
    return line if place is None else f"{line} (line {place.lineno}: {place.line})"


# ---- rewriting a graph ------------------------------------------------------------------------


def fuse(graph: fx.GraphModule) -> list[Entry]:
    """Replace the convolutions, pools and chains of a graph, in place, by calls of our functions.

    Args:
        graph: torch's operations, as Dynamo or ``torch.export`` capture them; nodes know the
            shape and dtype of their values.

    Returns:
        What became of each convolution and pool, in the order of the graph.
    """
    entries: list[Entry] = []
    for each in graph.modules():  # bodies of higher-order operators such as ``checkpoint`` as well
        if isinstance(each, fx.GraphModule):
            entries += _fuse_one(each)
    return entries


def _fuse_one(graph: fx.GraphModule) -> list[Entry]:
    entries: list[Entry] = []
    places, fused = Places(graph.graph), set[fx.Node]()
    for node in list(graph.graph.nodes):
        if node in fused:
            continue
        if (call := read(node)) is None:
            if (operation := own_operation(node)) is not None:
                entries.append(Entry(name_of(node), operation))
        elif call.name in _LEFT:
            entries.append(Entry(name_of(node), call.name, left=_LEFT[call.name]))
        elif call.name in _REPLACED:
            entry, nodes = _served(graph.graph, node, call, places)
            entries.append(entry)
            fused.update(nodes)
            places.erase(nodes)
    graph.graph.lint()
    graph.recompile()
    return entries


def _served(
    graph: fx.Graph, node: fx.Node, call: Call, places: Places
) -> tuple[Entry, list[fx.Node]]:
    """Replace a convolution with its chain, or a pool; return the nodes that are gone, too."""
    name = name_of(node)
    if (reason := unserved(call, node)) is not None:
        return Entry(name, call.name, left=reason), []
    if call.name not in LINKS:
        _replace(graph, node, *_REPLACED[call.name](call))
        return Entry(name, call.name), [node]
    chain = grow(node, call, places)
    operation = call.name.removeprefix("own_")
    entry = Entry(name, operation, tuple(chain.links), note=chain.stopped)
    _replace(graph, chain.last, *_fused_call(chain))
    for link in reversed(chain.nodes[:-1]):
        graph.erase_node(link)
    return entry, chain.nodes


def _replace(
    graph: fx.Graph, node: fx.Node, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with graph.inserting_before(node):
        made = graph.call_function(function, arguments, named)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _window(call: Call) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups")
    return {name: call[name] for name in names}


def _conv_arguments(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The tensors and the window of a convolution, torch's or our own operator's."""
    if call.name != "own_conv2d":
        return (call["input"], call["weight"], call["bias"]), _window(call)
    window = call["window"]
    named = {
        "stride": tuple(window[0:2]),
        "padding": tuple(window[2:4]),
        "dilation": tuple(window[4:6]),
        "groups": window[6],
        "precision": call["precision"],
    }
    return (call["x"], call["w"], call["bias"]), named


def _fused_call(chain: Chain) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The call that computes a chain: a function of ours and its arguments."""
    fused: dict[str, Any] = {}
    if (norm := chain.batch_norm) is not None:
        fused |= {name: norm[name] for name in ("running_mean", "running_var", "eps")}
        fused |= {"norm_weight": norm["weight"], "norm_bias": norm["bias"]}
    if chain.residual is not None:
        fused |= {"residual": chain.residual, "residual_after": chain.residual_last}
    if (activation := chain.activation) is not None:
        tanh_form = activation.arguments.get("approximate") == "tanh"
        fused["activation"] = "gelu_tanh" if tanh_form else activation.name
        if activation.name == "leaky_relu":
            fused["negative_slope"] = activation["negative_slope"]
    if chain.call.name == "own_conv_transpose2d":
        return _own_transposed(chain.call, fused)
    if chain.call.name not in ("conv2d", "own_conv2d"):
        function, tensors, named = _REPLACED[chain.call.name](chain.call)
        return function, tensors, named | fused
    tensors, named = _conv_arguments(chain.call)
    if len(chain.nodes) == 1:
        return functional.conv2d, tensors, named
    fused["pool"] = chain.pool is not None
    return functional.conv2d_fused, tensors, named | fused


def _own_transposed(
    call: Call, fused: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The call of a chain that begins with our own operator, whose call has the result's size."""
    norm = (fused.get(name) for name in ("norm_weight", "norm_bias", "running_mean", "running_var"))
    operands = (call["x"], call["w"], call["bias"], fused.get("residual"), *norm)
    form = (fused.get("eps", 0.0), call["extent"], (0, 0), call["window"])
    slope, after = fused.get("negative_slope", 0.0), fused.get("residual_after", False)
    how = (fused.get("activation"), slope, after, call["precision"])
    return transposed, (operands, *form, *how), {}


def _by_name(function: Any, tensors: int, *names: str) -> Any:
    """A function's call from a call read: its first ``tensors`` arguments, the others by name."""

    def made(call: Call) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        operands = tuple(call[name] for name in ("input", "weight", "bias")[:tensors])
        return function, operands, {name: call[name] for name in names}

    return made


_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_REPLACED: dict[str, Any] = {
    "conv2d": None,  # by ``_fused_call``, as conv2d or conv2d_fused
    "own_conv2d": None,
    "own_conv_transpose2d": None,
    "conv1d": _by_name(functional.conv1d, 3, "stride", "padding", "dilation", "groups"),
    "conv_transpose1d": _by_name(functional.conv_transpose1d, 3, *_TRANSPOSED),
    "conv_transpose2d": _by_name(functional.conv_transpose2d, 3, *_TRANSPOSED),
    "max_pool2d": _by_name(functional.max_pool2d, 1, "kernel_size", "stride", "padding",
                           "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": _by_name(functional.avg_pool2d, 1, "kernel_size", "stride", "padding",
                           "ceil_mode", "count_include_pad", "divisor_override"),
    "max_pool1d": _by_name(functional.max_pool1d, 1, "kernel_size", "stride", "padding",
                           "dilation", "ceil_mode", "return_indices"),
    "avg_pool1d": _by_name(functional.avg_pool1d, 1, "kernel_size", "stride", "padding",
                           "ceil_mode", "count_include_pad"),
    "adaptive_avg_pool2d": _by_name(functional.adaptive_avg_pool2d, 1, "output_size"),
    "adaptive_max_pool2d": _by_name(functional.adaptive_max_pool2d, 1, "output_size",
                                    "return_indices"),
    "max_unpool2d": _by_name(functional.max_unpool2d, 1, "indices", "kernel_size", "stride",
                             "padding", "output_size"),
}  # fmt: skip
