"""Tests of the hash of the source that determines kernels' code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tconv
from tconv import source
from tests.test_imports import imported

ROOT = Path(tconv.__file__).parent
# Modules imported by planning and launching that do not affect kernels' code.
ASIDE = {"__init__.py", "files.py", "interpreter_bfloat16.py", "kernel_cache.py", "table.py"}


@pytest.mark.parametrize(
    "edit",
    [("num_warps", "num_warp"), ("MOST_REGISTERS, REGISTER_FILE = 255", "MOST_REGISTERS, X = 128")],
    ids=["option", "registers"],
)
def test_another_compiler_option_changes_the_hash(edit: tuple[str, str], tmp_path: Path) -> None:
    for file in source.deciding(ROOT):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    assert source.hash_of(tmp_path) == source.source_hash()
    (launch,) = (file for file in source.deciding(tmp_path) if file.name == "launch.py")
    text = launch.read_text()
    assert edit[0] in text
    launch.write_text(text.replace(*edit))
    assert source.hash_of(tmp_path) != source.source_hash()


def test_every_module_that_plans_import_is_hashed() -> None:
    files = source.deciding(ROOT)
    assert {"kernels", "families"} <= {file.parent.name for file in files}
    for file in files:
        for name in imported(file):
            module = ROOT.parent.joinpath(*name.split(".")).with_suffix(".py")
            if name.startswith("tconv.") and module.exists() and module.name not in ASIDE:
                assert module in files, f"{file} imports {name}"
