"""The backend's options, what it leaves, and torch's ways to run a compiled model."""

from __future__ import annotations

import copy
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import tconv
from tconv.compiler import tconv_backend
from tconv.launch import recorded
from tests.tconv.compiler.test_architectures import assert_same, built, compiled_twin, trained_alike


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).eval()


def test_the_installed_package_registers_the_backend() -> None:
    """The entry point in pyproject.toml names the function that ``torch.compile`` looks up."""
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    (line,) = text.partition("[project.entry-points.torch_dynamo_backends]\n")[2].split("\n")[:1]
    name, value = (part.strip().strip('"') for part in line.split("="))
    assert EntryPoint(name, value, "torch_dynamo_backends").load() is tconv_backend
    assert name == "tconv"


# ---- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast": True}, "unknown option 'fast' of backend 'tconv'; those that exist: rest"),
        ({"rest": "jax"}, "option 'rest' is 'jax'; it is one of inductor, eager"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(options: dict[str, object], message: str) -> None:
    compiled = torch.compile(small(), backend="tconv", options=options)
    with pytest.raises(BackendCompilerFailed, match=message):
        compiled(torch.randn(1, 3, 8, 8))


def around() -> nn.Sequential:
    """A chain of ours with operations of torch's around it, in training mode."""
    torch.manual_seed(0)
    layers = [nn.Hardtanh(), *small(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 2)]
    return nn.Sequential(*layers).train()


def test_inductor_trains_the_rest_at_any_size() -> None:
    """Steps of an optimizer on images of different batch and size, with one graph."""
    model = around().double()
    twin, compiled = compiled_twin(model, rest="inductor", dynamic=True)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (twin, model)]
    torch._dynamo.utils.counters.clear()
    for shape in ((2, 3, 8, 10), (5, 3, 12, 9)):  # all different: equal sizes would be guarded
        x = torch.randn(shape, dtype=torch.float64)
        with recorded() as forward:
            y, expected = compiled(x), model(x)
        torch.testing.assert_close(y, expected)
        with recorded() as backward:
            (y.square().sum() + expected.square().sum()).backward()
        assert forward
        assert backward
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(twin.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_inductor_runs_the_rest_under_autocast() -> None:
    model = around().eval()
    _, compiled = compiled_twin(model, rest="inductor")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), recorded() as launches:
        y, expected = compiled(x), model(x)
    assert launches
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, atol=3e-2, rtol=3e-2)


def test_a_mode_is_inductors(monkeypatch: pytest.MonkeyPatch) -> None:
    """``mode`` reaches Inductor as torch's own backend passes it on; here nothing is compiled."""
    from torch._inductor import compile_fx

    given: list[dict[str, object]] = []

    def compiling(graph: torch.fx.GraphModule, inputs: object, config_patches: object) -> object:
        given.append(dict(config_patches))  # type: ignore[call-overload]
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", compiling)
    model, x = small(), torch.randn(1, 3, 8, 8)
    for mode in ("reduce-overhead", "default"):
        torch._dynamo.reset()
        with torch.no_grad(), recorded() as launches:
            y = torch.compile(model, backend="tconv", mode=mode)(x)
        torch.testing.assert_close(y, model(x), atol=1e-4, rtol=1e-4)
        assert launches
    assert given == [{"triton.cudagraphs": True}, {}]


def test_a_mode_that_does_not_exist_or_has_no_inductor_is_refused() -> None:
    with pytest.raises(BackendCompilerFailed, match=r"'fast'; it is one of .*reduce-overhead"):
        torch.compile(small(), backend="tconv", mode="fast")(torch.randn(1, 3, 8, 8))
    graph = torch.fx.symbolic_trace(small())
    with pytest.raises(ValueError, match=r"mode 'reduce-overhead' is Inductor's: it cannot"):
        tconv_backend(graph, [], mode="reduce-overhead", options={"rest": "eager"})


class Wider(nn.Module):
    """Adaptive pools, an unpool, and layers of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.most, self.mean = nn.AdaptiveMaxPool2d(4), nn.AdaptiveAvgPool2d((3, None))
        self.conv, self.up = nn.Conv1d(2, 2, 3), nn.ConvTranspose1d(2, 2, 3, stride=2)
        self.halves = nn.Sequential(nn.MaxPool1d(2), nn.AvgPool1d(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mean(self.most(self.unpool(*self.pool(x))))
        return self.halves(self.up(self.conv(x.flatten(2))))  # type: ignore[no-any-return]


def test_every_operator_is_served_and_named() -> None:
    torch.manual_seed(0)
    model, x = Wider(), torch.randn(1, 2, 6, 6)
    _, compiled = compiled_twin(model)
    with recorded() as launches:
        y = compiled(x)
    torch.testing.assert_close(y, model(x), atol=1e-4, rtol=1e-4)
    assert len(launches) >= 9
    (graph,) = tconv.report(compiled).graphs
    assert not graph.left
    assert [entry.operation for entry in graph.served] == [
        "max_pool2d", "max_unpool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "conv1d",
        "conv_transpose1d", "max_pool1d", "avg_pool1d",
    ]  # fmt: skip


class Sequences(nn.Module):
    """Layers of sequences with what their kernels also compute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.up, self.norm = nn.ConvTranspose1d(4, 2, 3, stride=2), nn.BatchNorm2d(3)
        self.image, self.late = nn.ConvTranspose2d(2, 3, 2), nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), 0.2)
        x = F.gelu(self.up(torch.tanh(self.second(x) + x)), approximate="tanh")
        x = x + F.relu(self.late(x))
        return F.silu(self.norm(self.image(x.unsqueeze(-1))))


