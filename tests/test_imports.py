"""Tests that imports run one way: reports, autotune, tconv, and by layers within tconv."""

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
# Layers from the bottom up: a module imports from its own layer and from earlier ones.
LAYERS: tuple[tuple[str, ...], ...] = (
    # device code, independent of the host; worker processes, independent of the project
    ("tconv.kernels", "tconv_workers"),
    # problems, targets and result files
    ("tconv.command_line", "tconv.extras", "tconv.files", "tconv.geometry", "tconv.problem",
     "tconv.source", "tconv.target", "tconv.tile", "tconv.winners", "tconv.reference", "tconv.svg"),
    # the emulated GPU, independent of convolution
    ("tconv.emulator",),
    # a launch, and a plan of several
    ("tconv.interpreter_bfloat16", "tconv.kernel_cache", "tconv.launch", "tconv.plan_caches"),
    # compiling a launch
    ("tconv.aot.build",),
    # kernel families: what they serve, and their plans
    ("tconv.families",),
    # legal tiles and their cost
    ("tconv.cost",),
    # kernels shared by image sizes
    ("tconv.shared_kernels",),
    # choice of the kernel for a problem
    ("tconv.select",),
    # better kernels, compiled in the background
    ("tconv.aot.background",),
    # operators on tensors, with their gradients
    ("tconv.ops",),
    # compiling a model's kernels ahead
    ("tconv.aot",),
    # the user's interface
    ("tconv.functional", "tconv.modules", "tconv.explain", "tconv.convert", "tconv.graphs",
     "tconv.keras", "tconv.compiler"),
    ("tconv",),
    ("tconv.models",),
)  # fmt: skip


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {_name(path): path for each in PACKAGES for path in sorted((ROOT / each).rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Return every name that ``path`` imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(name: str) -> set[str]:
    """Return our modules that module ``name`` imports; submodules instead of their package."""
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
    """Return the layer of a module of tconv: that of the longest matching entry."""
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
    """Return the imports of ``graph`` that lead to a higher layer."""
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
    """Knowledge of one family is in its own file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}  # fmt: skip
    assert not words & FAMILIES.keys()
    homes = {Path(module.__file__ or "").stem for module in vars(families).values()
             if isinstance(module, ModuleType) and hasattr(module, "FAMILY")}  # fmt: skip
    assert len(homes) >= 6
    assert not {name.split(".")[-1] for name in imported(path)} & homes
