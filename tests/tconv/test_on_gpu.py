"""Tests of compiled kernels on a real or emulated GPU: families, offsets, streams, training."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tconv
from autotune import emulate
from autotune.gate import Verdict, check_on_gpu
from tconv.families import FAMILIES
from tconv.functional import conv2d, max_pool2d
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.launch import emulated, recorded, target_for
from tconv.models import torch_twin, vgg11
from tconv.problem import Problem
from tconv.select import choose
from tconv.tile import Choice
from tests.devices import DEVICE

pytestmark = pytest.mark.gpu

LAYERS = {
    "3x3": ConvGeometry(8, 64, 28, 28, 96, 3, 3, pad_h=1, pad_w=1),
    "3x3, odd": ConvGeometry(3, 40, 23, 19, 72, 3, 3, pad_h=1, pad_w=1),
    "stride 2": ConvGeometry(8, 64, 28, 28, 128, 3, 3, 2, 2, 1, 1),
    "stride 2 of odd images": ConvGeometry(4, 64, 27, 29, 64, 3, 3, 2, 2, 1, 1),
    "1x1": ConvGeometry(8, 256, 14, 14, 512, 1, 1),
    "1x1, stride 2": ConvGeometry(8, 64, 14, 14, 128, 1, 1, 2, 2),
    "RGB": ConvGeometry(4, 3, 64, 64, 32, 7, 7, 2, 2, 3, 3),
    "grey": ConvGeometry(16, 1, 32, 32, 6, 5, 5),
    "grouped": ConvGeometry(8, 128, 28, 28, 128, 3, 3, pad_h=1, pad_w=1, groups=32),
    "two groups": ConvGeometry(8, 96, 27, 27, 256, 5, 5, pad_h=2, pad_w=2, groups=2),
    "depthwise": ConvGeometry(8, 96, 28, 28, 96, 5, 5, pad_h=2, pad_w=2, groups=96),
    "depthwise, stride 2, multiplier": ConvGeometry(4, 48, 28, 28, 96, 3, 3, 2, 2, 1, 1, groups=48),
    "dilated": ConvGeometry(4, 32, 28, 28, 32, 3, 3, 1, 1, 2, 2, 2, 2),
    "a long reduction": ConvGeometry(64, 64, 7, 7, 64, 3, 3, pad_h=1, pad_w=1),
}
ARITHMETICS = ("float16", "bfloat16", "tf32", "tf32x3", "float64")


def checked(problem: Problem, choice: Choice) -> Verdict:
    """Check the layer on a GPU, or a smaller one with the same branches on an emulated GPU."""
    return emulate.check(problem, choice) if emulated() else check_on_gpu(problem, choice)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_family_that_serves_is_right(name: str, direction: Pass, arithmetic: str) -> None:
    """Heuristic tiles and the model's choice equal fp64, in both formats, with poisoned outputs."""
    target = target_for(DEVICE)
    for layout in ("nhwc", "nchw"):
        problem = Problem.of(LAYERS[name], direction, arithmetic, layout)  # type: ignore[arg-type]
        choices = [choose(problem, target)]
        for kind, family in FAMILIES.items():
            if family.unserved(problem, target) is None:
                choices.append(Choice(kind, family.heuristic(problem, target)))
        for choice in dict.fromkeys(choices):
            verdict = checked(problem, choice)
            assert verdict.passed, (layout, choice, verdict)


def _memory_for(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes:g} GB of GPU memory")


