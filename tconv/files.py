"""Result files: validated when read, written atomically, kept private."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

LOCK_SECONDS = 30.0  # how long to wait for another process's write, which takes milliseconds
POLL_SECONDS = 0.01


def in_checkout() -> bool:
    """Return whether this is the source tree and not an installed, read-only package."""
    return (Path(__file__).parents[1] / "pyproject.toml").is_file()


def read_text(path: Path, most: int) -> str | None:
    """Read a UTF-8 file of at most ``most`` bytes; None if there is no file.

    Raises:
        OSError: if the file is larger, or is a pipe, a folder or a device.
        UnicodeDecodeError: if the bytes are not UTF-8.
    """
    try:
        # A blocking open of a pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a regular file")
        with open(handle, "rb", closefd=False) as file:
            content = file.read(most + 1) if found.st_size <= most else b""
    finally:
        os.close(handle)
    if max(found.st_size, len(content)) > most:
        raise OSError(f"it is larger than {most >> 20} MiB")
    return content.decode("utf-8")


def replace_all(contents: Mapping[Path, str | bytes]) -> None:
    """Write each content to its path, replacing files only after all contents are written.

    A killed process or a full disk leaves the earlier files, and never half a file.

    Raises:
        OSError: if a file cannot be written; the message names its path.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            draft = drafts[path] = path.with_name(f".{path.name}.{os.getpid()}.draft")
            draft.unlink(missing_ok=True)  # left by a killed process with the same number
            _write(draft, content.encode() if isinstance(content, str) else content)
        for path, draft in drafts.items():
            os.replace(draft, path)
    except BaseException as error:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _write(draft: Path, content: bytes) -> None:
    with open(draft, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power failure may leave the new name without content


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude all other processes and threads from blocks with the same ``path``.

    The operating system holds the lock and releases it when the process ends, however it ends.
    Drafts of killed writers are removed. On file systems without locks the block runs unlocked.

    Raises:
        OSError: if the folder cannot be written, or the lock is not available in time.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), flags, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        if _lock(handle, path):
            for draft in path.parent.glob(f".{glob.escape(path.name)}.*.draft"):
                draft.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> bool:
    """Acquire the lock; return False if the file system has no locks."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                words = f"another process has been writing {path} for {LOCK_SECONDS:g} s"
                raise TimeoutError(words) from None
            time.sleep(POLL_SECONDS)
        except OSError:
            return False


def private_folder(folder: Path) -> None:
    """Create ``folder`` and its missing parents, accessible to this user only (mode 0700).

    Raises:
        OSError: if it cannot be created.
    """
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            place.mkdir(mode=0o700, exist_ok=True)


def others_may_write(*places: Path) -> str | None:
    """Return why users other than this one and root may have written ``places``, or None."""
    for place in places:
        try:
            found = place.stat()
        except OSError:  # a missing file needs no trust
            continue
        if found.st_uid not in (os.geteuid(), 0):
            return f"{place} belongs to another user (number {found.st_uid})"
        if found.st_mode & stat.S_IWOTH:
            return f"anyone may write to {place}"
    return None
