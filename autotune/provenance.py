"""What a trial's validity depends on besides the kernels' source: the software versions."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from importlib import import_module, metadata


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
    lines = nvidia_smi("--query-gpu=driver_version")
    return lines[0] if lines else ""


def other_processes() -> int:
    """Count the processes besides this one that compute on the machine's GPUs."""
    return sum(line != str(os.getpid()) for line in nvidia_smi("--query-compute-apps=pid"))


def nvidia_smi(query: str) -> list[str]:
    """Return the lines that nvidia-smi prints for ``query``; none if it is missing or fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.stdout.splitlines() if line.strip()]
