"""Carry compiled kernels to another machine with the same GPU architecture.

A folder holds the kernels' files as Triton's cache does, and a manifest:

    {"format": 1, "backend": "cuda", "arch": "sm_90", "triton": "3.7.1", "compiler": "5d0c...",
     "source": "0a1b...", "kernels": {"4E23...": {"direct.json": "<SHA-256>", ...}, ...}}

Reading is parsing only: nothing is unpickled or executed. Every file is checked against the
manifest before any is installed. The sums show that a file is unchanged, not who wrote it: compiled
kernels are code, so load only folders whose origin you trust.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.compiler import make_backend
from triton.runtime.cache import triton_key

from tconv import kernel_cache
from tconv.aot.build import gpu_target
from tconv.aot.warm_up import WarmUp, here
from tconv.files import private_folder, replace_all
from tconv.source import source_hash
from tconv.target import Target, named_target
from tconv.winners import TableError, read_json

FORMAT = 1
MANIFEST = "kernels.json"
CARRIED = (".json", ".cubin", ".ptx", ".hsaco", ".amdgcn")  # what a launch, or the emulator, reads
KEY = re.compile(r"[A-Z2-7]{52}")  # Triton's name of a cache entry: 32 bytes in base 32
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
SUM = re.compile(r"[0-9a-f]{64}")
LARGEST_FILE = 64 << 20  # bytes

Files = dict[str, dict[str, bytes]]  # by entry and name


class KernelsError(ValueError):
    """Compiled kernels that cannot be saved or loaded; the message names the folder and cause."""


@dataclass(frozen=True)
class Loaded:
    """The result of ``load_kernels``: how many kernels were installed, and how many were there."""

    installed: int
    there: int

    def as_json(self) -> dict[str, int]:
        """Return the two counts."""
        return {"installed": self.installed, "there": self.there}

    def __str__(self) -> str:
        return f"{self.installed} kernels installed, {self.there} already there"


def save_kernels(warmed: WarmUp, folder: str | os.PathLike[str]) -> int:
    """Write the kernels of a warm-up to ``folder``, for ``load_kernels`` on another machine.

    Args:
        warmed: the result of ``warm_up``.
        folder: is created if missing; it must not hold files yet.

    Returns:
        The number of kernels.

    Raises:
        KernelsError: if there are no kernels, the folder is not empty, or Triton's cache no longer
            holds a kernel.
        OSError: if the folder cannot be written.
    """
    place = Path(folder)
    if warmed.target is None or not warmed.kernels:
        raise KernelsError(f"no kernels to save to {place}: {warmed.note or 'none was compiled'}")
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise KernelsError(f"{place} is not empty; name a new folder")
    cache = Path(triton.knobs.cache.dir)
    found: Files = {}
    for kernel in warmed.kernels:
        entry = _entry(kernel.key)
        files = {
            path.name: path.read_bytes()
            for path in sorted((cache / entry).glob("*"))
            if path.suffix in CARRIED and not path.name.startswith("__grp__")
        }
        if sum(name.endswith(".json") for name in files) != 1 or len(files) < 2:
            raise KernelsError(f"Triton's cache no longer holds {kernel.name}: {cache / entry}")
        found[entry] = files
    for entry, files in found.items():
        (place / entry).mkdir()
        replace_all({place / entry / name: content for name, content in files.items()})
    sums = {
        entry: {name: _sum(content) for name, content in files.items()}
        for entry, files in found.items()
    }
    manifest = {"format": FORMAT, **_made_by(warmed.target), "kernels": sums}
    replace_all({place / MANIFEST: json.dumps(manifest, indent=1) + "\n"})
    return len(found)


def load_kernels(folder: str | os.PathLike[str], *, target: str | None = None) -> Loaded:
    """Install the kernels of ``folder`` into Triton's cache, where a model's call finds them.

    All files are checked first; if one check fails, nothing is installed.

    Args:
        folder: written by ``save_kernels``, on a machine whose GPU has the same architecture, with
            the same versions of Triton and of this library. Compiled kernels are code: load only
            folders whose origin you trust.
        target: an architecture to check for instead of this machine's GPU.

    Raises:
        KernelsError: if the folder is of another architecture, Triton or tconv, or a file is
            missing, changed or outside the folder.
        ValueError: for an unknown target.
        OSError: if Triton's cache cannot be written.
    """
    place = Path(folder)
    gpu = _expected(target)
    manifest = _manifest(place)
    _check_origin(place, manifest, gpu)
    found = _checked_files(place, manifest["kernels"])
    kernel_cache.guard()
    cache = Path(triton.knobs.cache.dir)
    missing = {entry: files for entry, files in found.items() if not _holds(cache / entry, files)}
    for entry, files in missing.items():
        _install(cache / entry, files)
    return Loaded(len(missing), len(found) - len(missing))


# ---- where kernels are from -----------------------------------------------------------------


def _made_by(target: Target) -> dict[str, str]:
    """Return what a kernel depends on besides its own source: all must agree where it is loaded."""
    backend = make_backend(gpu_target(target))
    return {
        "backend": target.backend,
        "arch": target.arch,
        "triton": triton.__version__,
        # Triton's files and ptxas: builds of one version may differ.
        "compiler": _sum(f"{triton_key()} {backend.hash()}".encode())[:16],
        "source": source_hash(),
    }


def _expected(name: str | None) -> Target:
    if name is not None:
        return named_target(name)
    found = here()
    if isinstance(found, str):
        raise KernelsError(f"there is no GPU to load kernels for: {found}; name one with target=")
    return found


def _check_origin(place: Path, manifest: Mapping[str, Any], target: Target) -> None:
    expected = _made_by(target)
    words = {
        "backend": "are for {found}, not for {here}",
        "arch": "are for {found}, not for {here}",
        "triton": "were compiled by Triton {found}, here is {here}",
        "compiler": "were compiled by another build of Triton or ptxas ({found}, here {here})",
        "source": "were compiled from another version of tconv (source {found}, here {here})",
    }
    for name, sentence in words.items():
        found = manifest.get(name)
        if found != expected[name]:
            text = sentence.format(found=reprlib.repr(found).strip("'"), here=expected[name])
            raise KernelsError(f"the kernels of {place} {text}")


# ---- the folder -----------------------------------------------------------------------------


def _manifest(place: Path) -> dict[str, Any]:
    path = place / MANIFEST
    try:
        manifest = read_json(path)
    except TableError as error:
        raise KernelsError(str(error)) from error
    if manifest is None:
        raise KernelsError(f"{place} holds no compiled kernels: there is no {MANIFEST}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise KernelsError(f"{path} is not of format {FORMAT}")
    if not isinstance(manifest.get("kernels"), dict):
        raise KernelsError(f"{path} is damaged: it lists no kernels")
    return manifest


def _checked_files(place: Path, kernels: Mapping[str, Any]) -> Files:
    """Read every file that the manifest lists, each compared with its sum."""
    found: Files = {}
    for entry, sums in kernels.items():
        if KEY.fullmatch(entry) is None:
            raise KernelsError(f"{place}: {reprlib.repr(entry)} is not an entry of Triton's cache")
        if not isinstance(sums, dict) or sum(name.endswith(".json") for name in sums) != 1:
            raise KernelsError(f"{place}: kernel {entry} has not one .json file")
        found[entry] = {}
        for name, expected in sums.items():
            if NAME.fullmatch(name) is None or Path(name).suffix not in CARRIED:
                raise KernelsError(f"{place}: {reprlib.repr(name)} is not a kernel's file")
            if not isinstance(expected, str) or SUM.fullmatch(expected) is None:
                raise KernelsError(f"{place}: {entry}/{name} has no SHA-256 sum")
            content = _read(place / entry, name)
            if _sum(content) != expected:
                raise KernelsError(f"{place}: {entry}/{name} was changed: its SHA-256 sum differs")
            found[entry][name] = content
    return found


def _read(folder: Path, name: str) -> bytes:
    """Read a regular file of a real folder: links could lead elsewhere."""
    path = folder / name
    try:
        if folder.is_symlink():
            raise KernelsError(f"{folder} is a link, which may lead elsewhere")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        link = "it is a link, which may lead elsewhere"
        reason = link if path.is_symlink() else error.strerror
        raise KernelsError(f"{path} cannot be read: {reason}") from error
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
            raise KernelsError(f"{path} is not a file of at most {LARGEST_FILE >> 20} MiB")
        return file.read(LARGEST_FILE)


# ---- Triton's cache -------------------------------------------------------------------------


def _entry(key: str) -> str:
    """Return the folder's name in Triton's cache for a kernel's hash."""
    return base64.b32encode(bytes.fromhex(key)).decode().rstrip("=")


def _group(files: Mapping[str, bytes]) -> str:
    """Return the name of the file in which Triton lists an entry's files."""
    (metadata,) = (name for name in files if name.endswith(".json"))
    return f"__grp__{metadata}"


def _holds(entry: Path, files: Mapping[str, bytes]) -> bool:
    return (entry / _group(files)).is_file()


def _install(entry: Path, files: Mapping[str, bytes]) -> None:
    """Write a cache entry; the list of its files comes last and makes it valid."""
    private_folder(entry)
    replace_all({entry / name: content for name, content in files.items()})
    paths = {name: str(entry / name) for name in files}
    replace_all({entry / _group(files): json.dumps({"child_paths": paths})})


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
