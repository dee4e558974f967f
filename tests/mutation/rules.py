"""Mutation rules: each yields the replacements of an expression that break a kernel.

A rule takes a node of the syntax tree and the names in the function, and yields the source text of
every replacement for the node.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

Names = frozenset[str]
Rule = Callable[[ast.AST, Names], Iterator[str]]


def text(node: ast.AST) -> str:
    """Return an expression's source, parenthesised so that it can be part of another."""
    plain = ast.unparse(node)
    atomic = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Tuple)
    return plain if isinstance(node, atomic) else f"({plain})"


def called(node: ast.AST) -> str:
    """Return ``load`` for a call of ``tl.load``; otherwise an empty string."""
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "tl":
        return node.func.attr
    return ""


def _call(node: ast.Call, args: list[ast.expr], keywords: list[ast.keyword]) -> str:
    return ast.unparse(ast.Call(node.func, args, keywords))


# ---- memory ---------------------------------------------------------------------------------


def mask_dropped(node: ast.AST, _: Names) -> Iterator[str]:
    """Drop the mask of a load or store."""
    if isinstance(node, ast.Call) and called(node) in ("load", "store"):
        kept = [word for word in node.keywords if word.arg not in ("mask", "other")]
        if kept != node.keywords:
            yield _call(node, node.args, kept)


def conjunct_dropped(node: ast.AST, _: Names) -> Iterator[str]:
    """Drop one condition of a mask."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield text(node.left)
        yield text(node.right)
    elif isinstance(node, ast.BoolOp):
        for left_out in node.values:
            rest = [value for value in node.values if value is not left_out]
            yield text(rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))


def filling(node: ast.AST, _: Names) -> Iterator[str]:
    """Change the value of masked-off elements."""
    if isinstance(node, ast.keyword) and node.arg == "other":
        fillings = {"0.0": "1.0", "0": "1", "-1": "0"}
        yield f"other={fillings.get(ast.unparse(node.value), '0.0')}"


# ---- index arithmetic -----------------------------------------------------------------------

COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
}


def bound(node: ast.AST, _: Names) -> Iterator[str]:
    """Exchange < and <=, > and >=, or == and !=."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        operator = COMPARISONS[type(node.ops[0])]
        yield text(ast.Compare(node.left, [operator], node.comparators))


OPERATORS: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.FloorDiv: ast.Mod(),
    ast.Mod: ast.FloorDiv(),
    ast.LShift: ast.RShift(),
    ast.RShift: ast.LShift(),
}


def operator(node: ast.AST, _: Names) -> Iterator[str]:
    """Exchange plus and minus, or quotient and remainder."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield text(ast.BinOp(node.left, OPERATORS[type(node.op)], node.right))
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield ast.unparse(ast.AugAssign(node.target, OPERATORS[type(node.op)], node.value))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield text(node.operand)


def factor_dropped(node: ast.AST, _: Names) -> Iterator[str]:
    """Drop a factor of a product."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield text(node.left)
        yield text(node.right)


def off_by_one(node: ast.AST, _: Names) -> Iterator[str]:
    """Add one to an integer, a padding or a tile's lanes."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield str(node.value + 1)
    elif isinstance(node, ast.Name) and node.id.startswith(("PAD_", "FIRST")):
        yield f"({node.id} + 1)"
    elif called(node) == "arange":
        yield f"({ast.unparse(node)} + 1)"


PARTS = (
    ("H", "W"), ("h", "w"), ("ALONG", "ACROSS"), ("along", "across"), ("IN", "OUT"), ("in", "out"),
    ("REDUCED", "PRODUCED"), ("reduced", "produced"), ("M", "N"), ("rows", "columns"),
    ("row", "column"), ("top", "left"), ("down", "right"), ("p", "q"), ("x", "y"),
)  # fmt: skip
SWAPS = dict([*PARTS, *((b, a) for a, b in PARTS)])
WHOLE = {"h": "v", "v": "h", "even": "odd", "odd": "even", "first": "last", "last": "first"}


def swapped_name(node: ast.AST, names: Names) -> Iterator[str]:
    """Replace a name by its counterpart for another axis, tensor or side of the tile."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        parts = node.id.split("_")
        others = {
            "_".join([*parts[:i], SWAPS[part], *parts[i + 1 :]])
            for i, part in enumerate(parts)
            if part in SWAPS
        }
        others.add(WHOLE.get(node.id, node.id))
        yield from sorted(others & names - {node.id})


def program_lost(node: ast.AST, _: Names) -> Iterator[str]:
    """Replace the program's index by 0: its tile, phase, group or split."""
    if called(node) == "program_id":
        yield f"({ast.unparse(node)} * 0)"


