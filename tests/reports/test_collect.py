"""Tests of collecting trials into rows, named by suite; the fastest checked trial wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from attrs import evolve

from autotune.suites import suite
from autotune.trial import Trial
from reports.collect import OTHER, collect, name_problems
from reports.row_files import RowError
from reports.tables import Tables, read_tables, write_tables
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.target import TARGETS

SM_90 = TARGETS["sm_90"]


def test_layers_are_named_and_ordered_by_suite(tables: Tables) -> None:
    named = [(row.suite, row.layer, row.direction) for row in tables.layers]
    assert named[:3] == [("lenet5", "c3", direction) for direction in PASSES]
    assert [name[0] for name in named[3:]] == [OTHER] * 3


def test_a_network_is_named_only_for_layers_that_no_other_explains() -> None:
    def problems(*suites: str) -> list[Problem]:
        return [Problem(layer.geometry, "fprop") for name in suites for layer in suite(name)]

    def named(*suites: str) -> list[str]:
        return list(dict.fromkeys(entry.suite for entry in name_problems(problems(*suites))))

    assert named("vgg16") == ["vgg16"]  # although it shares layers with vgg11 and vgg19
    assert named("vgg11") == ["vgg11"]
    assert named("lenet5", "resnet50") == ["lenet5", "resnet50"]
    assert named("mobilenet_v2") == ["mobilenet_v2"]


def test_figures_follow_from_the_time(tables: Tables) -> None:
    row = tables.layers[0]
    assert row.tconv_ms == 0.01235
    assert row.tile == "32x16x16 s2 w4 g8 k1"
    assert row.tflops == pytest.approx(row.geometry.flops / 0.0123456e-3 / 1e12, rel=1e-3)
    least = SM_90.roofline_seconds(row.geometry.flops, row.problem.least_bytes, "float16")
    assert row.roofline_share == pytest.approx(least / 0.0123456e-3, rel=1e-3)


def test_an_unchecked_candidate_cannot_win(trials: list[Trial]) -> None:
    unchecked = [evolve(t, error_fp64=None) if t.tile.block_m == 32 else t for t in trials]
    made = collect(unchecked, SM_90, "predicted")
    assert {row.tile for row in made.layers} == {"64x16x16 s2 w4 g8 k1"}


def test_trials_of_older_kernels_do_not_count(trials: list[Trial]) -> None:
    older = [evolve(t, source="old", milliseconds=1e-6) for t in trials]
    assert (
        collect([*older, *trials], SM_90, "predicted").layers
        == collect(trials, SM_90, "predicted").layers
    )


def test_other_kinds_and_targets_are_left_out(trials: list[Trial]) -> None:
    measured = [evolve(t, kind="measured", milliseconds=1e-6) for t in trials]
    foreign = [evolve(t, target="sm_80", milliseconds=1e-6) for t in trials]
    made = collect([*measured, *trials, *foreign], SM_90, "predicted")
    assert {row.kind for row in (*made.layers, *made.trials)} == {"predicted"}
    assert len(made.trials) == len(trials)


def test_without_trials_there_is_nothing_to_collect() -> None:
    with pytest.raises(LookupError, match="no predicted trials for sm_90"):
        collect([], SM_90, "predicted")


def test_tables_are_read_as_they_were_written(tmp_path: Path, tables: Tables) -> None:
    write_tables(tmp_path, tables)
    assert read_tables(tmp_path) == tables


def test_kinds_never_mix(tmp_path: Path, tables: Tables) -> None:
    mixed = [*tables.layers[:2], evolve(tables.layers[2], kind="measured")]
    write_tables(tmp_path, replace(tables, layers=mixed))
    with pytest.raises(RowError, match=r"layers\.csv: row 3, column kind: measured"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "cannot be read"), ("[]", "not a table"), ("{}", "target is missing")],
    ids=["empty", "list", "partial"],
)
def test_damaged_head_is_named(tmp_path: Path, tables: Tables, content: str, words: str) -> None:
    write_tables(tmp_path, tables)
    (tmp_path / "about.json").write_text(content)
    with pytest.raises(RowError, match=rf"about\.json.*{words}"):
        read_tables(tmp_path)


def test_trials_are_in_the_order_of_the_search(trials: list[Trial]) -> None:
    """Measurements alternate, so the store's order is by last write."""
    problem = trials[0].problem
    mine = [trial for trial in trials if trial.problem == problem]
    turned = [evolve(t, turn=turn) for turn, t in zip((2, 0, 1), mine, strict=True)]
    made = collect(turned, SM_90, "predicted")
    assert [row.tile for row in made.trials] == [str(mine[i].tile) for i in (1, 2, 0)]
