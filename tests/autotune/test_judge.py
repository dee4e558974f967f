"""The judge of the cost model: both forms of tables are read, shares are those worked by hand."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autotune.calibrate import fitted_half, held_out
from autotune.cli import app
from autotune.few_measurements import shares_after
from autotune.judge import below_published, judge, predicted, verdict
from autotune.nvidia import first_choice
from autotune.recordings import Recording, RecordingError, layer_of, read_recording, tables_of
from tconv.problem import Problem
from tconv.tile import Tile

TILES = [(m, n, 32, 3, 4) for m in (16, 32, 64, 128) for n in (32, 64, 128)]
GEMM_HEAD = (
    "gpu,dtype,M,N,K,as_conv1x1_pass,family,BLOCK_M,BLOCK_N,BLOCK_K,num_stages,num_warps,time_ms\n"
)
CUTLASS_HEAD = (
    "gpu,pass,dtype,accum,N,H,W,C,K,R,S,pad_h,pad_w,stride_h,stride_w,"
    "cta_m,cta_n,cta_k,stages,warps,align,split_k,time_ms,status\n"
)


def products(gpu: str = "A100", direction: str = "fprop", dtype: str = "float16") -> str:
    """A problem whose times the model predicts itself, and cuBLAS at half of the best."""
    problem = Problem.of(layer_of(direction, 512, 256, 384), direction, dtype)  # type: ignore
    recording = Recording(gpu, problem, tuple(Tile(*tile) for tile in TILES), np.ones(len(TILES)))
    times = predicted(recording)
    head = f"{gpu},{dtype},512,256,384,{direction}"
    lines = [f"{head},extern,,,,,,{min(times) / 2}"]
    lines += [
        f"{head},triton,{','.join(map(str, tile))},{time}"
        for tile, time in zip(TILES, times, strict=True)
    ]
    return "\n".join(lines) + "\n"


def convolutions(status: str = "passed") -> str:
    rows = [
        f"RTX 3070,wgrad,float16,f32,8,14,14,64,64,3,3,1,1,2,2,{','.join(map(str, tile))},"
        f"8,1,{0.1 + place / 100},{status}"
        for place, tile in enumerate(TILES)
    ]
    return "\n".join(rows) + "\n"


def test_shares_are_best_over_best_of_the_first() -> None:
    problem = Problem(layer_of("fprop", 512, 256, 384), "fprop")
    recording = Recording("A100", problem, tuple(Tile(*each) for each in TILES[:5]),
                          np.array([5.0, 4.0, 3.0, 2.0, 1.0]))  # fmt: skip
    found = verdict(recording, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.shares == (1 / 5, 1 / 2, 1.0)
    assert found.spearman == -1


def test_a_model_that_is_right_gets_full_marks(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    passes = [products("A100", "dgrad"), products("H100", "wgrad", "tf32")]
    path.write_bytes(gzip.compress((GEMM_HEAD + "".join(passes)).encode()))
    cells = judge(read_recording(path))
    assert [cell.name for cell in cells] == ["A100/float16/dgrad", "H100/tf32/wgrad"]
    for cell in cells:
        assert cell.spearman == pytest.approx(1)
        assert [cell.top(place) for place in range(3)] == [1, 1, 1]
        assert list(cell.ratio_by_decade.values()) == pytest.approx([1] * len(cell.ratio_by_decade))
        assert cell.verdicts[0].library == pytest.approx(0.5)


def test_rows_that_failed_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    spoilt = [
        "A100,float16,512,256,384,fprop,triton,64,64,64,3,4,inf",
        "A100,float16,512,256,384,fprop,triton,64,64,64,3,8,",
        "A100,float16,512,256,384,fprop,triton,64,48,64,3,4,0.1",
        "A100,float16,512,256,384,,triton,64,64,64,3,4,0.1",
        "A100,int8,512,256,384,fprop,triton,64,64,64,3,4,0.1",
        "V100,float16,512,256,384,fprop,triton,64,64,64,3,4,0.1",
    ]
    path.write_text(GEMM_HEAD + products() + "\n".join(spoilt) + "\n")
    (recording,) = read_recording(path)
    assert recording.tiles == tuple(Tile(*each) for each in TILES)


def test_convolutions_are_layers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(CUTLASS_HEAD + convolutions() + convolutions("incorrect"))
    (recording,) = read_recording(path)
    assert recording.cell == "RTX 3070/float16/wgrad"
    assert recording.problem.geometry.key == "n8c64h14w14-k64f3x3-s2x2-p1x1-d1x1-g1"
    assert recording.best == 0.1


def test_the_command_prints_json_or_a_table(tmp_path: Path) -> None:
    first, second = tmp_path / "products.csv", tmp_path / "convolutions.csv"
    first.write_text(GEMM_HEAD + products())
    second.write_text(CUTLASS_HEAD + convolutions())
    result = CliRunner().invoke(app, ["judge", str(first), str(second), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert set(found) == {"A100/float16/fprop", "RTX 3070/float16/wgrad"}
    cell = found["A100/float16/fprop"]
    assert (cell["problems"], cell["top1"], cell["top4"], cell["top8"]) == (1, 1, 1, 1)
    result = CliRunner().invoke(app, ["judge", str(first)])
    assert result.exit_code == 0, result.output
    assert "A100/float16/fprop" in result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no CSV table"),
        ("a,b\n1,2\n", "neither form, which need BLOCK_K, .*, time_ms or C, .*; there are: a, b"),
        (GEMM_HEAD, "no problem in these tables has enough timed tiles"),
    ],
    ids=["empty", "other columns", "no rows"],
)
def test_what_cannot_be_judged_ends_the_command(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    result = CliRunner().invoke(app, ["judge", str(path)])
    assert result.exit_code == 2
    assert re.search(f"error: .*{words}", result.output), result.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="nowhere"):
        read_recording(tmp_path / "nowhere.csv")


def test_a_folder_gives_its_tables_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text(GEMM_HEAD + products())
    (tmp_path / "notes.md").write_text("no table")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert tables_of([tmp_path]) == [tmp_path / "products.csv"]
    (tmp_path / "products.csv").unlink()
    with pytest.raises(RecordingError, match="no recorded table"):
        tables_of([tmp_path])


def test_a_score_below_the_published_one_fails_the_command(tmp_path: Path) -> None:
    table, scores = tmp_path / "products.csv", tmp_path / "judged.json"
    table.write_text(GEMM_HEAD + products())
    cell = {"problems": 1, "spearman": 1.0, "top1": 1.0, "top8": 1.0}
    arguments = ["judge", str(table), "--hold", str(scores)]
    scores.write_text(json.dumps({"cells": {"A100/float16/fprop": cell}}))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    scores.write_text(json.dumps({"cells": {"A100/float16/fprop": {**cell, "top1": 1.02}}}))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "top1 1.000, published 1.020" in result.output
    scores.write_text("{}")
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_cell_of_other_problems_is_not_held_to_the_published_score() -> None:
    problem = Problem(layer_of("fprop", 512, 256, 384), "fprop")
    recording = Recording("A100", problem, tuple(Tile(*each) for each in TILES), np.ones(12))
    (cell,) = judge([recording])
    published = {cell.name: {"problems": 2, "spearman": 2, "top1": 2, "top8": 2}}
    assert below_published([cell], published) == []


def test_halves_are_of_problems_and_few_problems_are_not_halved() -> None:
    recordings = [
        Recording("A100", Problem(layer_of("fprop", 512, 256, 8 * k), "fprop"),
                  tuple(Tile(*each) for each in TILES), np.ones(12))
        for k in range(1, 221)
    ]  # fmt: skip
    unseen = held_out(recordings)
    assert 80 < len(unseen) < 140
    assert not any(fitted_half(each.problem) for each in unseen)
    assert held_out(recordings[:50]) == []


def test_recorded_convolutions_write_float32_and_fill_a_buffer_for_each_stage(
    tmp_path: Path,
) -> None:
    path = tmp_path / "table.csv"
    path.write_text(CUTLASS_HEAD + convolutions())
    (recording,) = read_recording(path)
    plain = replace(recording, result_itemsize=None)
    assert np.allclose(recording.work.written_bytes, 2 * plain.work.written_bytes)
    results = 2 * recording.problem.geometry.w_elements  # bytes more than in half precision
    assert np.allclose(recording.work.least_bytes, plain.work.least_bytes + results)
    assert (recording.work.resident <= plain.work.resident).all()
    assert (recording.work.resident < plain.work.resident).any()


def test_nvidias_first_choice_is_a_tile_that_was_timed() -> None:
    pytest.importorskip("nvMatmulHeuristics")
    problem = Problem.of(layer_of("fprop", 4096, 4096, 4096), "fprop", "float16")
    tiles = [(m, n, k, s, w) for m in (64, 128, 256) for n in (64, 128, 256) for k in (32, 64)
             for s in (2, 3, 4, 5) for w in (4, 8)]  # fmt: skip
    timed = tuple(Tile(*each) for each in tiles)
    recording = Recording("A100", problem, timed, np.ones(len(timed)))
    place = first_choice(recording)
    assert place is not None
    assert timed[place].block_m * timed[place].block_n >= 128 * 128
    assert first_choice(replace(recording, gpu="RTX 3070")) is None


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.nvidia.available", lambda: False)
    path = tmp_path / "products.csv"
    path.write_text(GEMM_HEAD + products())
    result = CliRunner().invoke(app, ["judge", str(path), "--nvidia"])
    assert result.exit_code == 0
    assert "nvidia-matmul-heuristics is missing" in result.output


def test_a_tuner_that_measures_every_tile_finds_the_best() -> None:
    problem = Problem(layer_of("fprop", 512, 256, 384), "fprop")
    times = np.linspace(2.0, 1.0, len(TILES))
    recording = Recording("A100", problem, tuple(Tile(*each) for each in TILES), times)
    shares = shares_after(recording, (1, 4, len(TILES)))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    first = int(predicted(recording).argmin())
    assert shares[0] == pytest.approx(1 / times[first])
