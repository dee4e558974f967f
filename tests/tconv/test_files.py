"""Tests of result files: no blocking reads, atomic writes, access for the user alone."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tconv import files
from tconv.files import locked, others_may_write, private_folder, read_text, replace_all


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def _no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


SPOILT = (_pipe, _folder, _loop, _endless, _sparse, _no_text)


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
def test_a_path_that_is_not_a_text_file_is_refused_at_once(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(tmp_path / "it")
    with pytest.raises((OSError, UnicodeDecodeError)):
        read_text(tmp_path / "it", 1 << 20)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "it"
    assert read_text(path, 5) is None
    path.write_text("väter")
    assert read_text(path, 6) == "väter"
    with pytest.raises(OSError, match="larger"):
        read_text(path, 5)
    assert read_text(Path("/proc/self/status"), 1 << 20)  # its size is unknown
    with pytest.raises(OSError, match="larger"):
        read_text(Path("/proc/self/status"), 5)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it"
    replace_all({path: "old"})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        replace_all({path: "new"})
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["it"]


def test_several_files_are_replaced_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "abc"]
    replace_all(dict.fromkeys(paths, "old"))
    plain, left = os.fsync, [2]

    def full_at_last(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr(os, "fsync", full_at_last)
    with pytest.raises(OSError, match="No space") as raised:
        replace_all(dict.fromkeys(paths, b"new"))
    assert raised.value.filename == str(paths[2])
    assert [path.read_text() for path in paths] == ["old"] * 3
    assert sorted(tmp_path.iterdir()) == paths


def test_a_link_in_place_of_a_draft_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".it.{os.getpid()}.draft").symlink_to(victim)
    replace_all({tmp_path / "it": "new"})
    assert (victim.read_text(), (tmp_path / "it").read_text()) == ("mine", "new")


def test_one_writer_at_a_time_and_old_drafts_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    for left in (".count.77.draft", ".count.78.draft", ".counter.79.draft"):
        (tmp_path / left).write_text("half")

    def add() -> None:
        for _ in range(25):
            with locked(path):
                number = int(path.read_text())
                replace_all({path: str(number + 1)})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "100"
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [".count.lock", ".counter.79.draft", "count"]


HOLDER = """
import sys, time
from pathlib import Path
from tconv.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process_and_waiting_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "it")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError, match="another process"), locked(tmp_path / "it"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "it"):
        pass


def test_file_systems_without_locks_are_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", none)
    (tmp_path / ".it.5.draft").write_text("perhaps another's work")
    with locked(tmp_path / "it"):
        replace_all({tmp_path / "it": "new"})
    assert (tmp_path / ".it.5.draft").exists()


def test_folders_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        private_folder(tmp_path / "file" / "b")


def test_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it"
    assert others_may_write(path) is None  # missing path
    path.touch()
    path.chmod(0o664)  # the user's own group is common
    assert others_may_write(tmp_path, path) is None
    path.chmod(0o666)
    assert str(path) in (others_may_write(tmp_path, path) or "")
    path.chmod(0o600)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner != 0:
        assert "another user" in (others_may_write(path) or "")
    else:  # root's files are trusted
        assert others_may_write(path) is None
        os.chown(path, 12345, -1)
        assert "another user" in (others_may_write(path) or "")
