"""A measuring run: work through its rows and store each as soon as it is measured.

Rows are stored as a report's tables in ``bench/<gpu>`` of the user's folder. An interrupted run
continues from them, unless kernels, compiler or protocol have changed: then the old rows are moved
to a folder named after their version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from autotune import provenance
from autotune.deadline import Deadline
from autotune.evaluate import DeviceLostError, OutOfTimeError
from autotune.measure import PROTOCOL
from autotune.on_gpu import context_lost
from autotune.suites import Layer, PoolLayer, pools, suite
from reports.bench import machine
from reports.bench.cases import Case, ConvCase, cases
from reports.bench.layers import measure_case
from reports.bench.memory import memory_of
from reports.bench.networks import NetworkCase, measure_network
from reports.report_head import About
from reports.rows import MODES, LayerRow
from reports.tables import HEAD, Tables, read_tables, write_tables
from tconv.geometry import PASSES, Pass
from tconv.launch import emulated
from tconv.source import source_hash
from tconv.target import INTERPRETER, Target
from tconv.winners import home

SUITES = ("vgg16", "lenet5", "resnet50", "mobilenet_v2", "alexnet", "depthwise", "grouped")
REMEMBERED = ("vgg16", "resnet50")  # networks whose layers' memory is reported
NETWORKS = ("lenet5", "vgg16", "alexnet", "resnet50", "mobilenet_v2")
REHEARSED = ("convnetjs_cifar10",)
COMMANDS = ("python -m reports bench",)
LOST = "lost the GPU's context"  # such a case is never retried with the same code
LONGEST_NOTE = 200  # characters of an error message


def rehearsal() -> Target:
    """Return the CPU as a target, under a name that no one mistakes for a GPU's."""
    target = emulated()
    way = "in Triton's interpreter" if target is None else f"on an emulated {target.name}"
    return replace(target or INTERPRETER, name="rehearsal", product=f"a CPU, {way}")


def _versions() -> str:
    return provenance.versions(provenance.driver_version(), PROTOCOL)


def _key(row: LayerRow) -> tuple[str, ...]:
    """Return the key that identifies a measured row."""
    return row.suite, row.layer, row.direction, row.dtype, str(row.batch)


def _case_key(case: Case) -> tuple[str, ...]:
    if isinstance(case, ConvCase):
        suite, dtype = f"{case.suite}{case.epilogue}", case.problem.arithmetic
    else:
        suite, dtype = case.suite, case.problem.dtype
    batch = case.problem.geometry.batch
    return suite, case.layer, case.problem.direction, dtype, str(batch)


@dataclass(frozen=True)
class Work:
    """The work of a run, in order."""

    cases: tuple[Case, ...] = ()
    networks: tuple[NetworkCase, ...] = ()
    memory: tuple[Layer | PoolLayer, ...] = ()
    dtype: str = "float16"  # of ``memory``


def default_work(
    suites: Sequence[str] = SUITES,
    passes: Sequence[Pass] = PASSES,
    dtypes: Sequence[str] = ("float16",),
    batch: int = 64,
    networks: Sequence[str] = NETWORKS,
) -> Work:
    """Return the work for ``suites`` and ``networks``, whose inference also runs at batch 1."""
    whole = [
        NetworkCase(name, mode, count)
        for name in networks
        for mode, count in (("inference", batch), ("inference", 1), ("training", batch))
    ]
    held: list[Layer | PoolLayer] = []
    for name in suites:
        if name in REMEMBERED:
            held += [*suite(name, batch), *pools(name, batch)]
    return Work(tuple(cases(suites, passes, dtypes, batch)), tuple(whole), tuple(held))


def rehearsal_work() -> Work:
    """Return a small network, by layers and whole: every code path, in minutes on a CPU."""
    small = default_work(REHEARSED, batch=2, networks=())
    first = next(case for case in small.cases if isinstance(case, ConvCase))
    fused = replace(first, epilogue="+relu+pool")
    whole = tuple(NetworkCase("lenet5", mode, 2, "float32") for mode in MODES)
    return Work((*small.cases[:3], fused, *small.cases[-2:]), whole, suite(REHEARSED[0], 2)[:1])


def folder_of(target: str) -> Path:
    """Return the folder for a GPU's rows."""
    return home() / "bench" / target


