"""Runs the example of the page on the emulated GPU, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "emulator.md"


def test_the_example_faults_and_counts_as_shown(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    program, counted = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    (sectors,) = re.findall(r"# (\d+): each of", counted)
    lines = program.splitlines()
    caught = ["try:", f"    {lines[-1]}", "except emulator.Fault as fault:", "    print(fault)"]
    script = tmp_path / "model.py"
    script.write_text("\n".join([*lines[:-1], *caught, counted]), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fault, count = done.stdout.splitlines()
    assert re.sub("0x[0-9a-f]+", "0x", fault) == re.sub(
        "0x[0-9a-f]+", "0x", " ".join(shown.split())
    )
    assert count == sectors