def program_axis(node: ast.AST, _: Names) -> Iterator[str]:
    """Take the program's index along another axis of the grid."""
    if isinstance(node, ast.Call) and called(node) == "program_id":
        axis = node.args[0]
        assert isinstance(axis, ast.Constant)
        assert isinstance(axis.value, int)
        yield f"tl.program_id({(axis.value + 1) % 3})"


def rounded_down(node: ast.AST, _: Names) -> Iterator[str]:
    """Replace a division that rounds up by one that rounds down."""
    if isinstance(node, ast.Call) and called(node) == "cdiv":
        yield f"({text(node.args[0])} // {text(node.args[1])})"


# ---- control and sums -----------------------------------------------------------------------


def loop_short(node: ast.AST, _: Names) -> Iterator[str]:
    """Drop the last step of a loop."""
    if isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
        loop = node.iter
        args = list(loop.args)
        place = min(1, len(args) - 1)
        args[place] = ast.BinOp(args[place], ast.Sub(), ast.Constant(1))
        yield _call(loop, args, loop.keywords)


def branch(node: ast.AST, _: Names) -> Iterator[str]:
    """Take the other branch."""
    if isinstance(node, (ast.If, ast.IfExp)):
        test = node.test
        negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        yield text(test.operand) if negated else f"(not {text(test)})"


def choice(node: ast.AST, _: Names) -> Iterator[str]:
    """Replace a selection by one of its two values."""
    if isinstance(node, ast.Call) and called(node) in ("where", "minimum", "maximum"):
        for value in node.args[-2:]:
            yield text(value)


def sum_lost(node: ast.AST, _: Names) -> Iterator[str]:
    """Replace an accumulation by its last term, or start a sum at one."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
        yield f"{ast.unparse(node.target)} = {ast.unparse(node.value)}"
    elif isinstance(node, ast.Call) and called(node) == "dot" and len(node.args) == 3:
        yield _call(node, node.args[:2], node.keywords)
    elif called(node) == "zeros":
        yield f"({ast.unparse(node)} + 1)"


def statement_dropped(node: ast.AST, _: Names) -> Iterator[str]:
    """Drop a store, an addition or a reassignment."""
    stores = isinstance(node, ast.Expr) and called(node.value) == "store"
    again = isinstance(node, ast.Assign) and getattr(node, "again", False)
    if stores or again or isinstance(node, ast.AugAssign):
        yield "pass"


# ---- the shape of a tile --------------------------------------------------------------------


def axis(node: ast.AST, _: Names) -> Iterator[str]:
    """Take a tile's transpose, or reduce along the wrong axis."""
    if isinstance(node, ast.Subscript):
        turned = {":, None": "None, :", "None, :": ":, None"}
        index = ast.unparse(node.slice).strip("()")
        if index in turned:
            yield f"{text(node.value)}[{turned[index]}]"
    elif isinstance(node, ast.keyword) and node.arg == "axis":
        assert isinstance(node.value, ast.Constant)
        yield f"axis={'01'['10'.find(str(node.value.value))]}"
    elif isinstance(node, ast.Call) and called(node) == "trans":
        yield text(node.args[0])
    elif isinstance(node, ast.Call) and called(node) == "permute":
        order = node.args[1]
        assert isinstance(order, ast.Tuple)
        *rest, before, last = order.elts
        turned_order = ast.Tuple([*rest, last, before], ast.Load())
        yield _call(node, [node.args[0], turned_order], [])


def _helper(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id != "range"


def wrong_order(node: ast.AST, _: Names) -> Iterator[str]:
    """Swap two neighbouring arguments or results of a helper."""
    if isinstance(node, ast.Call) and _helper(node) and len(node.args) > 1:
        first, second, *rest = node.args
        yield _call(node, [second, first, *rest], node.keywords)
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
        first, second, *rest = node.targets[0].elts
        yield ast.unparse(ast.Assign([ast.Tuple([second, first, *rest])], node.value, lineno=0))


RULES: dict[str, Rule] = {
    "mask dropped": mask_dropped,
    "conjunct dropped": conjunct_dropped,
    "filling": filling,
    "bound": bound,
    "operator": operator,
    "factor dropped": factor_dropped,
    "off by one": off_by_one,
    "swapped name": swapped_name,
    "program lost": program_lost,
    "program axis": program_axis,
    "rounded down": rounded_down,
    "loop short": loop_short,
    "branch": branch,
    "choice": choice,
    "sum lost": sum_lost,
    "statement dropped": statement_dropped,
    "axis": axis,
    "wrong order": wrong_order,
}
