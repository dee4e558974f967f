"""Imports run downward only: from reports to autotune to tconv, and within tconv by layers."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

from tconv import families
from tconv.families import FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGES = ("tconv_workers", "tconv", "autotune", "reports", "benchmarks")
FORBIDDEN = {
    "tconv_workers": {"tconv", "autotune", "reports", "benchmarks", "tests", "torch", "triton"},
    "tconv": {"autotune", "reports", "benchmarks", "tests"},
    "autotune": {"reports", "benchmarks", "tests"},
    "reports": {"benchmarks", "tests"},
    "benchmarks": {"tests"},
    "tconv/kernels": {"torch"},
}
# From the bottom up: a module imports from its own layer and from those above it in this list.
LAYERS: tuple[tuple[str, ...], ...] = (
    # device code, which knows nothing of the host; processes, which know nothing of the project
    ("tconv.kernels", "tconv_workers"),
    # what is to be computed, on which machine, and the files that results are kept in
    ("tconv.command_line", "tconv.extras", "tconv.files", "tconv.geometry", "tconv.problem",
     "tconv.source", "tconv.target", "tconv.tile", "tconv.winners", "tconv.reference", "tconv.svg"),
    # a GPU that is not there, which knows nothing of convolution
    ("tconv.emulator",),
    # one launch, and the plan of several
    ("tconv.kernel_cache", "tconv.launch"),
    # one launch, compiled
    ("tconv.aot.build",),
    # what each kernel family serves, and its plans
    ("tconv.families",),
    # legal tiles and their cost
    ("tconv.cost",),
    # kernels chosen before, for other sizes
    ("tconv.shared_kernels",),
    # the choice for a problem
    ("tconv.select",),
    # better kernels, compiled in the background
    ("tconv.aot.background",),
    # operators on tensors, with their gradients
    ("tconv.ops",),
    # the kernels that a model needs, compiled ahead
    ("tconv.aot",),
    # what a user calls
    ("tconv.functional", "tconv.modules", "tconv.explain", "tconv.convert", "tconv.graphs",
     "tconv.keras", "tconv.compiler"),
    ("tconv",),
    ("tconv.models",),
)  # fmt: skip


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {_name(path): path for each in PACKAGES for path in sorted((ROOT / each).rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Every name that ``path`` imports, at its head or within a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(name: str) -> set[str]:
    """Modules of ours that module ``name`` imports; of a package's parts, only the parts."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= parts & FILES.keys()
            if not parts <= FILES.keys():
                found.add(node.module)
    return (found & FILES.keys()) - {name}


def layer(name: str) -> int:
    """The layer of a module of tconv; the longest entry that it lies in decides."""
    entries = {entry: place for place, layer in enumerate(LAYERS) for entry in layer}
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        entry = ".".join(parts[:length])
        if entry in entries and (length > 1 or len(parts) == 1):
            return entries[entry]
    raise AssertionError(f"{name} has no layer in LAYERS")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_packages_import_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            for forbidden in FORBIDDEN[folder]:
                assert name != forbidden, path
                assert not name.startswith(f"{forbidden}."), path


def upward(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports of ``graph`` that lead to a higher layer."""
    return [(name, other) for name, others in graph.items() for other in others
            if layer(other) > layer(name)]  # fmt: skip


def test_no_import_runs_upward() -> None:
    assert not upward({name: modules(name) for name in FILES if name.split(".")[0] == "tconv"})
    assert upward({"tconv.launch": {"tconv.ops.conv2d"}}) == [("tconv.launch", "tconv.ops.conv2d")]


def test_there_is_no_circle() -> None:
    graph = {name: modules(name) for name in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_only_device_code_is_imported_by_device_code() -> None:
    for name in FILES:
        if name.startswith("tconv.kernels"):
            assert all(other.startswith("tconv.kernels") for other in modules(name)), name
            outside = {each.split(".")[0] for each in imported(FILES[name])} - {"tconv", "triton"}
            assert outside <= sys.stdlib_module_names, name


@pytest.mark.parametrize("path", sorted((ROOT / "tconv/cost").glob("*.py")), ids=lambda p: p.stem)
def test_the_cost_model_names_no_family(path: Path) -> None:
    """What is known of one family lies in its own file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
    assert not words & FAMILIES.keys()
    homes = {Path(module.__file__ or "").stem for module in vars(families).values()
             if isinstance(module, ModuleType) and hasattr(module, "FAMILY")}  # fmt: skip
    assert len(homes) >= 6
    assert not {name.split(".")[-1] for name in imported(path)} & homes
