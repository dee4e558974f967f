"""What a trial's validity depends on: the kernels' source and the software versions."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path

import tconv

# Files with device code, constants, operands, grids, compiler options, and what plans read.
DECIDING = (
    "kernels/*.py", "families/*.py", "launch.py",
    "geometry.py", "problem.py", "target.py", "tile.py",
)  # fmt: skip


@lru_cache
def source_hash() -> str:
    """Return a short hash of all files that decide a kernel's code."""
    return hash_of(Path(tconv.__file__).parent)


def hash_of(root: Path) -> str:
    """Return ``source_hash`` for the package ``tconv`` in folder ``root``."""
    digest = hashlib.sha256()
    for file in deciding(root):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def deciding(root: Path) -> list[Path]:
    """Return the files of ``tconv`` that decide a kernel's code."""
    return [file for pattern in DECIDING for file in sorted(root.glob(pattern))]


@lru_cache
def versions(driver: str = "", protocol: str = "") -> str:
    """Return the versions of torch and triton and, if measured, of driver and protocol."""
    parts = [f"{package} {_version(package)}" for package in ("torch", "triton")]
    parts += [f"driver {driver}"] * bool(driver) + [protocol] * bool(protocol)
    return ", ".join(parts)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # some builds distribute triton under another name
        return str(getattr(import_module(package), "__version__", "unknown"))


def driver_version() -> str:
    """Return the GPU driver's version, or "" if it is unknown."""
    lines = asked("--query-gpu=driver_version")
    return lines[0] if lines else ""


def other_processes() -> int:
    """Count the processes besides this one that compute on the machine's GPUs."""
    return sum(line != str(os.getpid()) for line in asked("--query-compute-apps=pid"))


def asked(query: str) -> list[str]:
    """Return the lines of nvidia-smi's answer; none if it is missing or fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.stdout.splitlines() if line.strip()]
