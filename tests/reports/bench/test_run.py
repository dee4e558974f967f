"""Tests of a bench run on small layers, in the interpreter if there is no GPU.

Everything but the times is as on a GPU: the same calls, checks and files.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attrs import evolve
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError
from typer.testing import CliRunner

from autotune.deadline import Deadline
from autotune.evaluate import DeviceLostError
from autotune.suites import suite
from reports.bench import layers as bench_layers
from reports.bench import networks
from reports.bench.cases import Case, ConvCase, PoolCase, cases
from reports.bench.layers import measure_case
from reports.bench.memory import memory_of, peak_memory
from reports.bench.networks import NetworkCase, kind_of, measure_network
from reports.bench.run import Run, Work, folder_of, rehearsal
from reports.bench.sides import Sides, sides
from reports.cli import app
from reports.rows import LayerRow
from reports.tables import read_tables
from tconv.geometry import PASSES, ConvGeometry
from tconv.launch import recorded
from tconv.problem import Problem
from tconv.target import TARGETS
from tests.devices import DEVICE

SHAPE = ConvGeometry(2, 8, 12, 10, 8, 3, 3, pad_h=1, pad_w=1)
SMALL = tuple(ConvCase("small", "conv", Problem(SHAPE, direction)) for direction in PASSES)
ENDED = (replace(SMALL[0], epilogue="+relu"), replace(SMALL[0], epilogue="+relu+pool"))
POOLS = tuple(c for c in cases(["lenet5"], PASSES, ["float16"], 2) if isinstance(c, PoolCase))[:2]


def test_a_rehearsal_is_named_by_what_runs_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.bench.run.emulated", lambda: None)
    assert rehearsal().product == "a CPU, in Triton's interpreter"
    monkeypatch.setattr("reports.bench.run.emulated", lambda: TARGETS["sm_90"])
    emulated = rehearsal()
    assert (emulated.name, emulated.arch) == ("rehearsal", "sm_90")
    assert emulated.product == "a CPU, on an emulated sm_90"


@pytest.mark.parametrize("case", [*SMALL, *ENDED, *POOLS], ids=lambda case: case.name)
def test_all_sides_compute_the_same_and_ours_launches_kernels(case: Case) -> None:
    side: Sides = sides(case, DEVICE, seed=5)
    wanted = side.wanted()
    with recorded() as launches:
        ours = side.ours()
    assert launches
    with recorded() as launches:
        theirs = {"nhwc": side.nhwc(), "nchw": side.nchw()}
    assert not launches
    for result in (ours, *theirs.values()):
        torch.testing.assert_close(result.double(), wanted, rtol=1e-2, atol=2e-2)
    if ours.shape[1] > 1:  # with one channel the two formats are the same
        assert theirs["nchw"].is_contiguous()
        assert theirs["nhwc"].is_contiguous(memory_format=torch.channels_last)
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_a_row_has_times_of_three_sides_and_errors_of_two() -> None:
    row = measure_case(SMALL[0], DEVICE, rehearsal())
    figures = (row.tconv_ms, row.cudnn_nhwc_ms, row.cudnn_nchw_ms, row.tflops, row.gbps)
    assert all(figure and figure > 0 for figure in figures)
    assert 0 < (row.error_fp64 or 0) < 1e-2
    assert 0 < (row.cudnn_error_fp64 or 0) < 1e-2
    assert (row.family, row.kind) == ("implicit_gemm", "measured")


def test_a_run_is_stored_row_by_row_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    sample = measure_case(SMALL[0], DEVICE, rehearsal())

    def named(case: Case, *_: object) -> LayerRow:
        made.append(case.name)
        if case is ENDED[0]:
            raise RuntimeError("out of memory")
        return evolve(sample, suite=case.suite, direction=case.problem.direction)

    monkeypatch.setattr("reports.bench.run.measure_case", named)
    monkeypatch.setattr("reports.bench.machine.ceilings", lambda *_, **__: {"copy": 1.0})
    work = Work((*SMALL, ENDED[0]))
    spent = Run(rehearsal(), DEVICE, Deadline(1e-9))
    spent.do(work)
    assert made == []
    assert len(spent.left) == 5  # the ceilings, and four cases

    first = Run(rehearsal(), DEVICE)
    first.do(Work(SMALL[:2]))
    again = Run(rehearsal(), DEVICE)
    again.do(work)
    assert made == [case.name for case in (*SMALL, ENDED[0])]
    kept = read_tables(folder_of("rehearsal"))
    assert [row.direction for row in kept.layers] == list(PASSES)
    (note,) = kept.about.notes
    assert "small+relu conv fprop could not be measured: RuntimeError: out of memory" in note

    monkeypatch.setattr("reports.bench.run.source_hash", lambda: "another")
    other = Run(rehearsal(), DEVICE)
    assert other.tables.layers == []
    aside = folder_of("rehearsal").parent.glob("rehearsal.*")
    assert [len(read_tables(folder).layers) for folder in aside] == [3]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        OutOfResources(300_000, 232_448, "shared memory"),
        PTXASError("ptxas fatal"),
        CompilationError("kernel", None, "no such operator"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("lost", [False, True], ids=["context stays", "context is lost"])
def test_an_error_of_triton_is_recorded_and_the_run_continues(
    error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    sample = measure_case(SMALL[0], DEVICE, rehearsal())

    def breaks(case: Case, *_: object) -> LayerRow:
        made.append(case.name)
        if case is SMALL[0]:
            raise error
        return evolve(sample, suite=case.suite, direction=case.problem.direction)

    monkeypatch.setattr("reports.bench.run.measure_case", breaks)
    monkeypatch.setattr(
        "reports.bench.run.context_lost", lambda: lost and made[-1:] == [SMALL[0].name]
    )
    monkeypatch.setattr("reports.bench.machine.ceilings", lambda *_, **__: {"copy": 1.0})
    run = Run(rehearsal(), DEVICE)
    with pytest.raises(DeviceLostError) if lost else contextlib.nullcontext():
        run.do(Work(SMALL))
    if lost:  # in a process with a new context
        run = Run(rehearsal(), DEVICE)
        run.do(Work(SMALL))
    assert made == [case.name for case in SMALL]
    assert len(run.tables.layers) == 2
    (note,) = run.tables.about.notes
    words = "lost the GPU's context" if lost else "could not be measured"
    assert note.startswith(f"{SMALL[0].name} {words}: {type(error).__name__}")


def test_whole_networks_and_their_time_by_operator() -> None:
    case = NetworkCase("lenet5", "inference", 2, "float32")
    found = measure_network(case, DEVICE, rounds=1)
    assert {row.backend for row in found.rows} >= {"tconv", "torch"}
    assert all(row.ms > 0 and row.images_per_s > 0 for row in found.rows)
    assert {row.operator for row in found.operators if row.backend == "tconv"} >= {"convolution"}
    assert not found.missing


def test_networks_are_compared_with_the_reported_switches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuDNN may benchmark its algorithms, and TF32 is on only for that dtype."""
    seen = []

    def step(case: NetworkCase, backend: str, device: torch.device) -> Callable[[], None]:
        flags = torch.backends
        return lambda: seen.append((backend, flags.cudnn.benchmark, flags.cudnn.allow_tf32,
                                    flags.cuda.matmul.allow_tf32))  # fmt: skip

    monkeypatch.setattr(networks, "_step", step)
    monkeypatch.setattr(networks, "LEAST_SECONDS", 0.0)
    case = NetworkCase("lenet5", "training", 1, "float32")
    assert not measure_network(case, torch.device("cpu"), rounds=1).missing
    assert set(seen) == {(backend, True, False, False) for backend in networks.PROFILED}


