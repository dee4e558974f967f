"""Caches of plans, which are emptied when choices are made anew."""

from __future__ import annotations

from collections.abc import Callable

_when_forgotten: list[Callable[[], None]] = []


def when_forgotten(clear: Callable[[], None]) -> None:
    """Register ``clear``, which empties a cache derived from choices; ``forget_plans`` calls it."""
    _when_forgotten.append(clear)


def forget_plans() -> None:
    """Clear the cached plans but not the choices."""
    for clear in _when_forgotten:
        clear()
