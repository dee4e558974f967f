"""Hash of the source that decides a kernel's code; it identifies the version of stored results."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

# Files with device code, constants, operands, grids, compiler options, and what plans read.
DECIDING = (
    "kernels/*.py", "families/*.py", "launch.py",
    "geometry.py", "problem.py", "target.py", "tile.py",
)  # fmt: skip


@lru_cache
def source_hash() -> str:
    """Return a short hash of all files that decide a kernel's code."""
    return hash_of(Path(__file__).parent)


def hash_of(root: Path) -> str:
    """Return ``source_hash`` for the package ``tconv`` in folder ``root``."""
    digest = hashlib.sha256()
    for file in deciding(root):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def deciding(root: Path) -> list[Path]:
    """Return the files of ``tconv`` that decide a kernel's code."""
    return [file for pattern in DECIDING for file in sorted(root.glob(pattern))]
