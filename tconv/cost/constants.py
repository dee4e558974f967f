"""The cost model's constants: assumed, or fitted to measurements of a GPU.

There is one file per GPU, beside its tuned choices:

    {"format": 1, "target": "nvidia-h200", "trials": 812, "error": 0.12, "untuned": "model",
     "constants": {"matrix_share": 0.71, ...}}

``untuned`` says how untuned layers are served: by the model or by the nearest tuned neighbour,
whichever did better in cross-validation.
"""

from __future__ import annotations

import json
import math
import reprlib
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tconv.files import locked, replace_all
from tconv.target import Target
from tconv.winners import (
    SHIPPED,
    TableError,
    check_head,
    check_trusted,
    home,
    make_folder,
    read_json,
)

FORMAT = 1
Untuned = Literal["model", "neighbour"]
UNTUNED: tuple[Untuned, ...] = ("model", "neighbour")
RETIRED = frozenset({"overlap_loss"})  # constants that only the cost model of tconv 0.1.0 has


class EarlierModelError(TableError):
    """A file's constants belong to an earlier cost model, for which they were fitted."""


@dataclass(frozen=True)
class Constants:
    """Constants that do not depend on the tile; *assumed* unless a source is given.

    ``autotune calibrate`` fits those in ``FITTED`` to a GPU's measured trials.
    """

    matrix_share: float = 0.9  # share of the matrix unit's peak, sustained on random data
    # share of that for instructions that do not read shared memory (sm_90)
    narrow_share: float = 0.4
    issue_per_clock: float = 4.0  # instructions issued per processor: one per scheduler
    issue_share: float = 0.7  # share of those issue slots that can be filled
    clocks_per_instruction: float = 1.0  # average clocks between two instructions of a warp
    memory_latency_clocks: float = 900.0  # from DRAM to shared memory, under load
    l1_latency_clocks: float = 35.0  # measured: 34 (H100), 36 (A100), gpu-benches
    shared_bytes_per_clock: float = 128.0  # a processor (CUDA C++ Programming Guide: 32 banks x 4)
    conflict_clocks: float = 8.0  # a warp's read of shared memory whose threads share a few banks
    wide_load_clocks: float = 6.0  # a warp's load of 16 bytes per thread to shared memory
    narrow_load_clocks: float = 12.0  # the same for 4 or 8 bytes
    single_load_clocks: float = 5.0  # the same for 1 or 2 bytes, which the threads store themselves
    gather_clocks: float = 400.0  # wait per step for such single loads
    gather_load_clocks: float = 30.0  # additional wait for each of these loads
    transpose_clocks: float = 0.26  # per 4-byte element, transposed for wgmma
    # share of the L2's rate; over 1 where it answers processors that read one line together once
    l2_share: float = 0.9
    l2_far: float = 0.2  # relative loss of rate if operands fill both halves of the L2
    l2_bytes_per_clock: float = 64.0  # that one processor can take, in lines of 128
    translation: float = (
        1.0  # part by which a line takes longer where operands pass the TLBs' reach
    )
    dram_share: float = 0.88  # share of the DRAM's rate
    dram_l2_share: float = 0.1  # share of the L2's bytes that keep operands until a later wave
    drift: float = 0.03  # share of a reduction by which the programs of a wave drift apart
    dram_run_bytes: float = 250.0  # bytes that DRAM could have read on instead of one isolated read
    scattered_bytes: float = 250.0  # the same, of a run of results written by itself
    prologue_clocks: float = 800.0  # addresses, masks, and the first fill of the pipeline
    output_clocks: float = 2.0  # per output of a thread
    write_share: float = 1.0  # share of the time for writing results at the L2's rate
    step_clocks: float = 45.0  # idle clocks per step of a program alone on its processor
    launch_milliseconds: float = 0.0012  # per kernel in a CUDA graph (measured, gpu-benches)
    event_milliseconds: float = 0.0  # added by timing with events; not part of a prediction
    spill_clocks: float = 4.0  # per step, for each spilled byte per thread
    overlap: float = 2.8  # power of the mean that joins resources; infinite: perfect overlap


# Constants that are fitted to measured times, and their bounds; shares, but the L2's, are 0 to 1.
FITTED: dict[str, tuple[float, float]] = {
    "matrix_share": (0.2, 1.0),
    "narrow_share": (0.15, 1.0),
    "issue_share": (0.1, 1.0),
    "clocks_per_instruction": (0.1, 12.0),
    "memory_latency_clocks": (150.0, 3000.0),
    "l1_latency_clocks": (10.0, 200.0),
    "shared_bytes_per_clock": (64.0, 256.0),
    "conflict_clocks": (1.0, 32.0),
    "wide_load_clocks": (0.5, 32.0),
    "narrow_load_clocks": (0.5, 64.0),
    "single_load_clocks": (0.5, 64.0),
    "gather_clocks": (5.0, 3000.0),
    "gather_load_clocks": (1.0, 200.0),
    "transpose_clocks": (0.03, 3.0),
    "l2_share": (0.2, 1.3),
    "l2_far": (0.01, 4.0),
    "l2_bytes_per_clock": (16.0, 128.0),
    "translation": (0.01, 10.0),
    "dram_share": (0.3, 1.0),
    "dram_l2_share": (0.02, 1.0),
    "drift": (0.001, 1.0),
    "dram_run_bytes": (8.0, 1024.0),
    "scattered_bytes": (8.0, 2048.0),
    "prologue_clocks": (100.0, 20000.0),
    "output_clocks": (0.2, 100.0),
    "write_share": (0.1, 4.0),
    "step_clocks": (2.0, 1000.0),
    "launch_milliseconds": (0.0005, 0.02),
    "event_milliseconds": (0.0, 0.02),
    "spill_clocks": (0.5, 500.0),
    "overlap": (1.5, 12.0),
}


