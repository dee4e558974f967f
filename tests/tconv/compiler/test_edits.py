"""A compiled model follows every edit: weights, attributes, modules, modes. Torch is the judge."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests.tconv.compiler.test_architectures import assert_same, compiled_twin

Edit = Callable[[nn.Sequential], None]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
    ).double()  # fmt: skip
    with torch.no_grad():
        model(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    return model.eval()


def fused_adam_step(model: nn.Sequential) -> None:
    """A step of a fused optimizer: the parameters change, and their version counters do not."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def set_eps(model: nn.Sequential) -> None:
    model[1].eps = 0.5


def replace_parameter(model: nn.Sequential) -> None:
    model[1].weight = nn.Parameter(torch.full_like(model[1].weight, 3.0))


def add_weight_norm(model: nn.Sequential) -> None:
    parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(2.0)


def prune_filter(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[0], "weight", amount=0.5)


def tie_weights(model: nn.Sequential) -> None:
    model[4].bias = model[0].bias


def replace_convolution(model: nn.Sequential) -> None:
    torch.manual_seed(1)
    model[0] = nn.Conv2d(3, 4, 5, padding=2).double()


def replace_activation(model: nn.Sequential) -> None:
    model[2] = nn.Tanh()


def delete_pool(model: nn.Sequential) -> None:
    del model[3]


def insert_module(model: nn.Sequential) -> None:
    model.insert(1, nn.Sigmoid())


def widen_pool(model: nn.Sequential) -> None:
    model[3].kernel_size = 3


def freeze_batch_norm(model: nn.Sequential) -> None:
    model.train()
    model[1].eval().requires_grad_(False)


def train(model: nn.Sequential) -> None:
    model.train()


def half_way(model: nn.Sequential) -> None:
    model.float()


def channels_last(model: nn.Sequential) -> None:
    model.to(memory_format=torch.channels_last)


def new_statistics(model: nn.Sequential) -> None:
    model[1].running_mean.data.fill_(7.0)
    model[1].running_var.data.fill_(0.25)


EDITS: list[Edit] = [
    fused_adam_step, set_eps, replace_parameter, add_weight_norm, prune_filter, tie_weights,
    replace_convolution, replace_activation, delete_pool, insert_module, widen_pool,
    freeze_batch_norm, train, half_way, channels_last, new_statistics,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_after_compiling_has_torchs_effect(edit: Edit) -> None:
    model = small()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = compiled(x)
    for each in (model, twin):
        edit(each)
    x = x.to(next(model.parameters()).dtype)
    with torch.no_grad():
        after, expected = compiled(x), model(x)
    torch.testing.assert_close(after, expected)
    assert edit in (tie_weights, channels_last, half_way) or not torch.equal(
        before, after.to(before)
    )
    for parameter in (*model.parameters(), *twin.parameters()):
        parameter.grad = None
    got, expected = compiled(x), model(x)
    got.square().sum().backward()
    expected.square().sum().backward()
    assert_same(twin, model, got, expected)


def test_synchronized_batch_norm_is_applied_once() -> None:
    model = small()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        compiled(x)
        expected = model(x)
    changed = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    assert changed is twin
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)


def test_a_slice_of_a_compiled_sequential_is_torchs() -> None:
    model = small()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        compiled(x)
        torch.testing.assert_close(twin[:2](x), model[:2](x))
        torch.testing.assert_close(torch.compile(twin[:2], backend="tconv")(x), model[:2](x))


def test_functional_call_with_fresh_tensors() -> None:
    """Each call's parameters may lie where the last call's lay."""
    model = small()
    _, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for scale in (1.0, 2.0, -3.0):
        state = {name: value * scale if value.is_floating_point() and "var" not in name else value
                 for name, value in model.state_dict().items()}  # fmt: skip
        with torch.no_grad():
            got = torch.func.functional_call(
                compiled, {f"_orig_mod.{k}": v for k, v in state.items()}, x
            )
            torch.testing.assert_close(got, torch.func.functional_call(model, state, x))
        del state


class Branching(nn.Module):
    """Its forward reads the training flag and an attribute between the convolution and the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.offset = nn.Conv2d(3, 4, 3), 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.training:
            y = y - 0.5
        if self.offset:
            y = y + self.offset
        return F.relu(y)


def test_a_branch_on_the_training_flag_and_on_an_attribute_is_followed() -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    twin, compiled = compiled_twin(model)
    x = torch.randn(2, 3, 8, 8)
    for training, offset in ((False, 0.0), (True, 0.0), (True, 2.0), (False, 2.0), (False, 0.0)):
        for each in (model, twin):
            each.train(training)
            each.offset = offset
        with torch.no_grad():
            y = compiled(x)
            torch.testing.assert_close(y, model(x), atol=1e-4, rtol=1e-4)
        assert y.min() >= 0


def test_a_dead_channel_stays_finite_in_half_precision() -> None:
    """running_var = 0 and eps = 1e-8: 1 / sqrt(eps) overflows float16 where it is rounded to it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-8), nn.ReLU())
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[1].running_var[0] = 0.0
    model = model.eval().half()
    _, compiled = compiled_twin(model)
    x = torch.randn(1, 3, 8, 8).half()
    with torch.no_grad():
        y = compiled(x)
        torch.testing.assert_close(y, model(x), atol=4e-3, rtol=4e-3)
    assert y.isfinite().all()


def test_a_forward_hook_sees_what_torch_shows_it() -> None:
    """A hook that changes a value is captured with the graph, and keeps the links apart."""
    model = small()
    twin = copy.deepcopy(model)
    seen = []
    for each in (model, twin):
        each[1].register_forward_hook(lambda module, inputs, output: output * 2)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="tconv", options={"rest": "eager"})
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert not seen


def log_hooks(model: nn.Sequential, log: list[str]) -> None:
    """Register a hook of each kind that a module and a parameter take, which notes its call."""
    model[0].register_forward_pre_hook(lambda *_: log.append("before"))
    model[0].register_forward_hook(lambda *_: log.append("after"))
    model[4].register_full_backward_hook(lambda *_: log.append("backward"))
    model[1].weight.register_hook(lambda gradient: log.append("gradient") or gradient * 2)  # type: ignore[func-returns-value]


@pytest.mark.parametrize("late", [False, True], ids=["before_compiling", "after_a_call"])
def test_hooks_are_called_as_by_torchs_own_backend(late: bool) -> None:
    """The judge is ``torch.compile(backend="eager")``, which compiles nothing."""
    logs: list[list[str]] = []
    gradients = []
    for options in ({"backend": "tconv", "options": {"rest": "eager"}}, {"backend": "eager"}):
        torch._dynamo.reset()
        model, log = small(), []
        x = torch.ones(2, 3, 8, 8, dtype=torch.float64)
        if not late:
            log_hooks(model, log)
        compiled = torch.compile(model, **options)  # type: ignore[call-overload]
        if late:
            compiled(x)
            log_hooks(model, log)
        compiled(x).square().sum().backward()
        logs.append(log)
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert logs[0] == logs[1]
    assert "gradient" in logs[0]
    assert late or {"before", "after", "backward"} <= set(logs[0])
    torch.testing.assert_close(*gradients)