@pytest.mark.parametrize("ends", ["its own limit", "the run"])
def test_a_backend_that_never_stops_compiling_is_stopped(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(case: NetworkCase, backend: str, device: torch.device) -> Callable[[], None]:
        if backend == "torch":
            with contextlib.suppress(Exception):  # as compilers do, which then try another way
                threading.Event().wait()
        return lambda: None

    monkeypatch.setattr(networks, "_step", step)
    monkeypatch.setattr(networks, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(networks, "LIMITS", {"torch": 0.1} if ends == "its own limit" else {})
    case = NetworkCase("lenet5", "training", 1, "float32")
    if ends == "its own limit":
        found = measure_network(case, torch.device("cpu"), rounds=1)
        assert [row.backend for row in found.rows] == ["tconv"]
        assert found.missing == [f"{case.name}: torch did not run: it took more than 0.1 s"]
        return
    run = Run(rehearsal(), torch.device("cpu"), Deadline(0.3))
    run.tables = replace(run.tables, about=replace(run.tables.about, ceilings={"copy": 1.0}))
    run.do(Work(networks=(case,)))
    assert run.left == [case.name]
    assert not run.tables.about.notes


def test_a_failing_backend_is_named_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such fusion")

    monkeypatch.setattr("reports.bench.networks.tconv_backend", refuse)
    found = measure_network(NetworkCase("lenet5", "inference", 1, "float32"), DEVICE, rounds=1)
    assert "torch" in {row.backend for row in found.rows}
    assert "tconv" not in {row.backend for row in found.rows}
    assert "tconv did not run: BackendCompilerFailed" in found.missing[0]
    assert "no such fusion" in found.missing[0]


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("tconv::conv2d_fused", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::max_pool2d_with_indices", "pool"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::addmm", "matrix product"),
        ("aten::threshold_backward", "activation"),
        ("aten::_foreach_add_", "optimizer"),
        ("aten::sum", "other"),
    ],
)
def test_operators_are_counted_by_kind(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_memory_is_reported_only_by_devices_that_count_it() -> None:
    row = memory_of(suite("lenet5", 2)[0], "float32", DEVICE)
    if DEVICE.type == "cuda":
        assert row is not None
        assert row.tconv_peak_mib > 0
    else:
        assert row is None
        with peak_memory(DEVICE) as peak:
            pass
        assert peak() is None


def test_the_host_clock_alternates_between_sides() -> None:
    made: list[int] = []
    timer = bench_layers.HostTimer([lambda: made.append(0), lambda: made.append(1)])
    assert len(timer(3)) == 3
    assert made == [0, 1, 0]


def test_the_command_measures_and_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cuda":
        pytest.skip("a rehearsal is for machines without a GPU")
    monkeypatch.setattr("reports.cli.rehearsal_work", lambda: Work(SMALL))
    monkeypatch.setattr("reports.bench.machine.ceilings", lambda *_, **__: {"copy": 1.0})
    arguments = ["bench", "--rehearse", "--out", str(tmp_path / "report")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert [row.direction for row in read_tables(tmp_path / "report").layers] == list(PASSES)
    assert (tmp_path / "report" / "index.html").exists()
    (tmp_path / "file").write_text("not a folder")
    done = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "file" / "report")])
    assert done.exit_code == 1
    assert "cannot be written" in done.output
    (folder_of("rehearsal") / "layers.csv").write_text("damaged")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "layers.csv" in done.output


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    if DEVICE.type == "cuda":
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(app, ["bench", "--out", str(tmp_path / "report")])
    assert result.exit_code == 2
    assert "no GPU here" in result.output
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "vgg61"], "unknown suite 'vgg61'"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--network", "vgg61"], "unknown network 'vgg61'"),
        (["--time-limit", "0s"], "leaves no time"),
        (["--passes", "backward"], "unknown pass 'backward'"),
    ],
)
def test_bad_arguments_name_what_exists(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert words in result.output
