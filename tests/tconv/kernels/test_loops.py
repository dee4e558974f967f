"""The inner loops stay as short as they were found to be: instructions a step, in SASS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tconv.kernels.loops import BARS, STRIP_BARS

ROOT = Path(__file__).parents[3]
BOXES = ("boxes, fprop", "boxes, fprop, stride 2", "boxes, dgrad", "boxes, wgrad")


def compiled() -> dict[str, dict[str, int]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # Behind what stands there already: it may be another Triton.
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(ROOT)]))
    command = [sys.executable, "-m", "tests.tconv.kernels.loops"]
    done = subprocess.run(
        command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def test_inner_loops_stay_short() -> None:
    found = compiled()
    bars = BARS | STRIP_BARS
    assert found.keys() == bars.keys()
    steps = {name: taken["instructions"] for name, taken in found.items()}
    assert {name: step for name, step in steps.items() if step > bars[name].instructions} == {}
    assert all(steps.values())  # a loop was found
    assert {name: taken for name, taken in found.items() if taken["spill_bytes"]} == {}
    assert max(taken["registers"] for taken in found.values()) <= 255
    # Tiles in turn cost the loop nothing, and a 1x1 filter has no tap logic.
    assert steps["fprop, persistent"] <= steps["fprop"] > steps["fprop, 1x1"]
    assert steps["boxes, persistent"] <= steps["boxes, fprop"] > steps["boxes, fprop, 1x1"]
    # Boxes go straight from shared memory to the matrix unit.
    assert {name: found[name]["detours"] for name in BOXES} == dict.fromkeys(BOXES, 0)
