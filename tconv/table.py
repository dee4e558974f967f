"""Tables of tuned choices: one JSON file for each GPU, read by the library, written by the tuner.

    {"format": 1, "target": "nvidia-h200", "winners": {
      "fprop/float16/nhwc/n64c64h56w56-k64f3x3-s1x1-p1x1-d1x1-g1":
        {"algorithm": "implicit_gemm", "tile": "128x64x64 s3 w8 g8 k1",
         "kind": "measured", "ms": 0.123}, ...}}

Reading is parsing only. A file that cannot be used is named in a warning and left alone.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tconv.tile import Tile

FORMAT = 1
LARGEST_FILE = 64 << 20  # bytes; a hundred thousand winners take about 20 MiB
TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # it becomes a file's name
SHIPPED = Path(__file__).parent / "tuned"

Kind = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Winner:
    """The best choice found for one problem, and how it was found."""

    algorithm: str
    tile: Tile
    kind: Kind
    milliseconds: float


class TableError(ValueError):
    """A table file that cannot be used; the message names the file and the cause."""


def home() -> Path:
    """The user's own folder of tuned tables and trials: ``$TCONV_HOME``, or the user's cache."""
    if folder := os.environ.get("TCONV_HOME"):
        return Path(folder)
    try:
        import platformdirs
    except ImportError:  # a bare checkout runs without it
        return Path.home() / ".cache" / "tconv"
    return platformdirs.user_cache_path("tconv", appauthor=False)


def user_table(target_name: str) -> Path:
    return home() / "tuned" / f"{target_name}.json"


def shipped_table(target_name: str) -> Path:
    return SHIPPED / f"{target_name}.json"


def read_table(path: Path) -> dict[str, Winner]:
    """The winners of ``path``, by problem key; none where there is no file.

    Raises:
        TableError: for a file that is damaged, of a newer format, or cannot be read.
    """
    content = read_json(path)
    if content is None:
        return {}
    try:
        if content["format"] != FORMAT:
            raise TableError(f"{path} has format {content['format']!r}, this tconv reads {FORMAT}")
        return {str(key): _winner(entry) for key, entry in content["winners"].items()}
    except TableError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TableError(f"{path} is damaged: {error!r}") from error


def table_target(path: Path) -> str | None:
    """The GPU whose winners ``path`` holds; None where there is no file, or it does not say.

    Raises:
        TableError: for a file that cannot be read.
    """
    content = read_json(path)
    target = content.get("target") if isinstance(content, dict) else None
    return target if isinstance(target, str) and TARGET_NAME.fullmatch(target) else None


def read_json(path: Path) -> Any:
    """What the file says, parsed and not yet understood; None where there is no file."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TableError(f"{path} is larger than {LARGEST_FILE >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise TableError(f"{path} cannot be read: {error}") from error


def _winner(entry: Mapping[str, object]) -> Winner:
    algorithm, kind, milliseconds = entry["algorithm"], entry["kind"], entry["ms"]
    if kind not in ("measured", "predicted") or not isinstance(algorithm, str):
        raise ValueError(f"no winner: {dict(entry)!r}")
    if not isinstance(milliseconds, (int, float)):
        raise ValueError(f"ms is {milliseconds!r}, not a number")
    return Winner(algorithm, Tile.parse(str(entry["tile"])), kind, float(milliseconds))  # type: ignore[arg-type]


def load_table(path: Path) -> dict[str, Winner]:
    """As ``read_table``, but a file that cannot be used becomes a warning and no winners."""
    try:
        return read_table(path)
    except TableError as error:
        warnings.warn(f"tuned choices ignored, heuristics take over: {error}", stacklevel=2)
        return {}


def write_table(path: Path, target_name: str, winners: Mapping[str, Winner]) -> None:
    """Add ``winners`` to the table at ``path``, in one atomic step.

    A measured winner is never displaced by a predicted one.

    Raises:
        TableError: when the file that stands there cannot be read; it is left as it is.
        OSError: when the folder cannot be written.
    """
    merged = read_table(path)
    for key, winner in winners.items():
        standing = merged.get(key)
        if standing is None or not (standing.kind == "measured" and winner.kind == "predicted"):
            merged[key] = winner
    entries = {
        key: {
            "algorithm": winner.algorithm,
            "tile": str(winner.tile),
            "kind": winner.kind,
            "ms": round(winner.milliseconds, 6),
        }
        for key, winner in sorted(merged.items())
    }
    lines = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()
    )
    head = f'"format": {FORMAT}, "target": {json.dumps(target_name)}'
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(f'{{{head}, "winners": {{\n{lines}\n}}}}\n', encoding="utf-8")
    os.replace(draft, path)