def test_the_links_of_sequences_and_transposed_convolutions_are_fused() -> None:
    torch.manual_seed(0)
    model = Sequences().double().eval()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 2, 6, dtype=torch.float64)
    with recorded() as launches:
        got = compiled(x)
    expected = model(x)
    for y in (got, expected):
        y.square().sum().backward()
    assert_same(twin, model, got, expected)
    fused = [launch.constants.get("ACTIVATION") for launch in launches]
    assert [name for name in fused if name] == ["leaky_relu", "tanh", "gelu_tanh", "relu", "silu"]
    (graph,) = tconv.report(twin).graphs
    assert [str(entry) for entry in graph.entries] == [
        "first: conv1d + leaky_relu (add is not fused: other operations read its input too)",
        "second: conv1d + add + tanh",
        "up: conv_transpose1d + gelu (add is not fused: other operations read its input too)",
        "late: conv1d + relu + add",
        "image: conv_transpose2d + batch_norm + silu",
    ]


class NotLinked(nn.Module):
    """What follows a transposed convolution, or one without a batch, and is not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled, self.trained = nn.ConvTranspose2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 1)
        self.alone, self.row = nn.Conv2d(4, 4, 1), nn.ConvTranspose1d(4, 4, 1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.pooled(x), 2)
        x = self.trained(x)
        x = F.batch_norm(x, None, None, training=True)
        image = self.norm(self.alone(x[0]))  # torch takes its rows for channels
        return image + self.norm(self.row(x[0, 0]))  # type: ignore[no-any-return]


def test_what_is_no_link_of_a_transposed_convolution_is_named() -> None:
    torch.manual_seed(0)
    model, x = NotLinked().double().eval(), torch.randn(2, 4, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        model.norm.running_mean.copy_(torch.arange(4))  # type: ignore[union-attr]
    twin, compiled = compiled_twin(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    (graph,) = tconv.report(twin).graphs
    assert [str(entry) for entry in graph.entries if entry.operation != "max_pool2d"] == [
        "pooled: conv_transpose2d (max_pool2d is not fused: the kernels of conv_transpose2d do "
        "not compute it)",
        "trained: conv_transpose2d (batch_norm is not fused: it is in training mode)",
        "alone: conv2d (batch_norm is not fused: its input has no batch)",
        "row: conv_transpose1d (batch_norm is not fused: its input has no batch)",
    ]


# ---- what is left ---------------------------------------------------------------------------


class Others(nn.Module):
    """Convolutions that our kernels do not serve."""

    def __init__(self) -> None:
        super().__init__()
        self.volume, self.complex = nn.Conv3d(1, 1, 3), nn.Conv2d(1, 1, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.volume(x[None]).sum() + self.complex(x[:, :1].to(torch.complex64)).abs().sum()


def test_what_is_not_served_is_left_to_the_rest_and_named() -> None:
    torch.manual_seed(0)
    model = Others()
    _, compiled = compiled_twin(model)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(compiled(x), model(x))
    lines = str(tconv.report(compiled))
    assert "volume: conv3d is left: there is no kernel for three dimensions" in lines
    assert "complex: conv2d is left: its input is torch.complex64" in lines


def test_a_model_without_convolutions_compiles_and_says_that_nothing_was_served() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    _, compiled = compiled_twin(model)
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled(x), model(x))
    assert str(tconv.report(compiled)).startswith("nothing was served")


class Broken(nn.Module):
    """A graph break between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        torch._dynamo.graph_break()
        return F.relu(self.second(y))


def test_a_graph_break_is_named() -> None:
    torch.manual_seed(0)
    model = Broken()
    _, compiled = compiled_twin(model)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)
    report = tconv.report(compiled)
    assert [graph.graph_break is not None for graph in report.graphs] == [True, False]
    assert "graph break" in str(report)
    assert [str(entry) for entry in report.graphs[1].entries] == ["second: conv2d + relu"]


def test_the_report_takes_modules_alone() -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module or None, not str"):
        tconv.report("model")  # type: ignore[arg-type]


# ---- writes between links -------------------------------------------------------------------


