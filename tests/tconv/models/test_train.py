"""LeNet-5 learns real digits, and as torch does."""

from __future__ import annotations

import builtins
import csv
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tconv.models.digits import Digits, load_digits
from tconv.models.train import Backend, build, main, train, where
from tconv.ops.launch import interpreting, recorded

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (tconv[train])")

app = typer.Typer()
app.command()(main)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def few(digits: Digits, train_count: int, test_count: int) -> Digits:
    return Digits(
        digits.train_x[:train_count],
        digits.train_y[:train_count],
        digits.test_x[:test_count],
        digits.test_y[:test_count],
    )


def test_digits_are_split_and_standardised() -> None:
    digits = load_digits()
    assert digits.train_x.shape == (1437, 1, 32, 32)
    assert digits.test_x.shape == (360, 1, 32, 32)
    assert digits.train_y.unique().tolist() == list(range(10))
    assert abs(digits.train_x.mean().item()) < 1e-5
    assert abs(digits.train_x.std().item() - 1) < 1e-5


def test_split_follows_from_the_seed() -> None:
    assert torch.equal(load_digits(seed=3).test_y, load_digits(seed=3).test_y)
    assert not torch.equal(load_digits(seed=3).test_y, load_digits(seed=4).test_y)


def test_grey_values_are_repeated_for_colour_networks() -> None:
    digits = load_digits(channels=3)
    assert digits.test_x.shape == (360, 3, 32, 32)
    assert torch.equal(digits.test_x[:, 0], digits.test_x[:, 2])


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'tconv\[train\]'"):
        load_digits()


def test_torch_learns_the_digits() -> None:
    first, second = train(build("lenet5", Backend.torch, 0), load_digits(), epochs=2)
    assert second.test_accuracy > 0.9
    assert second.loss < first.loss


def test_loss_curve_is_torchs_to_rounding() -> None:
    if not interpreting():
        pytest.skip("needs TRITON_INTERPRET=1")
    digits = few(load_digits(), 24, 8)
    with recorded() as launches:
        ours = list(train(build("lenet5", Backend.tconv, 0), digits, epochs=2, batch=8))
    theirs = list(train(build("lenet5", Backend.torch, 0), digits, epochs=2, batch=8))
    ran = {launch.kernel for launch in launches}
    assert any("fprop" in kernel for kernel in ran), ran
    assert any("wgrad" in kernel for kernel in ran), ran
    assert any("max_pool" in kernel for kernel in ran), ran
    for mine, twin in zip(ours, theirs, strict=True):
        # Adam divides by the gradient's size: rounding grows over steps.
        torch.testing.assert_close(
            torch.tensor(mine.batch_losses), torch.tensor(twin.batch_losses), rtol=1e-4, atol=1e-5
        )


def test_torch_backend_launches_no_kernel() -> None:
    digits = few(load_digits(), 16, 8)
    with recorded() as launches:
        list(train(build("lenet5", Backend.torch, 0), digits, epochs=1, batch=8))
    assert launches == []


def test_where_it_runs_is_said() -> None:
    cpu = torch.device("cpu")
    assert "torch's own" in where(Backend.torch, cpu)
    expected = "in Triton's interpreter" if interpreting() else "TRITON_INTERPRET=1"
    assert expected in where(Backend.tconv, cpu)


def test_command_trains_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "run.csv"
    arguments = ("--model", "lenet5", "--backend", "torch", "--epochs", "2", "--batch", "256")
    code, output = invoke(*arguments, "--device", "cpu", "--log", str(log))
    assert code == 0, output
    for words in ("torch's own", "epoch 2/2", "test accuracy"):
        assert words in output
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "lenet6"), ("lenet6", "lenet5", "vgg16")),
        (("--model", "lenet5", "--backend", "jax"), ("jax", "tconv", "torch")),
        (("--model", "lenet5", "--device", "abacus"), ("abacus",)),
        (("--model", "lenet5", "--log", "/no/such/folder/x.csv"), ("/no/such/folder",)),
        (("--model", "lenet5", "--epochs", "0"), ("epochs",)),
    ],
    ids=["model", "backend", "device", "log folder", "epochs"],
)
def test_bad_argument_exits_2_and_lists_what_exists(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, output = invoke(*arguments)
    assert code == 2
    assert all(word in output for word in words), output
