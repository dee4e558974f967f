"""Run tasks on a Dask cluster instead of local processes: ``autotune tune --cluster ADDRESS``.

    dask scheduler                                   # prints its address
    dask worker ADDRESS                              # on any machine: compiles and checks
    dask worker ADDRESS --nthreads 1 --resources "GPU=1"     # on one with a GPU: measures too

Each task runs in its own process below the Dask worker, with the same time limit and environment as
in a local run. Dask retries the tasks of a lost worker. Like ``tconv_workers``, this file imports
nothing from the project until a task does.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from tconv_workers import Failure, Task, Workers, memory_of

PATIENCE = 30.0  # seconds to wait for the scheduler's answer and for a first worker
GPU = {"GPU": 1.0}  # Dask resource that a measuring worker advertises and a measurement takes

_pools = threading.local()


class ClusterError(ConnectionError):
    """A cluster that is unusable or no longer answers."""


def remote(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    seconds: float,
    environment: Mapping[str, str | None],
    source: str,
    gpu: bool,
) -> Any:
    """Run one task below a Dask worker; return its result or a ``Failure``."""
    from tconv.source import source_hash

    if source_hash() != source:
        words = f"this worker's kernels have version {source_hash()}, the tuner's {source}"
        return Failure("crash", f"{words}: install the same tconv")
    # A worker under a nanny is daemonic and may not have children; our children end with it.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    pools: dict[str, Workers] = _pools.__dict__
    key = str((sorted(environment.items()), gpu))
    memory = None if gpu else memory_of(os.cpu_count() or 1)
    workers = pools.setdefault(key, Workers(1, environment, memory=memory))
    ((_, result, _),) = workers.run([Task(None, function, arguments)], seconds)
    return result


class Cluster:
    """A Dask scheduler and its workers.

    Raises:
        ClusterError: if Dask is missing, no scheduler answers, or it has no worker.
    """

    def __init__(self, address: str) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise ClusterError("a cluster needs Dask: python -m pip install 'tconv[cluster]'")
        from distributed import Client

        self.address = address
        try:
            self._client = Client(address, timeout=PATIENCE, set_as_default=False)
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            if client := getattr(self, "_client", None):
                client.close()
                raise ClusterError(f"the scheduler at {address} has no worker") from error
            raise ClusterError(f"no Dask scheduler answers at {address}: {error}") from error
        found = self._client.scheduler_info(n_workers=-1)["workers"].values()
        self.slots = sum(worker["nthreads"] for worker in found)
        self.gpus = int(sum(worker["resources"].get("GPU", 0) for worker in found))

    def workers(self, environment: Mapping[str, str | None], gpu: bool = False) -> Workers:
        """Return the cluster's workers; with ``gpu``, those that advertise a GPU."""
        count = max(1, self.gpus if gpu else self.slots)
        return Workers(count, environment, lambda: _Executor(self._client, environment, gpu))

    def ask(self, function: Callable[[], Any], seconds: float = 120.0) -> Any:
        """Call ``function`` on a worker with a GPU; return its result or a ``Failure``."""
        with self.workers({"TRITON_INTERPRET": None}, gpu=True) as pool:
            ((_, result, _),) = pool.run([Task(None, function, ())], seconds)
        return result

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Executor(Executor):
    """Dask's executor, adapted to the tasks that ``Workers`` submits."""

    def __init__(self, client: Any, environment: Mapping[str, str | None], gpu: bool) -> None:
        self._client = client
        self._environment, self._gpu = dict(environment), gpu
        # Each check must run: Dask may answer pure functions from its cache.
        how: dict[str, Any] = {"pure": False, "resources": GPU} if gpu else {"pure": False}
        self._executor = client.get_executor(**how)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a task; ``fn`` is always ``perform``, which the remote process calls."""
        from tconv.source import source_hash

        if self._client.status != "running":
            raise ClusterError("the cluster no longer answers")
        future: Future[Any] = self._executor.submit(
            remote, *args, self._environment, source_hash(), self._gpu, **kwargs
        )
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=wait)
