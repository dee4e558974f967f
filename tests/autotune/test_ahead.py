"""Tests of ``autotune compile``, which compiles suites' kernels like ``tconv.warm_up``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autotune import ahead
from autotune.ahead import compile_suites
from autotune.cli import app
from tconv.aot.warm_up import Kernel, WarmUp
from tconv.launch import Launch
from tconv.target import TARGETS, Target

HOPPER = TARGETS["sm_90"]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches that would be compiled; nothing is compiled."""
    found: list[Launch] = []

    def note(launches: Sequence[Launch], target: Target, *_: Any) -> WarmUp:
        assert target == HOPPER
        found[:] = launches
        failed = (("tma.implicit_gemm_tma", "error: out of registers"),) * (len(launches) > 20)
        return WarmUp(target, tuple(Kernel(each.kernel, "0" * 64) for each in launches), (), failed)

    monkeypatch.setattr(ahead, "compile_all", note)
    return found


def kinds(launches: list[Launch]) -> set[str]:
    return {launch.kernel.split(".")[1] for launch in launches}


def test_a_model_is_compiled_with_its_pools_and_passes(launches: list[Launch]) -> None:
    compile_suites(["lenet5"], ["fprop"], "float16", 8, HOPPER, 1)
    assert "max_pool_fprop" in kinds(launches)
    assert not any("grad" in kind for kind in kinds(launches))
    forward = {launch.identity for launch in launches}
    compile_suites(["lenet5"], ["fprop", "dgrad", "wgrad"], "float16", 8, HOPPER, 1)
    assert {"max_pool_dgrad", "max_pool_fprop"} < kinds(launches)
    assert len(forward & {launch.identity for launch in launches}) >= 2  # its convolutions


def test_precision_follows_the_dtype(launches: list[Launch]) -> None:
    found = {}
    for dtype in ("tf32", "tf32x3"):
        compile_suites(["lenet5"], ["fprop"], dtype, 8, HOPPER, 1)
        found[dtype] = {launch.constants.get("PRECISION") for launch in launches} - {None}
    assert found == {"tf32": {"tf32"}, "tf32x3": {"tf32x3"}}


def test_layers_without_a_model_are_compiled_one_by_one(launches: list[Launch]) -> None:
    compile_suites(["grouped"], ["fprop"], "float16", 8, HOPPER, 1)
    assert launches
    assert len({launch.identity for launch in launches}) == len(launches)


def test_the_command_prints_saves_and_reports_failures(
    launches: list[Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compile", "--target", "sm_90", "--suite", "lenet5"]
    done = CliRunner().invoke(app, [*command, "--passes", "fprop", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["compiled"] == len(launches)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "empty"))
    done = CliRunner().invoke(app, [*command, "--passes", "fprop", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "Triton's cache no longer holds" in done.output
    done = CliRunner().invoke(app, [*command, "--suite", "grouped"])
    assert done.exit_code == 1
    assert "1 failed" in done.output
    assert "out of registers" in done.output


def test_a_folder_without_kernels_is_refused(tmp_path: Path) -> None:
    command = ["compile", "--from", str(tmp_path), "--target", "sm_90"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "holds no compiled kernels" in done.output
