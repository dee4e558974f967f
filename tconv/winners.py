"""Tables of tuned choices: one JSON file per GPU, read by the library and written by the tuner.

    {"format": 1, "target": "nvidia-h200", "winners": {
      "fprop/float16/nhwc/n64c64h56w56-k64f3x3-s1x1-p1x1-d1x1-g1":
        {"family": "implicit_gemm", "tile": "128x64x64 s3 w8 g8 k1",
         "kind": "measured", "ms": 0.123}, ...}}

Tables are parsed, never executed. A file that cannot be used is named in a warning and left
unchanged. A lock serialises the writers of a table, so that no winner is lost.
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
MOST_DIGITS = 20  # digits of an integer; 64 bits need no more
TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")  # it becomes part of a file name
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
            raise ValueError(f"ms is {reprlib.repr(self.milliseconds)}, not a time")


class TableError(ValueError):
    """Raised for a table file that cannot be used; the message names the file and the cause."""


def home() -> Path:
    """Return the user's folder of tuned tables and trials: ``$TCONV_HOME`` or the user's cache."""
    if folder := os.environ.get("TCONV_HOME"):
        return Path(folder).expanduser()  # shells do not expand a quoted ~
    try:
        import platformdirs
    except ImportError:  # a checkout without installed dependencies
        return Path.home() / ".cache" / "tconv"
    return platformdirs.user_cache_path("tconv", appauthor=False)


def user_table(target_name: str) -> Path:
    return home() / "tuned" / f"{target_name}.json"


def shipped_table(target_name: str) -> Path:
    return SHIPPED / f"{target_name}.json"


def check_trusted(path: Path) -> None:
    """Raise if ``path`` is in the user's cache and another user may have written it.

    Files outside the cache are trusted: the shipped tables, and a folder named by ``$TCONV_HOME``.

    Raises:
        TableError: names the file or folder, and how to trust it.
    """
    if os.environ.get("TCONV_HOME") or not path.is_relative_to(home()):
        return
    if reason := others_may_write(home(), path.parent, path):
        raise TableError(f"{reason}: {path} is not used unless TCONV_HOME names its folder")


def make_folder(folder: Path) -> None:
    """Create ``folder``; inside the user's own folder, with access for this user alone.

    Raises:
        OSError: if it cannot be created.
    """
    if folder.is_relative_to(home()):
        private_folder(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)


def read_table(path: Path) -> dict[str, Winner]:
    """Return the winners in ``path`` by problem key; an empty dict if there is no file.

    Raises:
        TableError: if the file is damaged, has another format or cannot be read.
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
    """Check a table's format number, and that its target is a valid name.

    Raises:
        TableError: names ``path`` and the wrong value.
    """
    if not isinstance(content, dict):
        raise TableError(f"{path} is damaged: it holds a {type(content).__name__}")
    form, target = content.get("format"), content.get("target")
    if type(form) is not int or form != FORMAT:
        raise TableError(f"{path} has format {reprlib.repr(form)}, this tconv reads {FORMAT}")
    if target is not None and not (isinstance(target, str) and TARGET_NAME.fullmatch(target)):
        raise TableError(f"{path} is damaged: target is {reprlib.repr(target)}, no GPU's name")


def table_target(path: Path) -> str | None:
    """Return the GPU of the table at ``path``; None without a file or without a valid target.

    Raises:
        TableError: if the file cannot be read.
    """
    content = read_json(path)
    target = content.get("target") if isinstance(content, dict) else None
    return target if isinstance(target, str) and TARGET_NAME.fullmatch(target) else None


def read_json(path: Path) -> Any:
    """Return the parsed, unchecked JSON content of ``path``; None if there is no file.

    Raises:
        TableError: if it is not JSON, has a duplicate name in an object, or is too large.
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
        raise ValueError(f"{reprlib.repr(twice)} appears twice")
    return found


def _integer(digits: str) -> int:
    """Parse an integer of bounded length: before 3.10.7, int() takes quadratic time."""
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _winner(entry: Mapping[str, Any]) -> Winner:
    tile = entry["tile"]
    if not isinstance(tile, str):
        raise ValueError(f"tile is {reprlib.repr(tile)}, not a string")
    family = entry["algorithm"] if "algorithm" in entry else entry["family"]  # "algorithm" in 0.1.0
    return Winner(family, Tile.parse(tile), entry["kind"], entry["ms"])


def load_table(path: Path) -> dict[str, Winner]:
    """Return the winners in ``path``; warn and return none if the file cannot be used."""
    try:
        winners = read_table(path)
        if winners:
            check_trusted(path)
        return winners
    except TableError as error:
        warnings.warn(f"tuned choices ignored, heuristics take over: {error}", stacklevel=2)
        return {}


def write_table(path: Path, target_name: str, winners: Mapping[str, Winner]) -> None:
    """Add ``winners`` to the table at ``path`` under a lock, replacing the file atomically.

    A predicted winner never replaces a measured one.

    Raises:
        TableError: if the existing file cannot be read or trusted, or the new one would be too
            large to read; the file is left unchanged.
        OSError: if the folder cannot be written.
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
    """Return a table as JSON text with one line per winner."""
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
