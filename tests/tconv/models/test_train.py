"""Tests of training: LeNet-5 learns real digits as with torch; interrupted runs resume."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from torch.utils.data import Subset
from typer.testing import CliRunner

from tconv.launch import interpreting, recorded
from tconv.models.command import Backend, build, where
from tconv.models.data import Images, load
from tconv.models.train import main
from tconv.models.training import Settings, Trainer

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (tconv[train])")

VOLUME = (1, 32, 32)
ROOT = Path(__file__).parents[3]
TORCH = ("--model", "lenet5", "--backend", "torch", "--batch", "256", "--device", "cpu")

app = typer.Typer()
app.command()(main)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def few(count: int, tested: int) -> Images:
    images = load("digits")
    parts = Subset(images.train, range(count)), Subset(images.test, range(tested))
    return Images("digits", *parts, classes=10)


def losses(backend: Backend, images: Images, settings: Settings) -> torch.Tensor:
    trainer = Trainer(build("lenet5", backend, 0), images, VOLUME, settings)
    return torch.tensor([epoch.batch_losses for epoch in trainer.epochs()])


def test_torch_learns_the_digits() -> None:
    trainer = Trainer(build("lenet5", Backend.torch, 0), load("digits"), VOLUME, Settings(epochs=2))
    first, second = trainer.epochs()
    assert second.test_accuracy > 0.9
    assert second.loss < first.loss


def test_the_convnetjs_recipe_learns() -> None:
    settings = Settings(epochs=3, batch=128, optimizer="adadelta", augment=True)
    model = build("convnetjs_cifar10", Backend.torch, 0)
    *_, last = Trainer(model, load("digits"), (3, 32, 32), settings).epochs()
    assert last.test_accuracy > 0.5  # mirrored digits are hard to recognise


@pytest.mark.interpreter
def test_loss_curve_is_torchs_to_rounding() -> None:
    settings = Settings(epochs=2, batch=8)
    images = few(16, 4)
    with recorded() as launches:
        ours = losses(Backend.tconv, images, settings)
    ran = {launch.kernel for launch in launches}
    for kernel in ("fprop", "wgrad", "max_pool"):
        assert any(kernel in name for name in ran), ran
    # Adam divides by the gradient's size: rounding grows over steps.
    theirs = losses(Backend.torch, images, settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_torch_backend_launches_no_kernel() -> None:
    with recorded() as launches:
        losses(Backend.torch, few(16, 8), Settings(epochs=1, batch=8))
    assert launches == []


def test_bfloat16_activations_with_float32_weights() -> None:
    settings = Settings(epochs=1, batch=8, dtype=torch.bfloat16)
    trainer = Trainer(build("lenet5", Backend.torch, 0), few(16, 8), VOLUME, settings)
    seen: list[torch.dtype] = []
    trainer.model.get_submodule("c3").register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    (epoch,) = trainer.epochs()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert epoch.loss > 0


def test_the_device_is_printed() -> None:
    cpu = torch.device("cpu")
    assert "torch's own" in where(Backend.torch, cpu)
    assert "torch.compile" in where(Backend.compiled, cpu)
    expected = "in Triton's interpreter" if interpreting() else "TRITON_INTERPRET=1"
    assert expected in where(Backend.tconv, cpu)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    saved = ("--checkpoint", str(tmp_path / "run.pt"), "--log", str(parts))
    code, output = invoke(*TORCH, "--epochs", "2", "--log", str(whole))
    assert code == 0, output
    for words in ("torch's own", "epoch 2/2", "test accuracy"):
        assert words in output
    assert invoke(*TORCH, "--epochs", "1", *saved)[0] == 0
    code, output = invoke(*TORCH, "--epochs", "2", *saved, "--resume")
    assert code == 0, output
    assert "epoch 1/2" not in output
    with whole.open(newline="") as once, parts.open(newline="") as twice:
        rows, again = list(csv.DictReader(once)), list(csv.DictReader(twice))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["loss"] for row in rows] == [row["loss"] for row in again]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    # Finished epochs are not repeated, and no run overwrites another's checkpoint.
    assert "nothing to do" in invoke(*TORCH, "--epochs", "2", *saved, "--resume")[1]
    code, output = invoke(*TORCH, "--epochs", "2", *saved)
    assert (code, "--resume" in output) == (2, True)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def _other_file(path: Path) -> None:
    path.write_text("no checkpoint")


def _other_classes(path: Path) -> None:
    torch.save({**torch.load(path), "classes": 7}, path)


def _newer(path: Path) -> None:
    torch.save({**torch.load(path), "format": 99}, path)


@pytest.mark.parametrize("damage", [_cut_short, _other_file, _other_classes, _newer])
def test_a_damaged_checkpoint_is_named_and_left_unchanged(tmp_path: Path, damage: object) -> None:
    saved = tmp_path / "run.pt"
    arguments = (*TORCH, "--epochs", "2", "--steps", "1", "--checkpoint", str(saved))
    assert invoke(*arguments)[0] == 0
    damage(saved)  # type: ignore[operator]
    before = saved.read_bytes()
    code, output = invoke(*arguments, "--resume")
    assert (code, str(saved) in output) == (1, True), output
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "lenet6"), ("lenet6", "lenet5", "vgg16", "mobilenet_v2")),
        (("--model", "lenet5", "--backend", "jax"), ("jax", "tconv", "torch.compile")),
        (("--model", "lenet5", "--data", "mnist"), ("mnist", "--path")),
        (("--model", "lenet5", "--data", "faces"), ("faces", "digits", "cifar10")),
        (("--model", "lenet5", "--optimizer", "newton"), ("newton", "adam", "adadelta")),
        (("--model", "lenet5", "--device", "abacus"), ("abacus",)),
        (("--model", "lenet5", "--log", "/no/such/folder/x.csv"), ("/no/such/folder",)),
        (("--model", "lenet5", "--epochs", "0"), ("epochs",)),
        (("--model", "lenet5", "--resume"), ("--checkpoint",)),
        (("--model", "lenet5", "--device", "cpu", "--graphed"), ("CUDA",)),
    ],
)
def test_bad_argument_exits_2_and_lists_what_exists(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert all(word in output for word in words), output


@pytest.mark.interpreter
def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``torchrun`` and gloo: the mean of two processes' gradients is the batch's."""
    run = ("--model", "lenet5", "--steps", "2", "--epochs", "1", "--batch", "2", "--device", "cpu",
           "--optimizer", "sgd")  # fmt: skip
    images = load("digits")
    tested = replace(images, test=Subset(images.test, range(2)))
    monkeypatch.setattr("tconv.models.train.load", lambda *_: tested)
    code, output = invoke(*run, "--checkpoint", str(tmp_path / "one.pt"))
    assert code == 0, output
    probe = tmp_path / "few.py"  # the same command on fewer test images
    probe.write_text(
        "import typer\n"
        "from pathlib import Path\n"
        "from torch.utils.data import Subset\n"
        "from tconv.models import train\n"
        "from dataclasses import replace\n"
        "from tconv.models.data import load\n"
        "from tests.interpreter_speed import hasten, overflow_checked\n"
        "def few(*arguments):\n"
        "    images = load('digits')\n"
        "    return replace(images, test=Subset(images.test, range(2)))\n"
        "train.load = few\n"
        "hasten()\n"
        "try:\n"
        "    with overflow_checked(False):\n"
        "        typer.run(train.main)\n"
        "finally:\n"  # a thread of the group's, left behind, aborts some of the exits
        "    names = [each.read_text() for each in Path('/proc/self/task').glob('*/comm')]\n"
        "    assert not [name for name in names if 'gloo' in name], names\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*two, str(probe), *run, "--checkpoint", str(tmp_path / "two.pt")],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for printed in (output, done.stdout):
        assert printed.count("epoch 1/1") == 1
    one, both = (torch.load(tmp_path / f"{name}.pt")["model"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-6)