@dataclass
class Run:
    """The rows so far and their storage; ``tell`` receives each line of progress."""

    target: Target
    device: torch.device
    deadline: Deadline = field(default_factory=Deadline)
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        self.folder = folder_of(self.target.name)
        self.tables = self._earlier() or Tables(self._head(), [])
        self.left: list[str] = []

    def _head(self) -> About:
        today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        about = About.of(self.target, "measured", _versions(), today, COMMANDS)
        return replace(about, facts=machine.facts(self.device))

    def _earlier(self) -> Tables | None:
        """Return an earlier run's rows for this code; move those of other code aside."""
        if not (self.folder / HEAD).exists():
            return None
        found = read_tables(self.folder)
        now = (_versions(), source_hash())
        then = (found.about.versions, found.about.facts.get("Code", "unknown"))
        if now == then:
            return found
        aside = self.folder.with_name(f"{self.folder.name}.{then[1]}")
        number = 0
        while aside.exists():
            number += 1
            aside = self.folder.with_name(f"{self.folder.name}.{then[1]}.{number}")
        self.folder.rename(aside)
        self.tell(f"measured with other kernels or versions, moved aside: {aside}")
        return None

    def do(self, work: Work) -> None:
        """Measure the missing rows until all are done or the time is spent."""
        if not self.tables.about.ceilings and self._in_time("ceilings"):
            side = {} if self.device.type == "cuda" else {"side": 64}
            found = machine.ceilings(self.device, self.target, **side)
            self._keep(about=replace(self.tables.about, ceilings=found))
        known = {_key(row) for row in self.tables.layers}
        for case in work.cases:
            if _case_key(case) not in known and self._due(case.name):
                self._layer(case)
        seen = {(r.model, r.mode, r.batch, r.dtype) for r in self.tables.networks}
        for whole in work.networks:
            key = (whole.model, whole.mode, whole.batch, whole.dtype)
            if key not in seen and self._due(whole.name):
                self._network(whole)
        held = {(row.suite, row.layer) for row in self.tables.memory}
        for layer in work.memory:
            name = f"memory of {layer.suite} {layer.name}"
            if (layer.suite, layer.name) not in held and self._due(name):
                with self._noted(name):
                    row = memory_of(layer, work.dtype, self.device)
                    if row is not None:
                        self._keep(memory=[*self.tables.memory, row])

    def _in_time(self, name: str) -> bool:
        if self.deadline.left:
            return True
        self.left.append(name)
        return False

    def _layer(self, case: Case) -> None:
        with self._noted(case.name):
            row = measure_case(case, self.device, self.target)
            self._keep(layers=[*self.tables.layers, row])
            self.tell(f"{case.name}: {row.tconv_ms} ms; cuDNN {row.cudnn_nhwc_ms} channels_last, "
                      f"{row.cudnn_nchw_ms} contiguous")  # fmt: skip

    def _network(self, whole: NetworkCase) -> None:
        with self._noted(whole.name):
            found = measure_network(whole, self.device, deadline=self.deadline)
            self._note(*found.missing)
            self._keep(
                networks=[*self.tables.networks, *found.rows],
                operators=[*self.tables.operators, *found.operators],
            )
            times = ", ".join(f"{row.backend} {row.ms} ms" for row in found.rows)
            self.tell(f"{whole.name}: {times}")

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Run one measurement; record any error, of compiler or launch, instead of raising it.

        Raises:
            DeviceLostError: if the error destroyed this process's GPU context.
        """
        try:
            yield
        except OutOfTimeError:
            self.left.append(name)
        except Exception as error:
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_NOTE]}"
            if context_lost():
                self._note(f"{name} {LOST}: {words}")
                raise DeviceLostError(f"{name} {LOST}: {words}") from error
            self._note(f"{name} could not be measured: {words}")

    def _due(self, name: str) -> bool:
        """Return whether to measure ``name`` now: time is left, and it lost no context before."""
        lost = any(note.startswith(f"{name} {LOST}:") for note in self.tables.about.notes)
        return not lost and self._in_time(name)

    def _note(self, *notes: str) -> None:
        """Add a note for the reader on what is missing, once even if a run is repeated."""
        for note in notes:
            self.tell(note)
        about = self.tables.about
        self._keep(about=replace(about, notes=tuple(dict.fromkeys((*about.notes, *notes)))))

    def _keep(self, **changes: object) -> None:
        self.tables = replace(self.tables, **changes)  # type: ignore[arg-type]
        write_tables(self.folder, self.tables)
