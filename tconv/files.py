"""Files that carry results from run to run: read with care, written in one step, kept private."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

LOCK_SECONDS = 30.0  # how long to wait for another process's writing, which takes milliseconds
POLL_SECONDS = 0.01


def in_checkout() -> bool:
    """Whether this is the source tree, rather than an installed package that nobody writes to."""
    return (Path(__file__).parents[1] / "pyproject.toml").is_file()


def read_text(path: Path, most: int) -> str | None:
    """The UTF-8 text of a file of at most ``most`` bytes; None where there is no file.

    Raises:
        OSError: for a larger file, and for a pipe, a folder or a device in its place.
        UnicodeDecodeError: for bytes that are no UTF-8.
    """
    try:
        # A pipe would otherwise be waited for until somebody writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no regular file")
        with open(handle, "rb", closefd=False) as file:
            content = file.read(most + 1) if found.st_size <= most else b""
    finally:
        os.close(handle)
    if max(found.st_size, len(content)) > most:
        raise OSError(f"it is larger than {most >> 20} MiB")
    return content.decode("utf-8")


def replace_all(contents: Mapping[Path, str | bytes]) -> None:
    """Put each content at its path: all are written before the first takes its place.

    A kill or a full disk leaves what stood there before, and never half a file.

    Raises:
        OSError: where one cannot be written; its path is named.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            draft = drafts[path] = path.with_name(f".{path.name}.{os.getpid()}.draft")
            draft.unlink(missing_ok=True)  # of a killed process that had the same number
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
        os.fsync(file.fileno())  # else a power failure may leave the new name and no content


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """No other process or thread is in such a block for the same ``path``.

    The lock is the kernel's: it ends with its process, however that ends. What killed writers left
    of their drafts is removed. File systems that know no locks go without.

    Raises:
        OSError: where the folder cannot be written, or the lock is not to be had.
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
    """Whether there is a lock; False where the file system knows none."""
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
    """Make ``folder``, and those above it that are missing, for this user alone (mode 0700).

    Raises:
        OSError: where it cannot be made.
    """
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            place.mkdir(mode=0o700, exist_ok=True)


def others_may_write(*places: Path) -> str | None:
    """Why others than this user and root may have written one of ``places``; None where not."""
    for place in places:
        try:
            found = place.stat()
        except OSError:  # nothing there to be trusted
            continue
        if found.st_uid not in (os.geteuid(), 0):
            return f"{place} belongs to another user (number {found.st_uid})"
        if found.st_mode & stat.S_IWOTH:
            return f"anyone may write to {place}"
    return None
