"""What a trial is valid for: the kernels' source and the versions that compiled and measured it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path

import tconv

# Device code; constants, operands and grids; compiler options; what a plan reads them from.
DECIDING = (
    "kernels/*.py", "families/*.py", "launch.py",
    "geometry.py", "problem.py", "target.py", "tile.py",
)  # fmt: skip


@lru_cache
def source_hash() -> str:
    """A short hash of everything that decides a kernel's code: device code, plans and launches."""
    return hash_of(Path(tconv.__file__).parent)


def hash_of(root: Path) -> str:
    """``source_hash`` of the package ``tconv`` in folder ``root``."""
    digest = hashlib.sha256()
    for file in deciding(root):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def deciding(root: Path) -> list[Path]:
    """The files of ``tconv`` that decide a kernel's code."""
    return [file for pattern in DECIDING for file in sorted(root.glob(pattern))]


@lru_cache
def versions(driver: str = "", protocol: str = "") -> str:
    """Versions of torch, triton and, where a GPU measured, its driver and how it was measured."""
    parts = [f"{package} {_version(package)}" for package in ("torch", "triton")]
    parts += [f"driver {driver}"] * bool(driver) + [protocol] * bool(protocol)
    return ", ".join(parts)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # some builds name triton's package otherwise
        return str(getattr(import_module(package), "__version__", "unknown"))


def driver_version() -> str:
    """The GPU driver's version, where one can be asked."""
    lines = asked("--query-gpu=driver_version")
    return lines[0] if lines else ""


def other_processes() -> int:
    """How many processes besides this one compute on the machine's GPUs."""
    return sum(line != str(os.getpid()) for line in asked("--query-compute-apps=pid"))


def asked(query: str) -> list[str]:
    """nvidia-smi's answer, a line each; none where it is not there."""
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.stdout.splitlines() if line.strip()]
