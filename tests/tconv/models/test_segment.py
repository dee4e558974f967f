"""Tests of training the U-Net on our kernels, and of its command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tconv.launch import recorded
from tconv.models.segment import evaluated, intersection_over_union, main, shapes, train_step
from tconv.models.trace import torch_twin
from tconv.models.unet import UNet
from tests.devices import DEVICE

app = typer.Typer()
app.command()(main)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_shapes_have_every_class_and_are_reproducible() -> None:
    images, classes = shapes(4, 16, torch.Generator().manual_seed(0))
    assert images.shape == (4, 1, 16, 16)
    assert classes.unique().tolist() == [0, 1, 2]
    assert images[:, 0][classes > 0].mean() > images[:, 0][classes == 0].mean() + 0.5
    again, _ = shapes(4, 16, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_a_step_equals_torchs_and_lowers_the_loss() -> None:
    torch.manual_seed(0)
    ours = UNet(1, 3, width=2, depth=1).to(DEVICE)
    twin = torch_twin(ours)
    assert type(twin.up[0]) is torch.nn.ConvTranspose2d
    images, classes = (each.to(DEVICE) for each in shapes(2, 8, torch.Generator().manual_seed(0)))
    losses = []
    for network in (ours, twin):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        with recorded() as log:
            losses.append([train_step(network, optimizer, images, classes) for _ in range(2)])
        kernels = {launch.kernel.partition(".")[2] for launch in log}
        assert bool(kernels) == (network is ours)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][1] < losses[0][0]


def test_the_command_prints_the_intersection_over_union(tmp_path: Path) -> None:
    picture = tmp_path / "shapes.svg"
    arguments = ("--size", "8", "--steps", "2", "--batch", "2", "--width", "2", "--device", "cpu")
    code, output = invoke(*arguments, "--backend", "torch", "--picture", str(picture))
    assert code == 0, output
    assert "step 2/2  loss " in output
    assert "IoU: disc 0." in output
    assert picture.read_text().count("<image") == 9
    code, output = invoke("--size", "10")
    assert code == 2
    assert "must be a multiple of 4" in output


def test_intersection_over_union() -> None:
    wanted = torch.tensor([[0, 1, 1, 2]])
    assert intersection_over_union(wanted, wanted) == [1.0, 1.0]
    assert intersection_over_union(torch.zeros_like(wanted), wanted) == [0.0, 0.0]
    network = UNet(1, 3, width=2, depth=1).to(DEVICE)
    assert evaluated(network, torch.zeros(1, 1, 4, 4, device=DEVICE)).shape == (1, 4, 4)
