"""The head of a report: machine, kind of figures, versions and date."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reports.row_files import RowError
from tconv.target import Target
from tconv.winners import Kind, TableError, read_json


@dataclass(frozen=True)
class About:
    """Head of a report, stored beside its tables as ``about.json``.

    ``peaks`` (dense TFLOP/s by arithmetic) and ``bandwidth_gbps`` (DRAM) are the vendor's figures.
    ``ceilings`` were measured on this machine: TFLOP/s of a large matrix product by arithmetic, and
    ``copy`` in GB/s, reads plus writes. ``facts`` holds everything else a reader needs: driver,
    cuDNN, clocks, precision switches.
    """

    target: str
    arch: str
    product: str
    kind: Kind
    processors: int
    bandwidth_gbps: float
    peaks: dict[str, float] = field(hash=False)
    versions: str  # torch, triton, driver
    date: str  # of the newest trial if known, else of collecting
    commands: tuple[str, ...]
    ceilings: dict[str, float] = field(default_factory=dict, hash=False)
    facts: dict[str, str] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()  # what could not be measured, and why

    @property
    def machine(self) -> Target:
        """The parts of the target that rooflines need."""
        return Target(
            self.target,
            self.arch,
            "cuda",
            self.product,
            processors=self.processors,
            bandwidth_gbps=self.bandwidth_gbps,
            peak_tflops=self.peaks,
        )

    @classmethod
    def of(
        cls, target: Target, kind: Kind, versions: str, date: str, commands: tuple[str, ...]
    ) -> About:
        return cls(
            target.name,
            target.arch,
            target.product,
            kind,
            target.processors,
            target.bandwidth_gbps,
            dict(target.peak_tflops),
            versions,
            date,
            commands,
        )


def about_text(about: About) -> str:
    """Return the head of a report as ``about.json`` text."""
    return json.dumps(asdict(about), indent=2) + "\n"


def read_about(path: Path) -> About:
    """Read the head of a stored report.

    Raises:
        RowError: naming the file, and the missing or invalid entry.
    """
    try:
        content = read_json(path)
    except TableError as error:
        raise RowError(str(error)) from error
    if content is None:
        raise RowError(f"{path} cannot be read: there is no such file")
    if not isinstance(content, dict):
        raise RowError(f"{path}: not a table of entries")
    texts = {name: _entry(path, content, name, str) for name in TEXTS}
    if texts["kind"] not in ("measured", "predicted"):
        raise RowError(f"{path}: kind is {texts['kind']!r}, neither measured nor predicted")
    peaks, ceilings = (_rates(path, content, name) for name in ("peaks", "ceilings"))
    commands = _entry(path, content, "commands", list)
    facts = _entry(path, {"facts": {}, **content}, "facts", dict)
    notes = _entry(path, {"notes": [], **content}, "notes", list)
    return About(
        **texts,
        processors=_entry(path, content, "processors", int),
        bandwidth_gbps=float(_entry(path, content, "bandwidth_gbps", int, float)),
        peaks=peaks,
        commands=tuple(str(command) for command in commands),
        ceilings=ceilings,
        facts={str(name): str(value) for name, value in facts.items()},
        notes=tuple(str(note) for note in notes),
    )


TEXTS = ("target", "arch", "product", "kind", "versions", "date")


def _entry(path: Path, content: dict[str, Any], name: str, *types: type) -> Any:
    if name not in content:
        raise RowError(f"{path}: {name} is missing")
    if not isinstance(content[name], types):
        raise RowError(f"{path}: {name} is {content[name]!r}")
    return content[name]


def _rates(path: Path, content: dict[str, Any], name: str) -> dict[str, float]:
    """Return rates by name; older heads have none."""
    found = _entry(path, content, name, dict) if name in content or name == "peaks" else {}
    for key, value in found.items():
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise RowError(f"{path}: {name}: {key} is {value!r}, not a rate")
    return {str(key): float(value) for key, value in found.items()}
