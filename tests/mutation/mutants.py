"""Mutants of every kernel, generated from its source in a fixed order, and their installation."""

from __future__ import annotations

import ast
import importlib
import linecache
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tconv.kernels
from tests.mutation.rules import RULES, Names, called

FOLDER = Path(tconv.kernels.__file__).parent
PACKAGE = "tconv.kernels"
# Arguments of these calls are shapes, types and numbers that Triton itself checks.
UNTOUCHED = {
    "arange": (0, 1), "program_id": (0,), "num_programs": (0,), "zeros": (0, 1), "full": (0, 2),
    "reshape": (1,), "permute": (1,),
}  # fmt: skip
UNTOUCHED_WORDS = ("input_precision", "out_dtype", "propagate_nan", "disable_licm", "axis")


@dataclass(frozen=True)
class Mutant:
    """One change of a device function."""

    function: str  # module.name in tconv.kernels
    rule: str
    line: int
    before: str  # the lines that change, before and after
    after: str
    source: str  # the changed function's source
    number: int = 1  # distinguishes equal changes of equal lines

    @property
    def name(self) -> str:
        """An identifier that is independent of line numbers."""
        again = f" (#{self.number})" if self.number > 1 else ""
        return f"{self.function}: {self.before} -> {self.after}{again}"


# ---- device functions -----------------------------------------------------------------------


def is_device(node: ast.AST) -> bool:
    """Return whether ``node`` is a function that Triton compiles."""
    marks = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(ast.unparse(mark).startswith("triton.jit") for mark in marks)


@lru_cache
def parsed(module: str) -> tuple[str, dict[str, ast.FunctionDef]]:
    """Return a module's source and its device functions by name."""
    source = (FOLDER / f"{module}.py").read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return source, {node.name: node for node in nodes if is_device(node)}


@lru_cache
def callees(function: str) -> frozenset[str]:
    """Return the device functions that ``function`` calls directly, as module.name."""
    module, name = function.split(".")
    source, functions = parsed(module)
    homes = dict.fromkeys(functions, module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            home = (node.module or "").rpartition(".")[2]
            homes |= {alias.name: home for alias in node.names}
    names = {n.id for n in ast.walk(functions[name]) if isinstance(n, ast.Name)} - {name}
    return frozenset(f"{homes[each]}.{each}" for each in names if each in homes)


def device_functions() -> list[str]:
    modules = sorted(path.stem for path in FOLDER.glob("*.py"))
    return [f"{module}.{name}" for module in modules for name in parsed(module)[1]]


def kernels() -> list[str]:
    """Return the kernels: device functions that no other device function calls."""
    every = device_functions()
    helpers = frozenset[str]().union(*map(callees, every))
    return [function for function in every if function not in helpers]


def with_helpers(kernel: str) -> list[str]:
    """Return the kernel and all functions that it calls, directly or indirectly."""
    found = [kernel]
    for function in found:
        found += sorted(callees(function) - set(found))
    return found


# ---- mutants --------------------------------------------------------------------------------


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a node that may be changed."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):  # a method of a value, not a function of tl
            yield from _parts(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "to":
            return
        left_alone = UNTOUCHED.get(called(node), ())
        yield from (argument for i, argument in enumerate(node.args) if i not in left_alone)
        yield from (word for word in node.keywords if word.arg not in UNTOUCHED_WORDS)
        yield from (word for word in node.keywords if word.arg == "axis")
    elif isinstance(node, ast.Attribute):
        if not isinstance(node.value, (ast.Name, ast.Attribute)):
            yield node.value
    elif isinstance(node, ast.keyword):
        if node.arg not in ("axis", "other"):
            yield node.value
    elif isinstance(node, ast.AnnAssign):
        yield from [node.value] if node.value else []
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    elif isinstance(node, ast.FunctionDef):
        yield from node.body
    else:
        yield from ast.iter_child_nodes(node)


def _within(node: ast.AST) -> Iterator[ast.AST]:
    for part in _parts(node):
        yield part
        yield from _within(part)


def _mark_new_values(function: ast.FunctionDef) -> Names:
    """Mark assignments to names that are already bound; return all names of the function."""
    bound = {argument.arg for argument in function.args.args}
    for node in _within(function):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if target is not None:
            names = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
            node.again = names <= bound  # type: ignore[attr-defined]
            bound |= names
    return frozenset(bound)


def _offset(lines: list[str], line: int, column: int) -> int:
    """Return a parser position as a character offset; the kernels are ASCII."""
    return sum(map(len, lines[: line - 1])) + column


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _changed(source: str, node: ast.AST, new: str) -> tuple[str, str, str]:
    """Return the source with ``new`` in place of ``node``, and the lines changed, old and new."""
    place: Any = node.iter if isinstance(node, ast.For) else node
    place = place.test if isinstance(place, (ast.If, ast.IfExp)) else place
    lines = source.splitlines(keepends=True)
    start = _offset(lines, place.lineno, place.col_offset)
    end = _offset(lines, place.end_lineno, place.end_col_offset)
    changed = source[:start] + new + source[end:]
    first, last = place.lineno - 1, place.end_lineno
    rest = len(lines) - last
    after = changed.splitlines()
    return changed, _joined(lines[first:last]), _joined(after[first : len(after) - rest])


@lru_cache
def mutants(function: str) -> tuple[Mutant, ...]:
    """Return all mutants of one device function, without duplicates."""
    module, name = function.split(".")
    source, functions = parsed(module)
    node = functions[name]
    first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
    lines = source.splitlines(keepends=True)[first - 1 : node.end_lineno]
    own = "".join(lines)
    (tree,) = ast.parse(own).body
    assert isinstance(tree, ast.FunctionDef)
    names = _mark_new_values(tree)
    found, times = [], dict[tuple[str, str], int]()
    for part in _within(tree):
        seen = {ast.unparse(part)}
        for rule, replacements in RULES.items():
            for new in replacements(part, names):
                if new.strip("()") in seen:
                    continue
                seen.add(new.strip("()"))
                changed, before, after = _changed(own, part, new)
                number = times[before, after] = times.get((before, after), 0) + 1
                line = first - 1 + getattr(part, "lineno", 0)
                found.append(Mutant(function, rule, line, before, after, changed, number))
    return tuple(found)


def sample(every: Sequence[Mutant], count: int) -> list[Mutant]:
    """Return about ``count`` mutants, from the rules in turn and spread evenly within each rule."""
    rules = {rule: [mutant for mutant in every if mutant.rule == rule] for rule in RULES}
    shares, left = dict.fromkeys(rules, 0), min(count, len(every))
    while left:
        for rule, found in rules.items():
            if left and shares[rule] < len(found):
                shares[rule] += 1
                left -= 1
    chosen = {
        found[i * len(found) // shares[rule]]
        for rule, found in rules.items()
        for i in range(shares[rule])
    }
    return [mutant for mutant in every if mutant in chosen]


# ---- installation ---------------------------------------------------------------------------


@contextmanager
def installed(mutant: Mutant) -> Iterator[None]:
    """Replace the function by its mutant in Triton's interpreter, for all callers."""
    module, name = mutant.function.split(".")
    function = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    file = f"<{mutant.name}>"  # Triton rereads the source from Python's line cache
    lines = mutant.source.splitlines(keepends=True)
    linecache.cache[file] = (len(mutant.source), None, lines, file)
    made: dict[str, Any] = {}
    exec(compile(mutant.source, file, "exec"), function.fn.__globals__, made)
    kept = dict(vars(function))
    vars(function).update(vars(made[name]))
    try:
        yield
    finally:
        vars(function).update(kept)
        del linecache.cache[file]
