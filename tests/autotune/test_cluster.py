"""Tests with real Dask processes on loopback: a lost worker, one task at a time per GPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("distributed", reason="Dask is not installed: the extra tconv[cluster]")

from autotune import cluster as clusters
from autotune.cli import app
from autotune.cluster import Cluster, ClusterError
from autotune.trial_store import Store, default_path
from tconv_workers import Failure, Task

ROOT = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[bytes]]
LONG = 600.0  # seconds; long, so that no result depends on a loaded machine's clock


def moment(seconds: float) -> tuple[float, float, str | None, int]:
    """Return when this ran, an environment variable, and the process."""
    begin = time.time()
    time.sleep(seconds)
    return begin, time.time(), os.environ.get("TRITON_INTERPRET"), os.getpid()


def refuse() -> None:
    raise ValueError("this cannot be done")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PATIENCE", LONG)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a Dask process; all are ended with their children."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    with ExitStack() as stack:

        def begin(*arguments: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((tmp_path / f"{arguments[0]}.log").open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            stack.callback(end, process)
            return process

        yield begin


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children, such as the worker of a nanny."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def scheduler(start: Start) -> str:
    port = free_port()
    start("scheduler", "--host", "127.0.0.1", "--port", str(port))
    return f"tcp://127.0.0.1:{port}"


def test_tuning_survives_a_lost_worker(start: Start) -> None:
    address = scheduler(start)
    workers = [start("worker", address, "--nthreads", "1") for _ in range(2)]
    with Cluster(address) as cluster:
        cluster._client.wait_for_workers(2, timeout=LONG)
        assert (cluster._client.scheduler_info()["type"], cluster.gpus) == ("Scheduler", 0)
    command = "tune --suite lenet5 --passes fprop --candidates 2 --target sm_90 --cluster"
    tune = subprocess.Popen(
        [sys.executable, "-m", "autotune", *command.split(), address],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + LONG
    while tune.poll() is None and time.monotonic() < deadline:
        if default_path().exists():
            with Store() as store:
                if sum(1 for _ in store.trials()) >= 1:
                    break
        time.sleep(0.2)
    assert tune.poll() is None, "it ended before a worker could be killed"
    end(workers[0])
    output, _ = tune.communicate(timeout=LONG)
    assert tune.returncode == 0, output
    assert "On a cluster of 2 slots and 0 GPUs." in output
    with Store() as store:
        trials = list(store.trials())
    assert len(trials) == 6
    assert {trial.status for trial in trials} == {"ok"}
    assert len({trial.problem for trial in trials if trial.error_fp64 is not None}) == 3


def test_a_gpu_worker_runs_one_task_at_a_time_and_others_run_none(start: Start) -> None:
    address = scheduler(start)
    start("worker", address, "--nthreads", "2")
    start("worker", address, "--nthreads", "2", "--resources", "GPU=1")
    with Cluster(address) as first:
        first._client.wait_for_workers(2, timeout=LONG)
    tasks = [Task(number, moment, (0.3,)) for number in range(3)]
    with Cluster(address) as cluster:
        assert (cluster.slots, cluster.gpus) == (4, 1)
        with cluster.workers({"TRITON_INTERPRET": "7"}, gpu=True) as workers:
            workers.count = 3  # submitted at once; Dask makes them wait
            done = [result for _, result, _ in workers.run(tasks, LONG)]
        spans = sorted(done)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
        assert {result[2] for result in done} == {"7"}
        assert os.getpid() not in {result[3] for result in done}
        with cluster.workers({}) as workers:
            ((_, failed, _),) = workers.run([Task(0, refuse, ())], LONG)
            ((_, late, _),) = workers.run([Task(0, moment, (30.0,))], 1)
        assert failed == Failure("error", "ValueError: this cannot be done")
        assert isinstance(late, Failure)
        assert late.reason == "time limit"


def test_a_missing_cluster_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PATIENCE", 1.0)
    address = f"tcp://127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, ["tune", "--cluster", address])
    assert result.exit_code == 2
    assert f"no Dask scheduler answers at {address}" in result.output


def test_a_cluster_without_workers_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    address = scheduler(start)
    monkeypatch.setattr(clusters, "PATIENCE", 5.0)
    with pytest.raises(ClusterError, match="has no worker"):
        Cluster(address)


def test_missing_dask_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"tconv\[cluster\]"):
        Cluster("tcp://127.0.0.1:1")
