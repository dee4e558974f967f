"""The cost model's constants: assumed, or refitted from what was measured on a GPU.

One file for each GPU, beside its tuned choices:

    {"format": 1, "target": "nvidia-h200", "trials": 812, "untuned": "model",
     "constants": {"matrix_share": 0.71, ...}}

``untuned`` says by what a layer that was never tuned is served: the model, or its nearest tuned
neighbour, whichever proved better in cross-validation.
"""

from __future__ import annotations

import json
import reprlib
import warnings
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tconv.files import locked, replace_all
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


@dataclass(frozen=True)
class Constants:
    """The figures that hold for no tile in particular; all *assumed* unless a source is named.

    ``autotune calibrate`` refits those of ``FITTED`` from a GPU's measured trials.
    """

    matrix_share: float = 0.8  # of the matrix unit's peak, sustained on random data
    issue_per_clock: float = 4.0  # instructions a processor issues: one for each scheduler
    issue_share: float = 0.7  # of those slots that can be filled
    clocks_per_instruction: float = 2.5  # between two instructions of one warp, on average
    memory_latency_clocks: float = 700.0  # from DRAM or a distant L2 slice to shared memory
    l1_latency_clocks: float = 40.0
    shared_bytes_per_clock: float = 128.0  # a processor (CUDA C++ Programming Guide: 32 banks x 4)
    l2_share: float = 0.9  # of the L2's rate
    l2_bytes_per_clock: float = 64.0  # that one processor can take
    dram_share: float = 0.88  # of the DRAM's rate
    dram_l2_share: float = 0.5  # of the L2's bytes that hold operands for reuse
    prologue_clocks: float = 1500.0  # addresses, masks, and the pipeline's first fill
    launch_milliseconds: float = 0.003  # a kernel's start and end, as a CUDA graph replays it
    overlap_loss: float = 0.1  # of what the slowest resource should hide, and does not
    spill_clocks: float = 8.0  # a step, for each spilled byte a thread
    overlap: float = 4.0  # power of the mean that joins resources; infinite: perfect overlap


# By which measured times may move them, and how far; shares are of a whole.
FITTED: dict[str, tuple[float, float]] = {
    "matrix_share": (0.2, 1.0),
    "issue_share": (0.1, 1.0),
    "clocks_per_instruction": (0.5, 12.0),
    "memory_latency_clocks": (150.0, 3000.0),
    "l1_latency_clocks": (10.0, 200.0),
    "l2_share": (0.2, 1.0),
    "l2_bytes_per_clock": (16.0, 256.0),
    "dram_share": (0.3, 1.0),
    "prologue_clocks": (100.0, 20000.0),
    "launch_milliseconds": (0.0005, 0.02),
    "overlap_loss": (0.0, 1.0),
}


LARGEST_RATIO = 10.0  # of the other constants to what is assumed, and the inverse


def bounds_of(name: str) -> tuple[float, float]:
    """Between which values a file may put a constant: beyond them the model's figures are nonsense.

    Raises:
        KeyError: where there is no such constant.
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
    """What calibration found of a GPU; by default nothing."""

    constants: Constants = field(default_factory=Constants)
    untuned: Untuned = "model"


@lru_cache(maxsize=64)
def calibrated(target_name: str) -> Calibrated:
    """What is known of a GPU: by its user's own calibration, or shipped, or assumed."""
    for path in (user_constants(target_name), shipped_constants(target_name)):
        try:
            if (found := read_calibrated(path)) is not None:
                check_trusted(path)
                return found
        except TableError as error:
            warnings.warn(f"constants ignored, the assumed ones hold: {error}", stacklevel=2)
    return Calibrated()


def read_calibrated(path: Path) -> Calibrated | None:
    """What a file says; None where there is no file.

    Raises:
        TableError: for a file that is damaged, of a newer format, or cannot be read.
    """
    content = read_json(path)
    if content is None:
        return None
    names = {each.name for each in fields(Constants)}
    check_head(path, content)
    given, untuned = content.get("constants"), content.get("untuned", "model")
    if not isinstance(given, dict):
        raise TableError(f"{path} is damaged: constants are {reprlib.repr(given)}")
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
    return Calibrated(Constants(**{name: float(value) for name, value in given.items()}), untuned)


def write_calibrated(path: Path, target_name: str, known: Calibrated, trials: int) -> None:
    """Put ``known``, found from so many trials, at ``path`` in one atomic step.

    Raises:
        TableError: when the file that stands there cannot be read or trusted; it is left as it is.
        OSError: when the folder cannot be written.
    """
    content = {
        "format": FORMAT,
        "target": target_name,
        "trials": trials,
        "untuned": known.untuned,
        "constants": {
            name: float(f"{value:.6g}") for name, value in asdict(known.constants).items()
        },
    }
    check_trusted(path)
    make_folder(path.parent)
    with locked(path):
        read_calibrated(path)  # a newer tconv's, or what somebody wrote by hand, is not thrown away
        replace_all({path: json.dumps(content, indent=1) + "\n"})
    calibrated.cache_clear()
