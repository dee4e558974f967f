"""Constants are found again from times that they made; too little or no gain is said."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from autotune.calibrate import CalibrationError, calibrate
from autotune.cli import app
from autotune.store import Store
from autotune.trial import Trial
from tconv.cost.constants import (
    Constants,
    constants_of,
    read_constants,
    user_constants,
    write_constants,
)
from tconv.cost.model import predict
from tconv.cost.space import candidates
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.table import TableError
from tconv.target import TARGETS

H200 = TARGETS["sm_90"]
TRUE = replace(Constants(), matrix_share=0.6, dram_share=0.7, prologue_clocks=4000.0,
               launch_milliseconds=0.006)  # fmt: skip
SHAPES = [(64, 64, 56), (64, 128, 28), (8, 512, 14), (64, 3, 64), (1, 256, 14), (32, 96, 28)]


def trials(known: Constants = TRUE) -> list[Trial]:
    """A dozen tiles of six layers, timed by ``known`` with 5% of noise."""
    chance = random.Random(0)
    made = []
    for batch, channels, side in SHAPES:
        problem = Problem(ConvGeometry(batch, channels, side, side, 64, 3, 3), "fprop")
        for choice in chance.sample(candidates(problem, H200), 12):
            time = predict(problem, choice, H200, None, known).milliseconds
            time *= chance.lognormvariate(0, 0.05)
            made.append(
                Trial("sm_90", problem, choice.algorithm, choice.tile, "measured", "ok", time)
            )
    return made


def test_constants_that_made_the_times_are_found() -> None:
    found = calibrate(trials(), H200)
    assert found.better
    assert found.error_after < 0.1 < found.error_before
    assert found.rank_after >= found.rank_before - 0.01
    assert found.rank_after > 0.95
    assert found.constants.launch_milliseconds == pytest.approx(0.006, rel=0.3)


def test_too_little_is_said() -> None:
    with pytest.raises(CalibrationError, match="10 measured trials of 1 problems"):
        calibrate(trials()[:10], H200)
    predicted = [replace(trial, kind="predicted") for trial in trials()]
    with pytest.raises(CalibrationError, match="0 measured"):
        calibrate(predicted, H200)


def test_the_command_keeps_what_is_better_and_the_model_takes_it() -> None:
    with Store() as store:
        for trial in trials():
            store.add(trial)
    result = CliRunner().invoke(app, ["calibrate", "--target", "sm_90"])
    assert result.exit_code == 0, result.output
    assert "held out" in result.output
    kept = read_constants(user_constants("sm_90"))
    assert kept is not None
    assert constants_of("sm_90") == kept != Constants()
    constants_of.cache_clear()


def test_without_trials_the_command_says_so() -> None:
    result = CliRunner().invoke(app, ["calibrate", "--target", "sm_90"])
    assert result.exit_code == 2
    assert "0 measured trials" in result.output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ('{"format": 9, "constants": {}}', "format 9"),
        ('{"format": 1, "constants": {"wishes": 1.0}}', "no constant 'wishes'"),
        ('{"format": 1, "constants": {"l2_share": "much"}}', "l2_share is 'much'"),
        ('{"format": 1, "constants": {"l2_share": NaN}}', "l2_share is nan"),
        ("[]", "damaged"),
    ],
)
def test_a_damaged_file_is_named_and_the_assumed_hold(content: str, words: str) -> None:
    path = user_constants("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(TableError, match=words):
        read_constants(path)
    constants_of.cache_clear()
    with pytest.warns(UserWarning, match="assumed ones hold"):
        assert constants_of("sm_90") == Constants()
    constants_of.cache_clear()


def test_what_is_written_is_read() -> None:
    write_constants(user_constants("nvidia-test"), "nvidia-test", TRUE, 72)
    assert constants_of("nvidia-test") == TRUE
    constants_of.cache_clear()
