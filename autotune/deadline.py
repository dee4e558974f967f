"""Time limits: parsing, deadlines, and interrupting a block."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
WORDED = re.compile(r"(?:(\d+(?:\.\d+)?)([hms]))+")
PART = re.compile(r"(\d+(?:\.\d+)?)([hms])")


def seconds_of(text: str) -> float:
    """Return the seconds in ``text``: numbers followed by h, m or s.

    >>> seconds_of("1h30m")
    5400.0

    Raises:
        ValueError: for any other text, and for zero.
    """
    if WORDED.fullmatch(text.strip()) is None:
        raise ValueError(f"{text!r} is not a time; write 90s, 8m or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))
    if seconds == 0:
        raise ValueError(f"{text!r} leaves no time for anything; write 90s, 8m or 1h30m")
    return seconds


@dataclass(frozen=True)
class Deadline:
    """A run's deadline, by default never."""

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic  # a wall clock may be set back
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.clock())

    @property
    def left(self) -> float:
        """Seconds until the deadline, 0 once it has passed."""
        return max(0.0, self.seconds - (self.clock() - self.began))


class OverdueError(BaseException):
    """A block exceeded its time limit; no ``except Exception`` inside it can swallow this."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after ``seconds``, between two Python instructions; main thread only.

    Raises:
        OverdueError: if the block took longer.
    """

    def stop(signum: int, frame: object) -> None:
        raise OverdueError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
