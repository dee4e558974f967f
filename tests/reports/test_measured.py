"""Tests of a report of (made-up) measurements with all parts of a GPU's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import evolve

from reports import beside_torch
from reports.goals import goals_grid, reached
from reports.render import default_folder, render
from reports.row_files import RowError
from reports.tables import Tables, merged, read_tables, write_tables
from tests.reports.conftest import measured
from tests.reports.test_render import NUMBER, Page, known_numbers, shown_numbers


@pytest.fixture(scope="module")
def golden(tables: Tables) -> Tables:
    return measured(tables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, golden: Tables) -> Path:
    path = tmp_path_factory.mktemp("measured")
    render(golden, path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_every_number_is_in_a_csv_or_a_ratio_of_two(
    folder: Path, page: Page, golden: Tables
) -> None:
    known = known_numbers(folder, golden)
    for row in golden.layers:
        for theirs in (row.cudnn_nhwc_ms, row.cudnn_nchw_ms):
            if theirs and row.tconv_ms:
                known.add(f"{theirs / row.tconv_ms:.2f}")
    for rows in beside_torch.by_network(golden.networks).values():
        known |= {f"{rows['torch'].ms / row.ms:.2f}" for row in rows.values()}
    known |= {f"{row.tconv_peak_mib / row.torch_peak_mib:.2f}" for row in golden.memory}
    for kind in ("layers", "code", "losses", "networks", "memory"):
        numbers = shown_numbers(page, kind)
        assert numbers, kind
        assert numbers <= known, (kind, numbers - known)


def test_the_first_screen_is_a_verdict_the_machine_and_means(folder: Path, page: Page) -> None:
    text = (folder / "index.md").read_text(encoding="utf-8")
    head = text[: text.index("## ")]
    for word in ("times as fast as torch's on channels_last", "570.99", "9.10.2", "SM 1980 MHz",
                 "4321 GB/s", "765 TFLOP/s float16", "times as fast as contiguous, geometric mean",
                 "torch.compile did not run"):  # fmt: skip
        assert word in head, word


def test_every_figure_is_labelled_measured_and_none_predicted(folder: Path, page: Page) -> None:
    headings = [word for kind, words, _ in page.tables if kind == "layers" for word in words]
    assert {"measured ms", "measured cuDNN ms, channels_last"} <= set(headings)
    assert not any("predicted" in word for _, words, _ in page.tables for word in words)
    assert "measured" in page.title
    figures = {path.stem: path for path in folder.glob("*.svg")}
    assert {"speedup-lenet5", "speedup-vgg16-relu-pool", "networks-inference", "memory",
            "operators-inference", "prediction", "roofline-other"} <= figures.keys()  # fmt: skip
    for name, path in figures.items():
        text = "".join(ElementTree.parse(path).getroot().itertext())
        assert "measured" in text, name
        assert "predicted" not in text, name


def test_losses_are_reported_with_their_cause(page: Page, golden: Tables) -> None:
    (cells,) = (cells for kind, _, cells in page.tables if kind == "losses")
    lost = [row for row in golden.layers if (row.times_nhwc or 1) < 1]
    assert len(lost) == 2
    assert cells.count("six channels fill no load") == 1
    other = beside_torch.cause_of(golden)(next(row for row in lost if row.direction != "fprop"))
    assert other.startswith("bound by ")


def test_written_causes_are_kept(folder: Path, golden: Tables, tmp_path: Path) -> None:
    write_tables(tmp_path, golden)
    render(replace(golden, causes=[]), tmp_path)
    assert "six channels fill no load" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "causes.csv").read_text() == (folder / "causes.csv").read_text()


def test_goals_are_compared_with_the_figures(golden: Tables) -> None:
    by_name = {(each.goal.work, each.goal.against): each for each in reached(golden)}
    fused = by_name["with bias, ReLU and 2x2 pool", "torch, eager"]
    assert fused.figures == pytest.approx([0.1432 / 0.0777])
    assert fused.met
    training = by_name["lenet5 training step", "torch, eager"]
    assert training.figures == pytest.approx([0.16 / 0.025])
    assert training.met
    graphed = by_name["lenet5 training step", "torch graphed"]
    assert graphed.figures == pytest.approx([0.032 / 0.025])
    assert graphed.met is False
    assert by_name["VGG-16 fprop", "cuDNN, channels_last"].met is None
    rows = {row[0]: row for row in goals_grid(golden).rows}
    assert rows["VGG-16 fprop"][-3:] == ["not measured", "", ""]
    least = evolve(golden.layers[0], suite="vgg16", direction="fprop", tconv_ms=1.0)
    slow = [evolve(least, cudnn_nhwc_ms=ms) for ms in (0.8, 1.5)]
    (vgg,) = (r for r in reached(replace(golden, layers=slow)) if r.goal.work == "VGG-16 fprop")
    assert vgg.mean > 1
    assert vgg.met is False  # one ratio is below 0.9


def test_ours_is_the_better_of_two_ways_to_launch(golden: Tables) -> None:
    plain = [row for row in golden.networks if row.backend != "tconv graphed"]
    found = reached(replace(golden, networks=plain))
    (step,) = (r for r in found if r.goal.work == "lenet5 training step" and r.goal.least == 4.0)
    assert step.figures == pytest.approx([0.16 / 0.125])


def test_missing_measurements_are_reported(tmp_path: Path, golden: Tables) -> None:
    rows = [evolve(row, cudnn_nhwc_ms=None, cudnn_nchw_ms=None) for row in golden.layers]
    bare = replace(golden, layers=rows, networks=[], operators=[], memory=[], causes=[])
    render(bare, tmp_path)
    text = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "Not measured yet: networks and memory." in text
    assert f"Not measured beside cuDNN: {len(rows)} of {len(rows)} rows." in text
    assert "## Goals" not in text
    assert "share of the roofline" in text.lower()
    assert not list(tmp_path.glob("speedup*"))


def test_tables_are_read_as_they_were_written(folder: Path, golden: Tables) -> None:
    assert read_tables(folder) == golden


def test_measurements_and_predictions_have_separate_folders(tmp_path: Path, tables: Tables) -> None:
    write_tables(tmp_path, tables)
    write_tables(tmp_path / "other", measured(tables))
    (tmp_path / "networks.csv").write_text((tmp_path / "other" / "networks.csv").read_text())
    with pytest.raises(RowError, match=r"networks\.csv: measured figures in a report of predicted"):
        read_tables(tmp_path)


def test_tuning_and_bench_make_one_report(golden: Tables) -> None:
    tuned = replace(golden, layers=golden.layers[:-2], networks=[], operators=[], memory=[])
    benched = replace(golden, layers=golden.layers[:1] + golden.layers[-2:], trials=[], map=[])
    whole = merged(tuned, benched)
    names = [(row.suite, row.layer, row.direction) for row in whole.layers]
    assert len(names) == len(set(names)) == len(golden.layers)
    assert (whole.trials, whole.networks) == (tuned.trials, benched.networks)
    assert merged(None, benched) is benched
    assert merged(tuned, None) is tuned
    with pytest.raises(LookupError):
        merged(None, None)


def test_the_folder_is_named_after_the_gpu(golden: Tables) -> None:
    assert default_folder(golden).name == "nvidia-made-up"


def test_numbers_are_found_in_the_tables_formats() -> None:
    assert NUMBER.findall("0.0123 ms, 64x64, 1e-05") == ["0.0123", "64", "64", "1e-05"]
