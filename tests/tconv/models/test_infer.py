"""Tests of inference from the command line, with trained or torchvision's weights."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tconv.launch import recorded
from tconv.models import checkpoint, infer, lenet5, train
from tconv.models.command import Backend, build

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (tconv[train])")

LENET = ("--model", "lenet5", "--device", "cpu")


def invoke(command: object, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_trained_weights_are_read_and_a_row_is_logged(tmp_path: Path) -> None:
    saved, log = tmp_path / "run.pt", tmp_path / "infer.csv"
    trained = ("--backend", "torch", "--epochs", "2", "--checkpoint", str(saved))
    code, output = invoke(train.main, *LENET, *trained)
    assert code == 0, output
    stated = output.splitlines()[-1].split("test accuracy ")[1].split(",")[0]
    for _ in range(2):
        code, output = invoke(
            infer.main, *LENET, "--backend", "torch", "--weights", str(saved), "--log", str(log)
        )
        assert code == 0, output
    assert f"accuracy {stated} of 360 images" in output
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["backend"] for row in rows] == ["torch", "torch"]
    assert all(float(row["ms"]) > 0 and float(row["images_per_s"]) > 0 for row in rows)


@pytest.mark.interpreter
def test_our_kernels_run_fused_and_agree(tmp_path: Path) -> None:
    saved = tmp_path / "bare.pt"
    torch.save(build("lenet5", Backend.torch, 3).state_dict(), saved)
    few = ("--weights", str(saved), "--count", "6", "--batch", "3")
    with recorded() as launches:
        code, ours = invoke(infer.main, *LENET, *few)
    assert code == 0, ours
    assert launches
    assert not any("max_pool" in launch.kernel for launch in launches)  # the pools are fused
    with recorded() as launches:
        _, theirs = invoke(infer.main, *LENET, *few, "--backend", "torch")
    assert not launches
    assert ours.split("accuracy ")[1][:5] == theirs.split("accuracy ")[1][:5]


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    saved = tmp_path / "other.pt"
    torch.save({"c1.weight": torch.zeros(3), "output.bias": torch.zeros(10)}, saved)
    code, output = invoke(infer.main, *LENET, "--weights", str(saved))
    assert (code, str(saved) in output, "do not fit" in output) == (1, True, True)
    torch.save(lenet5(), saved)  # a pickled module is code and must not be loaded
    code, output = invoke(infer.main, *LENET, "--weights", str(saved))
    assert (code, str(saved) in output) == (1, True)
    code, output = invoke(infer.main, *LENET, "--weights", str(tmp_path / "none.pt"))
    assert (code, "no such file" in output) == (1, True)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (infer.main, ("--graphed",), "--graphed needs a CUDA device"),
        (train.main, ("--graphed",), "--graphed needs a CUDA device"),
        (infer.main, ("--log", "nowhere/infer.csv"), "--log: there is no folder nowhere"),
    ],
)
def test_bad_arguments_are_reported_before_anything_runs(
    command: object, arguments: tuple[str, ...], words: str
) -> None:
    code, output = invoke(command, *LENET, *arguments)
    assert code == 2
    assert words in output


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    saved = tmp_path / "run.pt"
    checkpoint.save(saved, {"network": "vgg16", "model": {}, "classes": 10, "epoch": 1})
    code, output = invoke(infer.main, *LENET, "--weights", str(saved))
    assert code == 1
    assert "its network is 'vgg16', not 'lenet5'" in output