class Overwritten(nn.Module):
    """In-place operations on a shortcut, on a result, and on a value that a view shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x * 1.0
        y = self.first(shortcut)
        shortcut.mul_(2.0)  # before the addition reads it
        y = F.relu(y + shortcut)
        y *= 3.0  # overwrites what ReLU's gradient reads, in an unfused graph too
        z = self.second(y)
        view = z[:, :1]
        view.add_(1.0)
        return torch.sigmoid(z)


def test_in_place_operations_between_links_keep_them_apart() -> None:
    torch.manual_seed(0)
    model = Overwritten().double()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert all(not entry.fused for entry in tconv.report(twin).graphs[0].entries)


class OverwrittenView(nn.Module):
    """A write through a view of a result from which a fused activation's gradient is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv(x))  # torch's own gradient reads its argument
        y.view(y.shape)[:, :2].add_(1.0)
        return y * y


def test_a_write_through_a_view_keeps_an_activation_apart() -> None:
    torch.manual_seed(0)
    model = OverwrittenView().double()
    twin = trained_alike(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))
    (entry,) = tconv.report(twin).graphs[0].entries
    assert str(entry) == "conv: conv2d (leaky_relu is not fused: its result is overwritten later)"


class NoGradInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with torch.no_grad():
            mask = torch.relu(y)
        return y * mask


def test_a_mode_between_links_keeps_them_apart() -> None:
    torch.manual_seed(0)
    trained_alike(NoGradInside().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64))


# ---- torch's modes --------------------------------------------------------------------------


def test_batch_and_image_size_may_change_within_one_graph() -> None:
    model = small().double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="tconv", options={"rest": "eager"}, dynamic=True)
    for shape in ((1, 3, 8, 8), (2, 3, 12, 10), (3, 3, 9, 16)):
        x = torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))
    assert len(tconv.report(twin).graphs) <= 2  # a batch of 1 may be a graph of its own


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_without_gradients(mode: str) -> None:
    model = small().double()
    _, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with getattr(torch, mode)():
        torch.testing.assert_close(compiled(x), model(x))


def test_under_autocast_the_chain_runs_in_half_precision() -> None:
    model = small()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.float16), recorded() as launches:
        y = compiled(x)
        expected = model(x)
    assert y.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(y, expected, atol=1e-2, rtol=1e-2)
    assert launches
    (graph,) = tconv.report(twin).graphs
    assert str(graph.entries[0]) == "0: conv2d + batch_norm + relu + max_pool2d"


def test_our_own_modules_are_fused_too() -> None:
    model = small().double()
    twin = copy.deepcopy(model)
    tconv.convert(twin)
    compiled = torch.compile(twin, backend="tconv", options={"rest": "eager"})
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    (graph,) = tconv.report(twin).graphs
    assert graph.entries[0].fused[:2] == ("batch_norm", "relu")
    assert [entry.operation for entry in graph.entries] == ["conv2d", "max_pool2d"]


@pytest.mark.parametrize("dynamic", [False, True])
def test_our_own_transposed_modules_are_fused_too(dynamic: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 2, 2, groups=2, dilation=2), nn.Conv2d(2, 2, 1),
    ).double().eval()  # fmt: skip
    twin = copy.deepcopy(model)
    tconv.convert(twin)
    compiled = torch.compile(twin, backend="tconv", options={"rest": "eager"}, dynamic=dynamic)
    for shape in ((2, 3, 4, 5), (2, 3, 6, 3)):
        x = torch.randn(shape, dtype=torch.float64)
        y, expected = compiled(x), model(x)
        for each in (y, expected):
            each.square().sum().backward()
        assert_same(twin, model, y, expected)
    lines = ["0: conv_transpose2d + batch_norm + leaky_relu", "3: conv_transpose2d", "4: conv2d"]
    graphs = tconv.report(twin).graphs
    assert graphs
    for graph in graphs:
        assert [str(entry) for entry in graph.entries] == lines


# ---- export ---------------------------------------------------------------------------------


def test_an_exported_model_is_fused_saved_and_loaded(tmp_path: Path) -> None:
    model, x = built("vgg_bn", training=False, memory_format="contiguous")
    program = tconv.export(model, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("tconv.conv2d_fused.default") == 2
    assert not any("batch_norm" in name or "max_pool" in name for name in called)
    assert not any("conv" in name for name in called if not name.startswith("tconv."))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad(), recorded() as launches:
        torch.testing.assert_close(loaded(x), model(x))
    assert launches


def test_an_exported_decoder_is_fused() -> None:
    model, x = built("linknet", training=False, memory_format="channels_last")
    program = tconv.export(model, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("tconv.conv_transpose2d_fused.default") == 2
    assert called.count("tconv.conv_transpose2d.default") == 1
    assert not any("batch_norm" in name or name.startswith("aten.conv") for name in called)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


# ---- memory kept for the gradient ------------------------------------------------------------


def kept_bytes(call: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = call(x)
    y.sum().backward()
    return sum(storages.values())


def test_a_fused_chain_keeps_less_for_its_gradient_than_eager_torch() -> None:
    """Torch keeps the results of convolution, batch norm and ReLU and 64-bit indices."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    _, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 16, 16)
    compiled(x)
    assert kept_bytes(compiled, x) < 0.6 * kept_bytes(model, x)
