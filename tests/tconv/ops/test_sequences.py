"""Tests of one-dimensional operators against torch: values, gradients, memory, samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import tconv
from tconv.functional import conv1d, conv_transpose1d
from tconv.launch import recorded
from tests.devices import DEVICE, written
from tests.tconv.ops.test_opinfo_conv_transpose2d import DTYPES, check_sample, count

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import ErrorInput

from tests import torchs_samples

plain = torch.nn.functional


def random(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE)


# id -> x, w and the window of conv1d.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "odd": ((2, 3, 17), (5, 3, 3), {"stride": 2, "padding": 1}),
    "dilated-groups": ((2, 4, 19), (6, 2, 3), {"dilation": 3, "groups": 2}),
    "same-even": ((2, 3, 10), (4, 3, 4), {"padding": "same"}),
    "depthwise": ((1, 5, 12), (5, 1, 4), {"groups": 5, "padding": 3}),
    "unbatched": ((3, 11), (2, 3, 5), {"padding": 2}),
    "one-tap": ((2, 3, 9), (4, 3, 1), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_conv1d_is_torchs(name: str) -> None:
    size, filters, window = CASES[name]
    x, w, bias = random(*size), random(*filters, seed=1), random(filters[0], seed=2)
    inputs = [tensor.requires_grad_() for tensor in (x, w, bias)]
    expected = plain.conv1d(*inputs, **window)
    with recorded() as log:
        y = conv1d(*inputs, **window)
    assert written(log) == {"y"}
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected)
    dy = random(*y.shape, seed=3)
    ours, theirs = (torch.autograd.grad(out, inputs, dy) for out in (y, expected))
    torch.testing.assert_close(ours, theirs)


def test_conv_transpose1d_is_torchs() -> None:
    for window in ({"stride": 2, "padding": 1}, {"stride": 3, "output_padding": 2, "groups": 2}):
        groups = window.get("groups", 1)
        inputs = [random(2, 4, 7), random(4, 3, 4, seed=1), random(3 * groups, seed=2)]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        expected = plain.conv_transpose1d(*inputs, **window)  # type: ignore[arg-type]
        with recorded() as log:
            y = conv_transpose1d(*inputs, **window)  # type: ignore[arg-type]
        assert written(log) == {"dx"}
        torch.testing.assert_close(y, expected)
        dy = random(*y.shape, seed=3)
        ours, theirs = (torch.autograd.grad(out, inputs, dy) for out in (y, expected))
        torch.testing.assert_close(ours, theirs)


def test_sequences_are_read_without_a_copy() -> None:
    """For either memory order x is not copied, and y has the order of x."""
    w = random(4, 1, 3, seed=1).transpose(1, 2).contiguous().transpose(1, 2)
    alone = random(2, 1, 9)  # with one channel both orders are the same
    with recorded() as log:
        conv1d(alone, w)
    assert not [launch for launch in log if "relayout" in launch.kernel]
    by_time = random(2, 9, 16).transpose(1, 2)  # the order in a transformer
    w = random(4, 16, 3, seed=1)
    with recorded() as log:
        y = conv1d(by_time, w)
    (product,) = (launch for launch in log if "fprop" in launch.kernel)
    assert product.operands["x"].tensor == "x"
    assert y.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(y, plain.conv1d(by_time, w))


def test_causal_padding_as_users_write_it() -> None:
    x, w = random(2, 3, 12), random(4, 3, 3, seed=1)
    y = conv1d(plain.pad(x, (4, 0)), w, dilation=2)
    changed = x.clone()
    changed[..., 7:] = 0
    other = conv1d(plain.pad(changed, (4, 0)), w, dilation=2)
    assert torch.equal(y[..., :7], other[..., :7])
    assert y.shape == (2, 4, 12)


def test_the_epilogue_is_fused() -> None:
    x, w, bias, residual = random(1, 3, 9), random(4, 3, 3), random(4), random(1, 4, 7)
    with recorded() as log:
        y = conv1d(x, w, bias, activation="relu", residual=residual)
    assert len([launch for launch in log if "relayout" not in launch.kernel]) == 1
    torch.testing.assert_close(y, plain.relu(plain.conv1d(x, w, bias) + residual))
    y = conv_transpose1d(x, w.transpose(0, 1), activation="tanh")
    torch.testing.assert_close(y, plain.conv_transpose1d(x, w.transpose(0, 1)).tanh())


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_batch_norm_and_a_residual_before_or_after_the_activation(batched: bool) -> None:
    norm = {"running_mean": random(4, seed=3), "running_var": random(4, seed=4).square() + 0.5,
            "norm_weight": random(4, seed=5), "norm_bias": random(4, seed=6)}  # fmt: skip
    w, bias, form = random(6, 4, 3), random(4, seed=1), {"stride": 2, "padding": 1}
    for compute, torchs, filters, size in (
        (conv1d, plain.conv1d, w.transpose(0, 1), (2, 6, 9)),
        (conv_transpose1d, plain.conv_transpose1d, w, (2, 6, 4)),
    ):
        inputs = [tensor.clone().requires_grad_()
                  for tensor in (random(*size[not batched :]), filters, bias)]  # fmt: skip
        x = inputs[0] if batched else inputs[0][None]
        z = torchs(x, *inputs[1:], **form)  # type: ignore[operator]
        z = plain.batch_norm(z, *norm.values())
        z = z if batched else z[0]
        residual = random(*z.shape, seed=7).requires_grad_()
        how = {**form, **norm, "residual": residual, "activation": "tanh"}
        for after in (True, False):
            with recorded() as log:
                y = compute(*inputs, residual_after=after, **how)  # type: ignore[operator]
            assert len([launch for launch in log if "relayout" not in launch.kernel]) == 1
            exact = z.tanh() + residual if after else (z + residual).tanh()
            torch.testing.assert_close(y, exact)
            ours, theirs = (
                torch.autograd.grad(result.sum(), [*inputs, residual], retain_graph=True)
                for result in (y, exact)
            )
            torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="running_mean and running_var must be given together"):
        conv1d(random(2, 6, 9), w.transpose(0, 1), running_mean=norm["running_mean"])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_module_pads_like_torchs(mode: str) -> None:
    theirs = torch.nn.Conv1d(3, 4, 3, padding=2, padding_mode=mode, device=DEVICE)  # type: ignore[arg-type]
    ours = tconv.Conv1d(3, 4, 3, padding=2, padding_mode=mode, device=DEVICE)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    x = random(2, 3, 9).float()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_second_gradients_and_tangents() -> None:
    inputs = [random(1, 2, 5).requires_grad_(), random(2, 1, 2, seed=1).requires_grad_()]

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return conv_transpose1d(conv1d(x, w, groups=2), w, stride=2, groups=2)

    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


def test_compiles_as_one_graph() -> None:
    x, w = random(2, 3, 10), random(4, 3, 4)
    compiled = torch.compile(conv1d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, padding="same"), plain.conv1d(x, w, padding="same"))


# ---- torch's samples ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", count("conv1d"))
def test_sample_of_conv1d(index: int, dtype: torch.dtype) -> None:
    check_sample("conv1d", index, dtype, ("y", "dx", "dw"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", count("conv_transpose1d"))
def test_sample_of_conv_transpose1d(index: int, dtype: torch.dtype) -> None:
    check_sample("conv_transpose1d", index, dtype, ("dx", "y", "dw"))


ERRORS: list[ErrorInput] = torchs_samples.errors("conv1d")


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_error_input_of_conv1d(number: int) -> None:
    error = ERRORS[number]
    sample = error.sample_input
    with pytest.raises(error.error_type, match=error.error_regex):
        conv1d(sample.input, *sample.args, **sample.kwargs)