@pytest.mark.device
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_offsets_beyond_2_to_the_31(channels_last: bool) -> None:
    """The last image of a batch is beyond the reach of 32-bit offsets."""
    _memory_for(40)
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(66, 16, 1448, 1448, device="cuda", dtype=torch.float16)  # 2.2e9 elements
    x = x.contiguous(memory_format=form).requires_grad_()
    assert x.numel() > 2**31
    w = torch.randn(16, 16, 3, 3, device="cuda", dtype=torch.float16).requires_grad_()
    y = conv2d(x, w, padding=1)
    last = x[-1:].detach().clone(memory_format=form).requires_grad_()
    alone = conv2d(last, w, padding=1)
    torch.testing.assert_close(y[-1:], alone)
    dy = torch.zeros_like(y)
    dy[-1] = torch.randn_like(dy[-1])
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    dx_alone, dw_alone = torch.autograd.grad(alone, (last, w), dy[-1:])
    torch.testing.assert_close(dx[-1:], dx_alone)
    assert not dx[0].any()
    torch.testing.assert_close(dw, dw_alone, rtol=1e-2, atol=1e-1)
    del dx, dy, y
    pooled = max_pool2d(x, 2)
    torch.testing.assert_close(pooled[-1:], functional.max_pool2d(last, 2))


@pytest.mark.device
def test_streams_and_threads_share_a_module() -> None:
    """Four host threads on two streams make their first calls at once; each result is right."""
    layer = tconv.ConvReLUPool2d(24, 40, 3, padding=1).cuda().half()
    inputs = [torch.randn(4, 24, 30, 30, device="cuda", dtype=torch.float16) for _ in range(4)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    start, results, errors = threading.Barrier(4), [[] for _ in range(4)], []

    def work(number: int) -> None:
        try:
            start.wait()
            with torch.cuda.stream(streams[number % 2]), torch.no_grad():
                for _ in range(20):
                    results[number].append(layer(inputs[number]))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert not errors
    with torch.no_grad():
        for x, made in zip(inputs, results, strict=True):
            wanted = layer(x)
            assert len(made) == 20
            assert all(torch.equal(y, wanted) for y in made)


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    found = []
    for step in range(len(x)):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = functional.cross_entropy(model(x[step]), y[step])
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.device
def test_vgg_trains_as_two_runs_of_cudnn_do() -> None:
    """With the same weights and batches, ours differs from torch no more than torch from itself."""
    _memory_for(12)
    torch.manual_seed(0)
    model = vgg11(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(8, 16, 3, 224, 224, device="cuda")
    y = torch.randint(10, (8, 16), device="cuda")
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (8, 16))
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def run(twin: bool, channels_last: bool) -> Tensor:
        fresh = vgg11(num_classes=10)
        fresh.load_state_dict(state)
        for module in fresh.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        made = (torch_twin(fresh) if twin else fresh).cuda()
        form = torch.channels_last if channels_last else torch.contiguous_format
        return _losses(made.to(memory_format=form), last if channels_last else x, y)  # type: ignore[call-overload]

    with recorded() as launches:
        ours = run(twin=False, channels_last=True)
    assert launches
    theirs, again = run(twin=True, channels_last=True), run(twin=True, channels_last=False)
    own = float((theirs - again).abs().max())
    assert float((ours - theirs).abs().max()) <= max(3 * own, 0.02)


def test_compiles_on_a_gpu_with_a_batch_that_grows() -> None:
    layer = tconv.ConvReLU2d(8, 16, 3, padding=1).to(DEVICE)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 8, 16, 16, device=DEVICE)
        torch.testing.assert_close(compiled(x), layer(x))


def test_a_plan_made_for_one_geometry_serves_no_other() -> None:
    """Geometries follow each other as a user's batches do; each has its own plan."""
    w = torch.randn(16, 16, 3, 3, device=DEVICE, dtype=torch.float16)
    shape = LAYERS["3x3"]
    for batch, size in ((1, 9), (4, 9), (4, 10), (1, 9), (3, 33)):
        layer = replace(shape, batch=batch, in_channels=16, out_channels=16, in_h=size, in_w=size)
        x = torch.randn(batch, 16, size, size, device=DEVICE, dtype=torch.float16)
        exact = functional.conv2d(x.double(), w.double(), padding=1)
        assert exact.shape[2] == layer.out_h
        torch.testing.assert_close(conv2d(x, w, padding=1).double(), exact, rtol=1e-2, atol=2e-2)
