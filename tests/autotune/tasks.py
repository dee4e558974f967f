"""Tasks that fail in various ways, for tests of the workers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tconv_workers import Task, Workers

CHUNK = 64 << 20


def crash(code: int) -> None:
    """End the process at once."""
    os._exit(code)


def eat(most: int) -> int:
    """Allocate memory and write to it, up to ``most`` bytes."""
    held = []
    for _ in range(0, most, CHUNK):
        held.append(bytearray(b"\1") * CHUNK)
    return len(held)


def have_a_child_eat(most: int) -> int:
    """Return the exit code of ``eat`` in a child that the worker waits for, as for ptxas."""
    code = f"from tests.autotune.tasks import eat; eat({most})"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode


def segfault() -> None:
    ctypes.string_at(0)


def hold_the_interpreter() -> None:
    """Stay in C forever and hold the GIL, like an endless loop in a compiler."""
    mutex = ctypes.create_string_buffer(64)
    library = ctypes.PyDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def full_disk() -> None:
    raise OSError(28, os.strerror(28))


def no_room_in_words() -> None:
    raise RuntimeError(f"the compiler failed: {os.strerror(28)}")


def _note(folder: Path, name: str, pid: int) -> None:
    draft = folder / f"{name}.draft"
    draft.write_text(str(pid))
    draft.rename(folder / name)


def linger(folder: Path) -> None:
    """Wait forever in Python code."""
    _note(folder, "waits", os.getpid())
    time.sleep(600)


def linger_over_a_child(folder: Path) -> None:
    """Wait for a child process, as for a hung ptxas."""
    with subprocess.Popen(["sleep", "600"]) as child:
        _note(folder, "child", child.pid)
        _note(folder, "parent", os.getpid())


def linger_in_c(folder: Path) -> None:
    """Wait in C code and hold the GIL."""
    _note(folder, "holds", os.getpid())
    hold_the_interpreter()


def employ(folder: str) -> None:
    """Run the three lingering tasks in workers; the test kills this process."""
    waiting: tuple[Any, ...] = (linger, linger_over_a_child, linger_in_c)
    tasks = [Task(wait.__name__, wait, (Path(folder),)) for wait in waiting]
    with Workers(3, {}) as workers:
        list(workers.run(tasks, 3.0))


def _fake_gpu(fault: str | None) -> None:
    """Install a fake GPU whose context is lost if there is a ``fault``."""
    import torch

    def synchronize() -> None:
        if fault is not None:
            raise RuntimeError(f"CUDA error: {fault}")

    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize


def lose_context(words: str) -> str:
    """Run a candidate whose kernel faults; ``words`` is the message of its error, if any."""
    from autotune import on_gpu

    with on_gpu._exit_if_context_lost():
        _fake_gpu("an illegal memory access was encountered")
        if words:
            raise RuntimeError(words)
    return "right"


def use_gpu() -> str:
    """Run a correct candidate in the current process."""
    import torch

    from autotune import on_gpu

    with on_gpu._exit_if_context_lost():
        torch.cuda.synchronize() if torch.cuda.is_available() else None
    return "right"
