"""Tables of tuned choices: one JSON file for each GPU, read by the library, written by the tuner.

    {"format": 1, "target": "nvidia-h200", "winners": {
      "fprop/float16/nhwc/n64c64h56w56-k64f3x3-s1x1-p1x1-d1x1-g1":
        {"family": "implicit_gemm", "tile": "128x64x64 s3 w8 g8 k1",
         "kind": "measured", "ms": 0.123}, ...}}

Reading is parsing only. A file that cannot be used is named in a warning and left alone.
Processes that write one table do so in turn, so that no winner is lost.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tconv.files import locked, others_may_write, private_folder, read_text, replace_all
from tconv.tile import Tile

FORMAT = 1
LARGEST_FILE = 64 << 20  # bytes; a hundred thousand winners take about 20 MiB
MOST_DIGITS = 20  # of an integer: as many as 64 bits hold
TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # it becomes a file's name
SHIPPED = Path(__file__).parent / "tuned"

Kind = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Winner:
    """The best choice found for one problem, and how it was found."""

    family: str
    tile: Tile
    kind: Kind
    milliseconds: float

    def __post_init__(self) -> None:
        if not isinstance(self.family, str):
            raise ValueError(f"family is {reprlib.repr(self.family)}, not a name")
        if self.kind not in ("measured", "predicted"):
            raise ValueError(f"kind is {reprlib.repr(self.kind)}, neither measured nor predicted")
        if type(self.milliseconds) not in (int, float) or not 0 <= self.milliseconds < math.inf:
            raise ValueError(f"ms is {reprlib.repr(self.milliseconds)}, no time")


class TableError(ValueError):
    """A table file that cannot be used; the message names the file and the cause."""


def home() -> Path:
    """The user's own folder of tuned tables and trials: ``$TCONV_HOME``, or the user's cache."""
    if folder := os.environ.get("TCONV_HOME"):
        return Path(folder).expanduser()  # a shell expands no ~ within quotes
    try:
        import platformdirs
    except ImportError:  # a bare checkout runs without it
        return Path.home() / ".cache" / "tconv"
    return platformdirs.user_cache_path("tconv", appauthor=False)


def user_table(target_name: str) -> Path:
    return home() / "tuned" / f"{target_name}.json"


def shipped_table(target_name: str) -> Path:
    return SHIPPED / f"{target_name}.json"


def check_trusted(path: Path) -> None:
    """Refuse a file of the user's own folder that somebody else may have written.

    A folder that is named in ``$TCONV_HOME`` is trusted as it is, and so is what is shipped.

    Raises:
        TableError: naming the file or folder, and what would make it trusted.
    """
    if os.environ.get("TCONV_HOME") or not path.is_relative_to(home()):
        return
    if reason := others_may_write(home(), path.parent, path):
        raise TableError(f"{reason}: {path} is not used unless TCONV_HOME names its folder")


def make_folder(folder: Path) -> None:
    """Make ``folder``, and for this user alone where it is of the user's own.

    Raises:
        OSError: where it cannot be made.
    """
    if folder.is_relative_to(home()):
        private_folder(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)


def read_table(path: Path) -> dict[str, Winner]:
    """The winners of ``path``, by problem key; none where there is no file.

    Raises:
        TableError: for a file that is damaged, of a newer format, or cannot be read.
    """
    content = read_json(path)
    if content is None:
        return {}
    try:
        check_head(path, content)
        return {key: _winner(entry) for key, entry in content["winners"].items()}
    except TableError:
        raise
    except KeyError as error:
        raise TableError(f"{path} is damaged: {error} is missing") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise TableError(f"{path} is damaged: {error}") from error


def check_head(path: Path, content: Any) -> None:
    """Refuse what is of another format, or of a GPU that cannot be one's name.

    Raises:
        TableError: naming ``path`` and what was found.
    """
    if not isinstance(content, dict):
        raise TableError(f"{path} is damaged: it holds a {type(content).__name__}")
    form, target = content.get("format"), content.get("target")
    if type(form) is not int or form != FORMAT:
        raise TableError(f"{path} has format {reprlib.repr(form)}, this tconv reads {FORMAT}")
    if target is not None and not (isinstance(target, str) and TARGET_NAME.fullmatch(target)):
        raise TableError(f"{path} is damaged: target is {reprlib.repr(target)}, no GPU's name")


def table_target(path: Path) -> str | None:
    """The GPU whose winners ``path`` holds; None where there is no file, or it does not say.

    Raises:
        TableError: for a file that cannot be read.
    """
    content = read_json(path)
    target = content.get("target") if isinstance(content, dict) else None
    return target if isinstance(target, str) and TARGET_NAME.fullmatch(target) else None


def read_json(path: Path) -> Any:
    """What the file says, parsed and not yet understood; None where there is no file.

    Raises:
        TableError: for what is no JSON, or says the same thing twice, or is too large.
    """
    try:
        text = read_text(path, LARGEST_FILE)
        if text is None:
            return None
        return json.loads(
            text, object_pairs_hook=_once, parse_int=_integer, parse_constant=_no_constant
        )
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{reprlib.repr(twice)} stands there twice")
    return found


def _integer(digits: str) -> int:
    """Python before 3.10.7 would work for minutes on a number of a million digits."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _winner(entry: Mapping[str, Any]) -> Winner:
    tile = entry["tile"]
    if not isinstance(tile, str):
        raise ValueError(f"tile is {reprlib.repr(tile)}, no text")
    family = entry["algorithm"] if "algorithm" in entry else entry["family"]  # 0.1.0's name of it
    return Winner(family, Tile.parse(tile), entry["kind"], entry["ms"])


def load_table(path: Path) -> dict[str, Winner]:
    """As ``read_table``, but a file that cannot be used becomes a warning and no winners."""
    try:
        winners = read_table(path)
        if winners:
            check_trusted(path)
        return winners
    except TableError as error:
        warnings.warn(f"tuned choices ignored, heuristics take over: {error}", stacklevel=2)
        return {}


def write_table(path: Path, target_name: str, winners: Mapping[str, Winner]) -> None:
    """Add ``winners`` to the table at ``path``, in one atomic step, one process after another.

    A measured winner is never displaced by a predicted one.

    Raises:
        TableError: when the file that stands there cannot be read or trusted, or would grow so
            large that it could not be read again; it is left as it is.
        OSError: when the folder cannot be written.
    """
    check_trusted(path)
    make_folder(path.parent)
    with locked(path):
        merged = read_table(path)
        for key, winner in winners.items():
            standing = merged.get(key)
            if standing is None or not (standing.kind == "measured" and winner.kind == "predicted"):
                merged[key] = winner
        text = _text(target_name, merged)
        if len(text) > LARGEST_FILE:
            raise TableError(f"{path} would be larger than {LARGEST_FILE >> 20} MiB")
        replace_all({path: text})


def _text(target_name: str, winners: Mapping[str, Winner]) -> str:
    """A table as JSON, a line for each winner."""
    entries = {
        key: {
            "family": winner.family,
            "tile": str(winner.tile),
            "kind": winner.kind,
            "ms": round(winner.milliseconds, 6),
        }
        for key, winner in sorted(winners.items())
    }
    lines = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()
    )
    head = f'"format": {FORMAT}, "target": {json.dumps(target_name)}'
    return f'{{{head}, "winners": {{\n{lines}\n}}}}\n'
