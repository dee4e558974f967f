"""The standard output of a command line: where it cannot be written, one line says so."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

EXIT_UNWRITABLE = 1
EXIT_CLOSED = 141  # as a shell reports a process that SIGPIPE, signal 13, ended


class _StandardOutput(io.FileIO):
    """File descriptor 1. The first write that fails ends the program, later ones are dropped."""

    exit_code: int | None = None  # of a program whose output could not be written

    def __init__(self) -> None:
        super().__init__(1, "w", closefd=False)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            closed = error.errno == errno.EPIPE
            self.exit_code = EXIT_CLOSED if closed else EXIT_UNWRITABLE
            # What is still buffered would fail anew, at the latest when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            with contextlib.suppress(OSError):
                print(f"error: standard output: {os.strerror(error.errno or 0)}", file=sys.stderr)
            raise SystemExit(self.exit_code) from None


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Run a command line within: a full or closed standard output ends it in one plain line.

    The exit code is 1 where the output cannot be written (a full disk) and 141 where its reader
    has gone, as after ``| head -1``. Neither prints a traceback.
    """
    before = sys.stdout
    if before is None:  # closed from the start: print() writes nothing
        yield
        return
    with contextlib.suppress(OSError):  # the command's own first line then fails as well
        before.flush()
    output = _StandardOutput()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.isatty(),
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        if output.exit_code is not None:  # also where a thread wrote, or a command went on
            raise SystemExit(output.exit_code)
