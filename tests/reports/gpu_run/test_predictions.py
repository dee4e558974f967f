"""Tests of writing predictions and comparing them with later measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from reports.gpu_run import predictions
from reports.gpu_run.predictions import (
    GPUS,
    TUNED,
    Predicted,
    compared,
    file_of,
    page,
    target_named,
    write_predictions,
)
from reports.row_files import read_rows
from reports.tables import Tables
from tconv.target import bandwidth_of
from tconv_workers import Task
from tests.reports.conftest import measured


class InPlace:
    """Stand-in for workers that runs tasks in this process."""

    def __init__(self, *_: object) -> None:
        pass

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Any, float]]:
        for task in tasks:
            yield task, task.function(*task.arguments), 0.0

    def __enter__(self) -> InPlace:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_predictions_are_written_once_for_each_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "Workers", InPlace)
    files = write_predictions(tmp_path, work=TUNED[1:2], most=3)
    assert files == [file_of(tmp_path, name) for name in GPUS]
    h100, h200 = (read_rows(file, Predicted) for file in files)
    assert [row.key for row in h100] == [row.key for row in h200]
    assert {row.direction for row in h100} == {"fprop", "dgrad", "wgrad"}
    assert all(row.predicted_ms > 0 for row in (*h100, *h200))
    before = files[0].read_text()
    files[1].unlink()
    write_predictions(tmp_path, work=TUNED[1:2], most=1)  # earlier predictions are kept
    assert files[0].read_text() == before
    assert len(read_rows(files[1], Predicted)) == 1


def test_the_h200_has_the_faster_memory() -> None:
    h100, h200 = map(target_named, GPUS)
    assert h100.bandwidth_gbps == bandwidth_of("NVIDIA H100 80GB HBM3", h200) < h200.bandwidth_gbps
    assert replace(h100, name=h200.name, product=h200.product,
                   bandwidth_gbps=h200.bandwidth_gbps) == h200  # fmt: skip


def test_the_page_compares_by_layer_and_pass(tables: Tables) -> None:
    rows = [evolve(row, tconv_ms=2.0) for row in measured(tables).layers
            if row.filters and not row.epilogue]  # fmt: skip
    figures = ("implicit_gemm", "64x64x32 s3 w4 g8 k1", 1.0)
    predicted_rows = [Predicted(row.suite, row.layer, row.direction, row.dtype, row.batch, *figures)
            for row in rows]  # fmt: skip
    absent = evolve(predicted_rows[0], layer="never measured")
    found = compared([*predicted_rows, absent], rows)
    assert [each.predicted for each in found] == predicted_rows
    text = page(found, "NVIDIA H200")
    assert "never measured" not in text
    for direction in {row.direction for row in rows}:
        count = sum(row.direction == direction for row in rows)
        assert f"| {direction} | {count} | 2.00 | 1.00 |" in text
    assert all(f"| {row.layer} | {row.direction} | {row.dtype} | 1 | 2 | 2.00 |" in text
               for row in rows)  # fmt: skip


def test_a_file_of_0_1_0_is_read(tmp_path: Path) -> None:
    path, tile = tmp_path / "nvidia-h200.csv", "64x64x32 s3 w4 g8 k1"
    header = "suite,layer,direction,dtype,batch,family,tile,predicted_ms"
    path.write_text(f"{header}\nvgg16,features.0,dgrad,float16,64,direct,{tile},0.5\n")
    row = Predicted("vgg16", "features.0", "dgrad", "float16", 64, "direct", tile, 0.5)
    assert read_rows(path, Predicted) == [row]


def test_predictions_cover_the_tuned_problems() -> None:
    from reports.gpu_run import steps

    assert steps.TUNED is predictions.TUNED
