"""Tests that a command line with an unwritable standard output ends in one line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tconv.command_line import EXIT_CLOSED, EXIT_UNWRITABLE

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    path
    for package in ("tconv", "autotune", "reports", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
    if path.name == "__main__.py" or "typer.run(" in path.read_text(encoding="utf-8")
)
# Loads the file alone, without importing torch.
ALONE = f"""
import runpy
command_line = runpy.run_path({str(ROOT / "tconv" / "command_line.py")!r})["command_line"]
"""
LONG = "with command_line(): print('a line of many\\n' * 100_000, end='')"
SHORT = "with command_line(): print('a line that waits in a buffer')"
CAUGHT = """
with command_line():
    try:
        print('a line', flush=True)
    except OSError:
        print('taken for the error of another file')
"""
THREAD = """
import threading
with command_line():
    thread = threading.Thread(target=print, args=('a line',), kwargs={'flush': True})
    thread.start()
    thread.join()
"""
RICH = """
from rich.console import Console
with command_line():
    Console().print('a line')
"""
TYPER = """
import typer
def main() -> None:
    typer.echo('a line')
with command_line():
    typer.run(main)
"""
PROGRAMS = {"long": LONG, "short": SHORT, "caught": CAUGHT, "thread": THREAD, "rich": RICH,
            "typer": TYPER}  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_full_output_ends_in_one_line(name: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", ALONE + PROGRAMS[name]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == "error: standard output: No space left on device\n"
    assert done.returncode == EXIT_UNWRITABLE


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_closed_pipe_ends_in_one_line(name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE + PROGRAMS[name]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()  # before the program starts to write
    _, errors = process.communicate()
    assert errors == "error: standard output: Broken pipe\n"
    assert process.returncode == EXIT_CLOSED


def test_a_writable_output_is_written() -> None:
    program = ALONE + "with command_line():\n    print('bäh')\n    raise SystemExit(3)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("bäh\n", "", 3)


def test_lines_keep_their_order_before_and_after_a_command() -> None:
    program = ALONE + "print(1)\n" + "with command_line(): print(2)\nprint(3)\n" * 2
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["1", "2", "3", "2", "3"], "")


def test_a_real_command_ends_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "autotune", "suites", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_line_uses_it(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "command_line()" in ast.unparse(node.items[0])
    ]
    assert len(guarded) == 1
    runs = [node for node in ast.walk(tree) if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("typer.run", "app")]  # fmt: skip
    assert runs
    assert all(any(run in ast.walk(each) for each in guarded) for run in runs)
