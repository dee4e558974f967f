"""The SQLite file of trials: create it, validate it before writing, migrate older formats.

A newer version's store, another program's database and a damaged file are never modified.
"""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import ExitStack
from pathlib import Path

FORMAT = 3  # PRAGMA user_version; 0 is a newly created file, older formats lack columns in ADDED
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction
HEADER = 100  # bytes of a database header, which holds the file's size (SQLite's file format, 1.3)
LOOKS, LOOK_SECONDS = 3, 0.05  # re-read a size that another process may be changing

SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    target TEXT NOT NULL,
    problem TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    tile TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    milliseconds REAL,
    p20 REAL,
    p80 REAL,
    first_milliseconds REAL,
    turn INTEGER,
    ranked_milliseconds REAL,
    registers INTEGER,
    spill_bytes INTEGER,
    shared_bytes INTEGER,
    instructions INTEGER,
    occupancy REAL,
    error_fp64 REAL,
    checked TEXT,
    counters TEXT,
    detail TEXT NOT NULL,
    versions TEXT NOT NULL,
    source TEXT NOT NULL,
    seconds REAL NOT NULL,
    written REAL NOT NULL,
    UNIQUE (target, problem, algorithm, tile, kind, versions, source)
)
"""
COLUMNS = tuple(re.findall(r"^    (\w+) (?:TEXT|REAL|INTEGER)", SCHEMA, re.MULTILINE))
ADDED = {  # columns by the format that added them; empty in older rows
    2: {"first_milliseconds": "NUMERIC", "turn": "NUMERIC"},
    3: {"checked": "TEXT", "counters": "TEXT"},
}


def added_since(version: int) -> dict[str, str]:
    """Return the columns that a store of format ``version`` lacks, and their types."""
    return {
        column: kind
        for brought, columns in ADDED.items()
        if brought > version
        for column, kind in columns.items()
    }


class StoreError(Exception):
    """A store cannot be used; the message says why."""


def _cut_off(path: Path) -> bool:
    """Return whether pages are missing at the end of the file and from its write-ahead log."""
    with path.open("rb") as file:
        header = file.read(HEADER)
        size = file.seek(0, 2)
    if len(header) < HEADER or not header.startswith(b"SQLite format 3\0"):
        return 0 < len(header) < HEADER
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    return size < pages * (page if page > 1 else 65536) and not _logged(path)


def _logged(path: Path) -> bool:
    """Return whether the write-ahead log holds anything."""
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a valid store read-only.

    Raises:
        StoreError: if the file is not a store or is damaged.
        sqlite3.Error: if SQLite cannot read it.
    """
    if not path.is_file():  # opening a pipe would block
        raise StoreError("it is not a regular file")
    for look in range(LOOKS):
        if not _cut_off(path):
            break
        if look + 1 == LOOKS:
            raise StoreError("it is cut off")
        time.sleep(LOOK_SECONDS)
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _sound(_connected(uri))
    except sqlite3.OperationalError:
        if _logged(path):
            raise
        # In a read-only folder the index that readers and writers share cannot be created.
        return _sound(_connected(f"{uri}&immutable=1"))


def _connected(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    return connection


def _sound(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Return ``connection`` if it leads to a valid store; otherwise close it and raise."""
    with ExitStack() as stack:
        stack.callback(connection.close)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise StoreError(f"it has format {version}, newer than this tuner's {FORMAT}")
        if not version and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StoreError("it is another program's database")
        if version:
            # takes 1 ms for 1500 trials
            (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise StoreError(f"it is damaged: {' '.join(str(sound).split())}")
            wanted = [column for column in COLUMNS if column not in added_since(version)]
            connection.execute(f"SELECT {', '.join(wanted)} FROM trials LIMIT 1").fetchone()
        stack.pop_all()
    return connection


def connect(path: Path | str) -> sqlite3.Connection:
    """Open a store for writing: the one at ``path``, a new one there, or one in memory.

    Raises:
        StoreError: if the file is not a store or is damaged.
        sqlite3.Error: if it cannot be written to.
    """
    if isinstance(path, Path) and path.exists():
        open_read_only(path).close()
    connection = _connected(path if isinstance(path, str) else path.absolute().as_uri())
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # the file may come from somebody else
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")  # fails immediately if the file is not writable
        connection.execute(SCHEMA)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version:  # 0 is a new file, which has all columns
            for column, kind in added_since(version).items():
                connection.execute(f"ALTER TABLE trials ADD COLUMN {column} {kind}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection
