"""Tests that the library imports no extra, and that commands name a missing one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tconv.extras import OPTIONAL, extra

ROOT = Path(__file__).parents[2]
EXCEPTED = {"forest.py": ["sklearn.ensemble"]}  # checked before the import; optional
LIBRARY = """
import sys
before = set(sys.modules)  # torch's own, if any
import torch
before |= set(sys.modules)
import tconv, tconv.models, autotune
IMPORTS
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} & OPTIONAL))
"""
# Each command or function and the extra that it needs.
NEEDS = {
    "import runpy; runpy.run_module('autotune', run_name='__main__')": "tune",
    "import runpy; runpy.run_module('reports', run_name='__main__')": "reports",
    "import autotune; autotune.on_first_call()": "tune",
    "import autotune.trial_store": "tune",
    "import autotune.tune": "tune",
    "import autotune.recorded": "tune",
    "import reports.rows": "tune",  # the tuner's modules are imported first
    "import tconv.models.train": "train",
    "from tconv.models import describe, lenet5; describe(lenet5())": "train",
}
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
for name in OPTIONAL:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
import tconv, torch
print(tuple(tconv.Conv2d(1, 2, 3)(torch.zeros(1, 1, 5, 5)).shape))
for line in NEEDS:
    try:
        exec(line)
    except (ModuleNotFoundError, SystemExit) as error:
        print(error)
"""


def _python(code: str) -> str:
    given = f"OPTIONAL, NEEDS = {OPTIONAL!r}, {NEEDS!r}\n"
    done = subprocess.run([sys.executable, "-c", given + code], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def test_the_library_imports_no_extra() -> None:
    assert _python(LIBRARY.replace("IMPORTS", "")) == ""


def test_worker_processes_import_no_extra_but_attrs() -> None:
    """attrs validates the stored trials, and its import is quick."""
    imports = "from autotune import evaluate, first_call, search, trial_store"
    assert _python(LIBRARY.replace("IMPORTS", imports)) == "attrs"


# What a program that computes with torch's own operators never needs.
LATE = ("tconv_workers", "tconv.families", "tconv.cost", "tconv.select", "tconv.compiler",
        "tconv.graphs", "tconv.aot")  # fmt: skip


def test_the_library_imports_neither_planner_nor_compiler_nor_workers() -> None:
    code = (
        "import os, sys\nos.environ.pop('TRITON_INTERPRET', None)\nimport torch, tconv\n"
        "tconv.Conv2d(1, 2, 3)(torch.ones(1, 1, 5, 5))\n"
        f"print(*(name for name in {LATE} if name in sys.modules))"
    )
    assert _python(code) == ""
    names = "print(*(name for name in tconv.__all__ if getattr(tconv, name) is None))"
    assert _python(f"import tconv; {names}") == ""
    assert _python("import tconv; print(tconv.warm_up.__name__)") == "warm_up"


def test_without_extras_the_library_works_and_commands_name_their_extra() -> None:
    shape, *errors = _python(WITHOUT).splitlines()
    assert shape == "(1, 2, 3, 3)"
    assert len(errors) == len(NEEDS)
    for error, (line, name) in zip(errors, NEEDS.items(), strict=True):
        assert error.endswith(f"is not installed: python -m pip install 'tconv[{name}]'"), line


def test_a_missing_module_of_ours_is_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tconv\.gone'"), extra("tune"):
        import tconv.gone  # type: ignore[import-not-found]  # noqa: F401


def unguarded(tree: ast.AST, guarded: bool = False) -> Iterator[str]:
    """Yield optional packages imported without ``with extra(...)`` or a way to do without them."""
    names: list[str] = []
    if isinstance(tree, ast.Import):
        names = [alias.name for alias in tree.names]
    elif isinstance(tree, ast.ImportFrom) and not tree.level:
        names = [tree.module or ""]
    if not guarded:
        yield from (name for name in names if name.partition(".")[0] in OPTIONAL)
    if isinstance(tree, ast.With):
        guarded |= any(ast.unparse(item).startswith("extra(") for item in tree.items)
    if isinstance(tree, ast.If):
        guarded |= ast.unparse(tree.test) == "TYPE_CHECKING"
    if isinstance(tree, ast.Try):
        caught = [ast.unparse(each.type) for each in tree.handlers if each.type is not None]
        guarded |= "ModuleNotFoundError" in caught
    for child in ast.iter_child_nodes(tree):
        yield from unguarded(child, guarded)


def test_every_import_of_an_extra_names_it() -> None:
    assert list(unguarded(ast.parse("import rich\ndef f():\n    import PIL.Image"))) == [
        "rich", "PIL.Image",
    ]  # fmt: skip
    caught = "try:\n    import rich\nexcept {}:\n    pass"
    assert list(unguarded(ast.parse(caught.format("ValueError")))) == ["rich"]
    assert list(unguarded(ast.parse(caught.format("ModuleNotFoundError")))) == []
    for package in ("tconv", "tconv_workers", "autotune", "reports"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert list(unguarded(tree)) in ([], EXCEPTED.get(path.name)), path
