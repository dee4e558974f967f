"""Triton's folder of compiled kernels, which holds code: it is run by whoever finds it there.

Triton makes it as the user's umask says. Here it is made for its user alone, and one that others
may write to is left for one of our own, or named where the user has chosen it.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from functools import lru_cache
from pathlib import Path

from tconv.files import others_may_write, private_folder
from tconv.winners import home

VARIABLE = "TRITON_CACHE_DIR"  # by which the user chooses, and we where the user has not


@lru_cache(maxsize=1)
def guard() -> None:
    """To be called before anything is compiled or loaded; once a process is enough."""
    import triton

    folder = Path(triton.knobs.cache.dir)
    chosen = bool(os.environ.get(VARIABLE))
    with contextlib.suppress(OSError):  # Triton will say what is wrong with it
        private_folder(folder)
    reason = others_may_write(folder) if chosen else others_may_write(folder.parent, folder)
    if reason is None:
        return
    words = f"{reason}: compiled kernels are code, which is run from {folder}"
    own = home() / "triton"
    if not chosen and _made(own):
        os.environ[VARIABLE] = str(own)
        words = f"{reason}: compiled kernels are kept in {own} instead"
    warnings.warn(words, stacklevel=2)


def _made(folder: Path) -> bool:
    """Whether there is such a folder now, that nobody else may write to."""
    try:
        private_folder(folder)
    except OSError:
        return False
    return others_may_write(folder.parent, folder) is None
