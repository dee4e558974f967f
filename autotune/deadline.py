"""How long a run may take, in words and in seconds."""

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
    """The seconds that ``text`` means: numbers with h, m or s behind them.

    >>> seconds_of("1h30m")
    5400.0

    Raises:
        ValueError: for other text, and for no time at all.
    """
    if WORDED.fullmatch(text.strip()) is None:
        raise ValueError(f"{text!r} is no time; write 90s, 8m or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))
    if seconds == 0:
        raise ValueError(f"{text!r} leaves no time for anything; write 90s, 8m or 1h30m")
    return seconds


@dataclass(frozen=True)
class Deadline:
    """When a run must end; by default never."""

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic  # a wall clock may be set back
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.clock())

    @property
    def left(self) -> float:
        """Seconds that remain, 0 where none do."""
        return max(0.0, self.seconds - (self.clock() - self.began))


class OverdueError(BaseException):
    """A block took longer than it may; no ``except Exception`` inside it can swallow this."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after ``seconds``, between two steps of Python; in the main thread only.

    Raises:
        OverdueError: where it took longer.
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
