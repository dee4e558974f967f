"""Tests of carried kernels: a folder is checked completely before any kernel is installed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tconv
from tconv.aot import carry
from tconv.aot.carry import MANIFEST, KernelsError, load_kernels, save_kernels
from tconv.aot.warm_up import Kernel, WarmUp
from tconv.target import TARGETS

HOPPER = TARGETS["sm_90"]
KERNELS = tuple(Kernel(f"kernel{n}", f"{n:064x}") for n in (1, 2))


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A cache with two entries, as Triton lays them out, and the empty one of another machine."""
    first, other = tmp_path / "first", tmp_path / "other"
    for kernel in KERNELS:
        entry = first / carry._entry(kernel.key)
        entry.mkdir(parents=True)
        for suffix in ("json", "cubin", "ptx", "source", "ttir"):
            (entry / f"{kernel.name}.{suffix}").write_text(f"{suffix} of {kernel.name}")
        (entry / f"__grp__{kernel.name}.json").write_text('{"child_paths": {}}')
    monkeypatch.setenv("TRITON_CACHE_DIR", str(first))
    return first, other


@pytest.fixture
def folder(caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two kernels saved; this process's cache is the other, empty one from here on."""
    place = tmp_path / "kernels"
    assert save_kernels(WarmUp(HOPPER, KERNELS[:1], KERNELS[1:]), place) == 2
    monkeypatch.setenv("TRITON_CACHE_DIR", str(caches[1]))
    return place


def test_kernels_are_installed_with_their_new_paths(
    folder: Path, caches: tuple[Path, Path]
) -> None:
    assert str(load_kernels(folder, target="sm_90")) == "2 kernels installed, 0 already there"
    for kernel in KERNELS:
        entry = caches[1] / carry._entry(kernel.key)
        paths = json.loads((entry / f"__grp__{kernel.name}.json").read_text())["child_paths"]
        assert set(paths) == {f"{kernel.name}.{suffix}" for suffix in ("json", "cubin", "ptx")}
        for name, path in paths.items():
            assert Path(path) == entry / name
            assert Path(path).read_bytes() == (folder / entry.name / name).read_bytes()
    assert load_kernels(folder, target="sm_90") == carry.Loaded(0, 2)


Manifest = dict[str, Any]


def files_of(manifest: Manifest) -> dict[str, Any]:
    return next(iter(manifest["kernels"].values()))


def rename(manifest: Manifest, to: str) -> None:
    manifest["kernels"][to] = manifest["kernels"].popitem()[1]


EDITS: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "another GPU": (lambda m: m.update(arch="sm_80"), "are for sm_80, not for sm_90"),
    "another vendor": (lambda m: m.update(backend="hip"), "are for hip, not for cuda"),
    "another Triton": (lambda m: m.update(triton="3.0.0"), "compiled by Triton 3.0.0, here is"),
    "another build": (lambda m: m.update(compiler="0"), "another build of Triton or ptxas"),
    "another tconv": (lambda m: m.update(source="0"), "another version of tconv"),
    "no source": (lambda m: m.pop("source"), "another version of tconv"),
    "another format": (lambda m: m.update(format=2), "is not of format 1"),
    "no kernels": (lambda m: m.update(kernels=[]), "it lists no kernels"),
    "entry above": (
        lambda m: rename(m, "../other"),
        "'../other' is not an entry of Triton's cache",
    ),
    "entry from the root": (lambda m: rename(m, "/tmp"), "'/tmp' is not an entry"),
    "file above": (
        lambda m: files_of(m).update({"../x.ptx": "0" * 64}),
        "'../x.ptx' is not a kernel's file",
    ),
    "hidden file": (
        lambda m: files_of(m).update({".x.ptx": "0" * 64}),
        "'.x.ptx' is not a kernel's file",
    ),
    "pickle": (lambda m: files_of(m).update({"x.pkl": "0" * 64}), "'x.pkl' is not a kernel's file"),
    "missing file": (lambda m: files_of(m).update({"x.ptx": "0" * 64}), "x.ptx cannot be read"),
    "no sum": (lambda m: files_of(m).update({"kernel1.ptx": 7}), "has no SHA-256 sum"),
    "two of metadata": (lambda m: files_of(m).update({"x.json": "0" * 64}), "not one .json"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_manifest_that_does_not_fit_is_refused(
    edit: str, folder: Path, caches: tuple[Path, Path]
) -> None:
    change, words = EDITS[edit]
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    refused(folder, words, caches[1])


def refused(folder: Path, words: str, cache: Path) -> None:
    with pytest.raises(KernelsError, match=words):
        load_kernels(folder, target="sm_90")
    assert not cache.exists()


def test_a_changed_file_is_refused(folder: Path, caches: tuple[Path, Path]) -> None:
    (path,) = folder.glob("*/kernel2.cubin")
    path.write_bytes(b"other code")
    refused(folder, "kernel2.cubin was changed", caches[1])


@pytest.mark.parametrize("whole", [False, True], ids=["file", "entry"])
def test_a_link_is_refused(whole: bool, folder: Path, caches: tuple[Path, Path]) -> None:
    (path,) = folder.glob("*/kernel2.cubin")
    path = path.parent if whole else path
    elsewhere = folder.parent / "elsewhere"
    os.replace(path, elsewhere)
    path.symlink_to(elsewhere)
    refused(folder, "is a link, which may lead elsewhere", caches[1])


def test_a_folder_without_kernels_is_refused(tmp_path: Path, caches: tuple[Path, Path]) -> None:
    refused(tmp_path, "there is no kernels.json", caches[1])
    (tmp_path / MANIFEST).write_text("{")
    refused(tmp_path, "cannot be read", caches[1])


@pytest.mark.interpreter
def test_without_a_gpu_a_target_is_needed(folder: Path) -> None:
    with pytest.raises(KernelsError, match="no GPU to load kernels for: Triton's interpreter"):
        load_kernels(folder)
    with pytest.raises(ValueError, match="unknown target 'sm_1'"):
        load_kernels(folder, target="sm_1")


def test_kernels_that_cannot_be_saved_are_reported(
    caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KernelsError, match=r"no kernels to save .* none was compiled"):
        save_kernels(WarmUp(HOPPER), tmp_path / "new")
    with pytest.raises(KernelsError, match="is not empty"):
        save_kernels(WarmUp(HOPPER, KERNELS), tmp_path)
    lost = Kernel("lost", "f" * 64)
    with pytest.raises(KernelsError, match="no longer holds lost"):
        save_kernels(WarmUp(HOPPER, (*KERNELS, lost)), tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    assert tconv.save_kernels is save_kernels
