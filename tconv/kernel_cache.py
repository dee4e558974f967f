"""Protection of Triton's cache folder, whose compiled kernels are loaded and run as code.

Triton creates the folder with the user's umask. Here it is created for its user only. If others
may write to it, a folder of tconv's own is used instead; a folder that the user has chosen is kept
and named in a warning.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from functools import lru_cache
from pathlib import Path

from tconv.files import others_may_write, private_folder
from tconv.winners import home

VARIABLE = "TRITON_CACHE_DIR"  # set by the user, or by us if the user has not


@lru_cache(maxsize=1)
def guard() -> None:
    """Protect the cache; call before compiling or loading anything, once per process."""
    import triton

    folder = Path(triton.knobs.cache.dir)
    chosen = bool(os.environ.get(VARIABLE))
    with contextlib.suppress(OSError):  # Triton will report the error
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
    """Create the folder if needed; return whether nobody else may write to it."""
    try:
        private_folder(folder)
    except OSError:
        return False
    return others_may_write(folder.parent, folder) is None
