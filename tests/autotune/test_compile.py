"""Real compilation for GPUs that are not here, in worker processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from autotune.compile import Compiled, compile_choice
from tconv.aot.build import ENVIRONMENT
from tconv.families import FAMILIES
from tconv.geometry import ConvGeometry, Pass
from tconv.problem import Problem
from tconv.select import heuristic
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tconv_workers import Failure, Task, Workers

LAYER = ConvGeometry(8, 256, 28, 28, 128, 3, 3, pad_h=1, pad_w=1)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2, ENVIRONMENT) as pool:
        yield pool


def compiled(workers: Workers, name: str, *problems: tuple[Problem, Tile]) -> list[object]:
    tasks = [
        Task(number, compile_choice, (problem, Choice("implicit_gemm", tile), TARGETS[name]))
        for number, (problem, tile) in enumerate(problems)
    ]
    results = {task.key: result for task, result, _ in workers.run(tasks, 600.0)}
    return [results[number] for number in range(len(problems))]


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx942"])
def test_registers_shared_memory_and_loop(workers: Workers, name: str) -> None:
    directions: tuple[Pass, ...] = ("fprop", "wgrad")
    posed = [Problem(LAYER, direction) for direction in directions]
    tiles = [(problem, heuristic(problem, TARGETS[name]).tile) for problem in posed]
    for result in compiled(workers, name, *tiles):
        assert isinstance(result, Compiled), result
        taken = result.resources
        assert 16 < taken.registers <= 512
        assert taken.spill_bytes == result.helper_spill_bytes == 0
        assert 0 < taken.shared_bytes <= TARGETS[name].shared_per_program
        assert 20 < taken.instructions < 1500


def test_a_step_is_counted_whole_where_warp_groups_share_rows(workers: Workers) -> None:
    """The loop of eight warps over 64 rows holds one step, and more than half of four warps'."""
    problem = Problem(LAYER, "fprop")
    tiles = [(problem, Tile(64, 128, 32, stages=3, warps=warps)) for warps in (4, 8)]
    four, eight = compiled(workers, "sm_90", *tiles)
    assert isinstance(four, Compiled)
    assert isinstance(eight, Compiled)
    assert eight.resources.instructions > 0.7 * four.resources.instructions


def test_spills_are_seen(workers: Workers) -> None:
    exact = Problem(LAYER, "fprop", "float64")
    (result,) = compiled(workers, "sm_90", (exact, Tile(128, 128, 16, stages=2, warps=4)))
    assert isinstance(result, Compiled), result
    assert result.resources.spill_bytes > 0


def test_a_tile_that_no_compiler_takes_is_a_failure(workers: Workers) -> None:
    (result,) = compiled(workers, "sm_90", (Problem(LAYER, "fprop"), Tile(128, 128, 8)))
    assert isinstance(result, Failure)
    assert result.reason == "error"


@pytest.fixture(scope="module")
def cache_keys() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.autotune.cache_keys"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_an_identity_stands_for_one_key_of_tritons_cache(cache_keys: dict[str, Any]) -> None:
    """Of launches of different sizes: kernels that are counted as one are compiled once."""
    pairs = {(identity, key) for identity, key in cache_keys["sizes"]}
    identities, keys = ({pair[place] for pair in pairs} for place in (0, 1))
    assert len(cache_keys["sizes"]) > 2 * len(pairs)  # sizes do share kernels
    assert len(pairs) == len(identities)  # no identity has two keys
    assert len(pairs) == len(keys)  # nor any key two identities


def test_a_launch_finds_what_the_tuner_compiled(cache_keys: dict[str, Any]) -> None:
    """Else every candidate is compiled twice, the second time in the one process that measures."""
    found = {label: each for label, each in cache_keys.items() if label != "sizes"}
    hits = found.pop("compiled")
    assert hits
    assert all(hits)
    assert {label.split()[0] for label in found} == FAMILIES.keys()
    for label, (built, launched) in found.items():
        assert built, label
        assert built == launched, label