LARGEST_RATIO = 10.0  # largest ratio of any other constant to its assumed value, and its inverse


def bounds_of(name: str) -> tuple[float, float]:
    """Return the bounds for a constant in a file, beyond which the model is meaningless.

    Raises:
        KeyError: if there is no such constant.
    """
    if name in FITTED:
        return FITTED[name]
    assumed = asdict(Constants())[name]
    return assumed / LARGEST_RATIO, assumed * LARGEST_RATIO


def user_constants(target_name: str) -> Path:
    return home() / "tuned" / f"{target_name}.constants.json"


def shipped_constants(target_name: str) -> Path:
    return SHIPPED / f"{target_name}.constants.json"


@dataclass(frozen=True)
class Calibrated:
    """Result of a GPU's calibration; by default none."""

    constants: Constants = field(default_factory=Constants)
    untuned: Untuned = "model"
    rows: int = 0  # number of times that the constants were fitted to
    error: float | None = None  # below it two in three of abs(ln(predicted / measured)), held out
    source: str = ""  # citation, if the times are somebody else's


@lru_cache(maxsize=64)
def calibrated(target: Target) -> Calibrated:
    """Return a GPU's calibration: the user's own, the shipped one, or its architecture's.

    Without any of these, return the assumed constants.
    """
    names = dict.fromkeys((target.name, target.arch))
    for path in (place(name) for name in names for place in (user_constants, shipped_constants)):
        try:
            if (found := read_calibrated(path)) is not None:
                check_trusted(path)
                return found
        except TableError as error:
            warnings.warn(f"constants ignored, shipped or assumed ones hold: {error}", stacklevel=2)
    return Calibrated()


def support(target: Target) -> str:
    """Return a sentence on how far a figure predicted for ``target`` can be trusted.

    >>> from tconv.target import TARGETS
    >>> support(TARGETS["gfx942"])
    'Figures for gfx942 are supported by no measurement.'
    """
    known = calibrated(target)
    if not known.rows or known.error is None:
        return f"Figures for {target.name} are supported by no measurement."
    factor, source = math.exp(known.error), f" ({known.source})" if known.source else ""
    return (
        "Expected error: on problems held out, two in three predictions near the best tile "
        f"were within a factor of {factor:.2f} of the time; fitted to {known.rows:,} times"
        f"{source}."
    )


def read_calibrated(path: Path) -> Calibrated | None:
    """Read a file of constants; None if there is no file.

    Raises:
        TableError: if the file is damaged, has a newer format, or cannot be read.
        EarlierModelError: for constants of an earlier cost model, which mean nothing to this one.
    """
    content = read_json(path)
    if content is None:
        return None
    names = {each.name for each in fields(Constants)}
    check_head(path, content)
    given, untuned = content.get("constants"), content.get("untuned", "model")
    if not isinstance(given, dict):
        raise TableError(f"{path} is damaged: constants are {reprlib.repr(given)}")
    if RETIRED & given.keys():
        raise EarlierModelError(
            f"{path} holds constants of tconv 0.1.0's cost model; fit today's to the same trials: "
            "python -m autotune calibrate"
        )
    for name, value in given.items():
        if name not in names:
            raise TableError(f"{path}: there is no constant {reprlib.repr(name)}")
        low, high = bounds_of(name)
        if type(value) not in (int, float) or not low <= value <= high:
            shown = reprlib.repr(value)
            raise TableError(f"{path}: {name} is {shown}, no number from {low:g} to {high:g}")
    if untuned not in UNTUNED:
        shown = reprlib.repr(untuned)
        raise TableError(f"{path}: untuned is {shown}, not one of {', '.join(UNTUNED)}")
    rows, error, source = (content.get(name) for name in ("trials", "error", "source"))
    return Calibrated(
        Constants(**{name: float(value) for name, value in given.items()}),
        untuned,
        rows if type(rows) is int else 0,
        error if type(error) is float else None,
        source if isinstance(source, str) else "",
    )


def write_calibrated(path: Path, target_name: str, known: Calibrated) -> None:
    """Write ``known`` to ``path`` atomically.

    Raises:
        TableError: if an existing file cannot be read or trusted; it is left untouched.
        OSError: if the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "target": target_name,
        "trials": known.rows,
        **({} if known.error is None else {"error": float(f"{known.error:.4g}")}),
        **({"source": known.source} if known.source else {}),
        "untuned": known.untuned,
        "constants": {
            name: float(f"{value:.6g}") for name, value in asdict(known.constants).items()
        },
    }
    check_trusted(path)
    make_folder(path.parent)
    with locked(path):
        with suppress(EarlierModelError):
            read_calibrated(
                path
            )  # a newer tconv's, or what somebody wrote by hand, is not thrown away
        replace_all({path: json.dumps(content, indent=1) + "\n"})
    calibrated.cache_clear()
