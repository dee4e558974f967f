"""Fixture of kernels that are compiled once for all tests of the emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def compiled() -> dict[str, dict[str, Any]]:
    """PTX, shared memory and tensor maps of each of `compiled.cases`, by name and target."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # Appended, since PYTHONPATH may already select another Triton.
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    environment["PYTHONPATH"] = path
    command = [sys.executable, "-m", "tests.tconv.emulator.compiled"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found
