"""How the command lines end where nothing more can be written to standard output."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any


def run(app: Callable[..., Any], prog_name: str) -> None:
    """Run a typer app; a full or closed standard output ends it in one line, with exit code 1.

    A reader that has seen enough (``| head``) closes the pipe: that is no error to report.
    """
    try:
        try:
            app(prog_name=prog_name)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is still buffered would fail again when the interpreter flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            print(f"error: {error.strerror}", file=sys.stderr)
        sys.exit(1)
