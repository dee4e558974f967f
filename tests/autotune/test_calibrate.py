"""Constants are found again from times that they made; too little or no gain is said."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from attrs import evolve
from typer.testing import CliRunner

from autotune.calibrate import CalibrationError, calibrate
from autotune.cli import app
from autotune.trial import Trial
from autotune.trial_store import Store
from tconv import select
from tconv.cost.cheapest import cheapest
from tconv.cost.constants import (
    Calibrated,
    Constants,
    calibrated,
    read_calibrated,
    shipped_constants,
    user_constants,
    write_calibrated,
)
from tconv.cost.model import predict
from tconv.cost.space import candidates
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tconv.winners import TableError, Winner, user_table, write_table

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
            made.append(Trial("sm_90", problem, choice.family, choice.tile, "measured", "ok", time))
    return made


def test_constants_that_made_the_times_are_found() -> None:
    found = calibrate(trials(), H200)
    assert found.better
    assert found.error_after < 0.15 < found.error_before
    assert found.rank_after >= found.rank_before - 0.01
    assert found.rank_after > 0.95
    assert found.constants.launch_milliseconds == pytest.approx(0.006, rel=0.3)


def test_too_little_is_said() -> None:
    with pytest.raises(CalibrationError, match="10 measured trials of 1 problems"):
        calibrate(trials()[:10], H200)
    predicted = [evolve(trial, kind="predicted") for trial in trials()]
    with pytest.raises(CalibrationError, match="0 measured"):
        calibrate(predicted, H200)


def test_the_command_keeps_what_is_better_and_the_model_takes_it() -> None:
    with Store() as store:
        for trial in trials():
            store.add(trial)
    result = CliRunner().invoke(app, ["calibrate", "--target", "sm_90"])
    assert result.exit_code == 0, result.output
    assert "held out" in result.output
    kept = read_calibrated(user_constants("sm_90"))
    assert kept is not None
    assert calibrated(H200) == kept != Calibrated()
    calibrated.cache_clear()


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
        ('{"format": 1, "constants": {"l2_share": NaN}}', "NaN is not a JSON number"),
        ("[]", "damaged"),
        ('{"format": 1, "constants": {}, "untuned": "chance"}', "untuned is 'chance'"),
    ],
)
def test_a_damaged_file_is_named_and_the_assumed_hold(content: str, words: str) -> None:
    path = user_constants("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(TableError, match=words):
        read_calibrated(path)
    calibrated.cache_clear()
    with pytest.warns(UserWarning, match="assumed ones hold"):
        assert calibrated(H200) == read_calibrated(shipped_constants("sm_90"))
    calibrated.cache_clear()


def test_what_is_written_is_read() -> None:
    known = Calibrated(TRUE, "neighbour")
    write_calibrated(user_constants("nvidia-test"), "nvidia-test", known)
    assert calibrated(replace(H200, name="nvidia-test")) == known
    calibrated.cache_clear()


def alike(model_is_right: bool) -> list[Trial]:
    """Eight layers alike, six tiles each: one tile always wins, which the model knows or not."""
    problems = [Problem(ConvGeometry(64, 64, 28, 28, 8 * k, 3, 3), "fprop") for k in range(8, 16)]
    legal = [set(candidates(problem, H200)) for problem in problems]
    order = sorted(set.intersection(*legal), key=lambda c: (c.family, str(c.tile)))[::97][:6]
    made = []
    for problem in problems:
        ranked = sorted(order, key=lambda c: predict(problem, c, H200).milliseconds)
        best = ranked[0] if model_is_right else order[3] if order[3] != ranked[0] else order[4]
        made += [
            Trial("sm_90", problem, c.family, c.tile, "measured", "ok",
                  0.5 if c == best else 1.0 + 0.1 * ranked.index(c))
            for c in order
        ]  # fmt: skip
    return made


def test_whichever_proves_better_serves_untuned_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fitting must not make the model right: these times come from no model at all.
    monkeypatch.setattr("autotune.calibrate.fit", lambda observed, start, names: start)
    wrong = calibrate(alike(False), H200)
    assert (wrong.untuned, wrong.compared, wrong.neighbour_share) == ("neighbour", 8, 1.0)
    assert wrong.model_share < 0.6
    right = calibrate(alike(True), H200)
    assert right.untuned == "model"
    assert right.model_share == 1.0


def test_a_neighbours_winner_is_taken_where_it_proved_better() -> None:
    tuned = Problem(ConvGeometry(64, 64, 28, 28, 64, 3, 3), "fprop")
    near = Problem(ConvGeometry(64, 64, 28, 28, 96, 3, 3), "fprop")
    far = Problem(ConvGeometry(1, 512, 7, 7, 512, 3, 3), "fprop")
    other = Problem(ConvGeometry(64, 64, 28, 28, 96, 5, 5), "fprop")
    winner = Winner("implicit_gemm", Tile(64, 16, 16, stages=2, warps=2), "measured", 1.0)
    assert winner.tile != cheapest(near, H200).tile
    write_table(user_table("sm_90"), "sm_90", {tuned.key: winner})
    write_calibrated(user_constants("sm_90"), "sm_90", Calibrated(untuned="neighbour"))
    select.forget()
    try:
        assert select.choose(near, H200) == Choice("implicit_gemm", winner.tile)
        assert select.choose(far, H200) == cheapest(far, H200)
        assert select.choose(other, H200) == cheapest(other, H200)
    finally:
        user_constants("sm_90").unlink()
        select.forget()
    assert select.choose(near, H200) == cheapest(near, H200)
