"""Tests of the mutation rules and of installing a mutant temporarily."""

from __future__ import annotations

import ast

import pytest
import torch

from tconv.launch import Launch, Pointer
from tests.mutation import equivalent
from tests.mutation.mutants import (
    FOLDER,
    callees,
    device_functions,
    installed,
    kernels,
    mutants,
    with_helpers,
)
from tests.mutation.oracle import TESTS
from tests.mutation.rules import RULES

# rule -> a line of a kernel, and its mutant
BROKEN = {
    "mask dropped": [
        ("tl.load(x, mask=a & b, other=0.0)", ["tl.load(x)"]),
        ("tl.store(x, y, mask=a)", ["tl.store(x, y)"]),
        ("tl.load(x)", []),
    ],
    "conjunct dropped": [
        ("a & (b < c)", ["a", "(b < c)"]),
        ("a and b and c", ["(b and c)", "(a and c)", "(a and b)"]),
    ],
    "filling": [
        ("tl.load(x, mask=a, other=0.0)", ["other=1.0"]),
        ("tl.load(x, mask=a, other=-1)", ["other=0"]),
        ("tl.load(x, mask=a, other=float('-inf'))", ["other=0.0"]),
    ],
    "bound": [("a < b", ["(a <= b)"]), ("a >= 0", ["(a > 0)"]), ("a != b", ["(a == b)"])],
    "operator": [
        ("a + b", ["(a - b)"]),
        ("a % b", ["(a // b)"]),
        ("a << b", ["(a >> b)"]),
        ("a += b", ["a -= b"]),
        ("-a", ["a"]),
    ],
    "factor dropped": [("a * b", ["a", "b"])],
    "off by one": [
        ("a + 1", ["2"]),
        ("a - PAD_H", ["(PAD_H + 1)"]),
        ("tl.arange(A, BLOCK)", ["(tl.arange(A, BLOCK) + 1)"]),
        ("a + 1.0", []),
    ],
    "swapped name": [("a * stride_h", ["stride_w"]), ("a * x_row", ["x_column", "y_row"])],
    "program lost": [("tl.program_id(1)", ["(tl.program_id(1) * 0)"])],
    "program axis": [("tl.program_id(2)", ["tl.program_id(0)"])],
    "rounded down": [("tl.cdiv(a + b, c)", ["((a + b) // c)"])],
    "loop short": [
        ("for i in range(a): pass", ["range(a - 1)"]),
        ("for i in tl.range(a, b, 2): pass", ["tl.range(a, b - 1, 2)"]),
    ],
    "branch": [("if a: b", ["(not a)"]), ("if not a: b", ["a"]), ("a if b else c", ["(not b)"])],
    "choice": [("tl.where(a, b, c)", ["b", "c"]), ("tl.minimum(a, b)", ["a", "b"])],
    "sum lost": [
        ("a += b", ["a = b"]),
        ("tl.dot(a, b, total)", ["tl.dot(a, b)"]),
        ("tl.zeros((A,), T)", ["(tl.zeros((A,), T) + 1)"]),
    ],
    "statement dropped": [
        ("tl.store(x, y)", ["pass"]),
        ("a += b", ["pass"]),
        ("a = 1\na = 2", ["pass"]),
        ("a = 1", []),
    ],
    "axis": [
        ("a[:, None]", ["a[None, :]"]),
        ("tl.sum(a, axis=0)", ["axis=1"]),
        ("tl.trans(a)", ["a"]),
        ("tl.permute(a, (0, 2, 1))", ["tl.permute(a, (0, 1, 2))"]),
    ],
    "wrong order": [
        ("helper(a, b, c)", ["helper(b, a, c)"]),
        ("a, b, c = x", ["b, a, c = x"]),
        ("range(a, b)", []),
    ],
}
"""Names known in the lines above, so that each has a counterpart."""
NAMES = frozenset({"stride_h", "stride_w", "x_row", "x_column", "y_row"})


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    for line, expected in BROKEN[rule]:
        tree = ast.parse(line)
        if rule == "statement dropped":
            tree.body[-1].again = len(tree.body) > 1  # type: ignore[attr-defined]
        found = [new for node in ast.walk(tree) for new in RULES[rule](node, NAMES)]
        assert found == expected, line


def test_kernels_and_their_helpers() -> None:
    """The table of tests has a row for every kernel, by its name in a launch."""
    assert set(kernels()) == set(TESTS)
    assert callees("epilogue_grad.epilogue_grad") == {
        "epilogue_grad.add_sums",
        "activations.activation_grad",
    }
    helpers = with_helpers("tma.implicit_gemm_tma")
    assert helpers[0] == "tma.implicit_gemm_tma"
    assert {"epilogue.greater", "index.swizzled_tile"} < set(helpers)


@pytest.mark.parametrize("kernel", TESTS)
def test_every_kernel_has_twenty(kernel: str) -> None:
    own = mutants(kernel)
    assert len(own) >= 20
    assert len({mutant.name for mutant in own}) == len(own)
    rules = {m.rule for function in with_helpers(kernel) for m in mutants(function)}
    assert {"bound", "operator", "program lost", "mask dropped"} <= rules


def test_a_mutant_differs_in_the_lines_that_it_names() -> None:
    module, _, name = "epilogue_grad.epilogue_grad".partition(".")
    whole = (FOLDER / f"{module}.py").read_text()
    for mutant in mutants(f"{module}.{name}"):
        ast.parse(mutant.source)
        plain = ast.unparse(ast.parse(whole))
        assert ast.unparse(ast.parse(mutant.source)) not in plain
        assert mutant.before.split()[0] in whole.splitlines()[mutant.line - 1]


@pytest.mark.interpreter
def test_a_mutant_is_installed_and_removed() -> None:
    launch = Launch(
        "epilogue_grad.bias_grad_sum",
        (2,),
        {"workspace": Pointer("parts", "float32"), "dbias": Pointer("sums", "float32")},
        {"splits": 3},
        {"CHANNELS": 5, "BLOCK": 4},
    )

    def run() -> torch.Tensor:
        tensors = {"parts": torch.ones(3, 5), "sums": torch.zeros(5)}
        launch.run(tensors)
        return tensors["sums"]

    (mutant,) = (m for m in mutants("epilogue_grad.bias_grad_sum") if m.rule == "loop short")
    assert mutant.name.endswith("range(0, splits): -> for split in range(0, splits - 1):")
    assert run().tolist() == [3.0] * 5
    with installed(mutant):
        assert run().tolist() == [2.0] * 5
    assert run().tolist() == [3.0] * 5


def test_equivalent_mutants_exist() -> None:
    known = {f"{m.name}" for function in device_functions() for m in mutants(function)}
    for name, reason in equivalent.read().items():
        place, _, change = name.partition(": ")
        kernel, slash, function = place.rpartition(" / ")
        assert f"{function}: {change}" in known, name
        assert not slash or function in with_helpers(kernel), name
        assert reason, name
