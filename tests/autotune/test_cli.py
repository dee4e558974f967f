"""The command line: what it prints, and the status it ends with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from autotune.cli import app
from tconv import select
from tconv.winners import read_table, user_table


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def words(text: str) -> str:
    """The text with line breaks and boxes taken out."""
    return re.sub(r"[\s│]+", " ", text)


def lecture(*arguments: str, code: int = 0) -> str:
    result = invoke("layer", *arguments, "--target", "sm_90")
    assert result.exit_code == code, result.output
    return words(result.output)


def test_layer_in_the_lectures_terms() -> None:
    hyperparameters = ("--filters", "10", "--extent", "5", "--stride", "1", "--padding", "2")
    text = lecture("--input", "3x32x32", *hyperparameters, "--batch", "1")
    assert "10x32x32" in text
    assert re.search(r"\b760\b", text)
    assert "(W - F + 2P)/S + 1" in text
    assert "(32 - 5 + 2*2)/1 + 1 = 32" in text
    assert "1,536,000 FLOP" in text  # 2 * 75 * 10 * 32 * 32
    least = 2 * (3 * 32 * 32 + 10 * 75 + 10 * 32 * 32)  # x, w and y in 16 bits
    assert f"{least:,} bytes" in text
    assert "memory-bound" in text
    for direction in ("fprop", "dgrad", "wgrad"):
        assert re.search(rf"{direction}: \w+, tile \d+x\d+x\d+ .*heuristic", text)


def test_layer_on_the_other_side_of_the_roofline() -> None:
    text = lecture("--input", "256x56x56", "--filters", "256", "--extent", "3", "--padding", "1")
    assert "compute-bound" in text


def test_a_filter_that_does_not_fit_is_said_plainly() -> None:
    text = lecture("--input", "1x7x7", "--filters", "1", "--extent", "3", "--stride", "3")
    assert "2.33" in text
    assert "does not fit" in text
    assert "1 row at the bottom" in text
    assert "1 column at the right" in text
    assert "1x2x2" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "3x5x5", "--filters", "1", "--extent", "7"), "larger than the padded input"),
        (("--input", "3x5x5", "--filters", "0", "--extent", "3"), "out_channels is 0"),
        (("--input", "3x5", "--filters", "1", "--extent", "3"), "CxHxW"),
        (("--input", "3x5x5", "--filters", "1", "--extent", "3", "--stride", "0"), "stride_h is 0"),
        (("--input", "3x5x5", "--filters", "2", "--extent", "3", "--groups", "2"), "in_channels"),
    ],
)
def test_impossible_layers(arguments: tuple[str, ...], message: str) -> None:
    assert message in lecture(*arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (("--suite", "nope"), ("lenet5", "vgg16")),
        (("--target", "sm_9"), ("sm_80", "sm_90", "sm_100", "gfx942")),
        (("--passes", "fprop,back"), ("fprop", "dgrad", "wgrad")),
        (("--dtype", "int8"), ("float16", "bfloat16", "tf32", "float32", "float64")),
    ],
    ids=["suite", "target", "pass", "dtype"],
)
@pytest.mark.parametrize("command", ["tune", "space"])
def test_unknown_names_list_what_exists(
    command: str, arguments: tuple[str, ...], listed: tuple[str, ...]
) -> None:
    result = invoke(command, *arguments)
    assert result.exit_code == 2
    for name in listed:
        assert name in result.output


def test_suites_lists_the_layers() -> None:
    text = words(invoke("suites").output)
    assert "lenet5 c1 1x32x32 K=6 F=5 S=1 P=0 6x28x28" in text
    assert "features.24" in text


def test_space_counts_what_each_rule_leaves() -> None:
    result = invoke("space", "--suite", "lenet5", "--passes", "fprop", "--target", "sm_90")
    assert result.exit_code == 0
    text = words(result.output)
    assert "shared memory" in text
    for layer in ("c1", "c3", "c5"):
        counts = [int(n) for n in re.findall(rf"lenet5 {layer} fprop ([\d ]+)", text)[0].split()]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] > 0


def test_tune_predicts_keeps_and_resumes() -> None:
    command = ("tune", "--suite", "lenet5", "--passes", "fprop", "--target", "sm_90")
    first = invoke(*command, "--candidates", "1", "--batch", "4")
    assert first.exit_code == 0, first.output
    text = words(first.output)
    assert "predicted ms" in text
    assert "measured ms" not in text
    path = user_table("sm_90")
    assert str(path) in first.output
    assert "trials.sqlite" in first.output
    assert "3 compiled" in text
    assert len(read_table(path)) == 3
    assert {winner.kind for winner in read_table(path).values()} == {"predicted"}

    again = words(invoke(*command, "--candidates", "1", "--batch", "4").output)
    assert "0 compiled" in again
    select.forget()
    layer = ("--filters", "6", "--extent", "5", "--batch", "4")
    assert "(predicted" in lecture("--input", "1x32x32", *layer)
    select.forget()


def test_runs_as_a_module(tmp_path: Path) -> None:
    """Without the interpreter's variable and from another folder."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "TCONV_HOME": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "autotune", "suites"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vgg16" in done.stdout


@pytest.mark.parametrize("budget", ["0", "0s", "soon", "-8m"])
def test_a_budget_of_nothing_is_refused(budget: str) -> None:
    result = invoke("tune", f"--time-limit={budget}")
    assert result.exit_code == 2
    assert repr(budget) in result.output
    assert "8m" in result.output
