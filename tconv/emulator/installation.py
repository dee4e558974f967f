"""Installation of the emulated GPU as the one that Triton compiles for and launches on.

    from tconv import emulator
    emulator.install("sm_90")   # any Triton kernel then takes CPU tensors

``TCONV_EMULATE=sm_90``, set before tconv is imported, does the same. Triton specialises, compiles
and caches as on the GPU; the PTX of a kernel is then executed on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import triton

from tconv.emulator.driver import Driver, Launched, activate, launched
from tconv.emulator.launcher import Copies
from tconv.target import EMULATED, TARGETS, Target

VARIABLE = "TCONV_EMULATE"
_installed: list[Driver] = []  # at most one


def install(name: str, copies: Copies = "late") -> None:
    """Make Triton compile for ``name`` and run its kernels in the emulator, on CPU tensors.

    Args:
        name: the architecture, ``sm_80`` or ``sm_90``.
        copies: when an asynchronous copy fills its target: ``late``, at the wait for it, so that
            a missing wait reads NaN; ``early``, at once, so that a buffer reused too soon is
            overwritten.

    Raises:
        ValueError: for a name that is not emulated.
        RuntimeError: where kernels were made for Triton's interpreter (``TRITON_INTERPRET=1``), or
            this process emulates another GPU.
    """
    check_covered(name)
    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            f"TRITON_INTERPRET=1 runs the source of kernels, the emulated {name} their compiled "
            f"code: they exclude each other; unset TRITON_INTERPRET or {VARIABLE}"
        )
    _installed[:] = [activate(name, copies)]


def install_asked() -> None:
    """Install the GPU that the environment variable ``TCONV_EMULATE`` names, where it is set."""
    if name := os.environ.get(VARIABLE):
        try:
            install(name)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}={name}: {error}") from None


def check_covered(name: str) -> None:
    """Raise a ValueError that lists the emulated targets if ``name`` is not one of them."""
    if name in EMULATED:
        return
    known = "is not covered by the emulator" if name in TARGETS else "is not an emulated GPU"
    raise ValueError(f"{name!r} {known}; there are: {', '.join(EMULATED)}")


def installed() -> Target | None:
    """The target of the installed GPU, or None."""
    return _installed[0].target if _installed else None


def launches() -> AbstractContextManager[list[Launched]]:
    """The emulated launches within a ``with`` block, in order, each with its counters."""
    return launched(_active())


@contextmanager
def copies_filled(when: Copies) -> Iterator[None]:
    """Within the ``with`` block asynchronous copies fill their targets ``late`` or ``early``."""
    driver = _active()
    before, driver.copies = driver.copies, when
    try:
        yield
    finally:
        driver.copies = before


def _active() -> Driver:
    if not _installed:
        raise RuntimeError("no GPU is emulated: call tconv.emulator.install first")
    return _installed[0]
