"""Tests that files are parsed and never executed: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for name in ("tconv", "tconv_workers", "autotune", "reports", "benchmarks")
           for path in sorted((ROOT / name).rglob("*.py"))]  # fmt: skip
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
# The emulator generates and runs Python from PTX that Triton compiled in this process.
WRITES_CODE = {"tconv/emulator/emitter.py": ["calls exec", "calls compile"]}
METHODS = {"read_pickle", "to_pickle", "hub", "load_module", "exec_module", "system", "popen"}


def offences(tree: ast.AST) -> Iterator[str]:
    """Yield what a syntax tree does that code for reading files must not do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"imports {name}" for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"uses {node.attr}"
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield f"calls {node.func.id}"
        whole = ast.unparse(node.func)
        safe = named.get("weights_only")
        if whole == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True):
            yield "calls torch.load without weights_only=True"
        if whole in ("np.load", "numpy.load") or "allow_pickle" in named:
            yield "loads arrays that may hold objects"
        if "shell" in named:
            yield "asks a shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_content_is_executed(path: Path) -> None:
    found = list(offences(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == WRITES_CODE.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import loads", "import joblib.memory", "eval('1')", "exec(text)",
     "torch.load(path)", "torch.load(path, weights_only=False)", "pd.read_pickle(path)",
     "np.load(path)", "np.save(path, x, allow_pickle=True)", "__import__(name)",
     "subprocess.run(line, shell=True)", "os.system(line)", "torch.hub.load(name)"],
)  # fmt: skip
def test_an_offence_is_found(code: str) -> None:
    assert list(offences(ast.parse(code)))


def test_allowed_calls_are_accepted() -> None:
    for code in ("torch.load(path, weights_only=True)", "model.eval()", "re.compile(text)",
                 "triton.compile(source)", "json.loads(text)"):  # fmt: skip
        assert not list(offences(ast.parse(code)))
