"""``assert condition`` and ``if condition: raise``: control flow with one way out, which a graph can hold.

The graph records the condition as ``torch._assert`` and goes on along the only path that returns.
"""

from __future__ import annotations

import ast
import dis
import linecache
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

_Position = tuple[int | None, int | None, int | None, int | None]


@dataclass(frozen=True)
class Guard:
    """What the tested value must be for ``forward`` to go on, and the text of the check."""

    expected: bool
    text: str


def guard_at(frame: FrameType | None) -> Guard | None:
    """Return the guard whose condition ``frame`` is testing now, or ``None`` where it is another kind of branch."""
    if frame is None or frame.f_code.co_name.startswith("<"):
        return None
    if "JUMP" not in _opname(frame):
        return None
    position: _Position = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    statement = _statement_at(frame.f_code.co_filename, position)
    if isinstance(statement, ast.Assert):
        outcome = True
    elif isinstance(statement, ast.If) and not statement.orelse and _only_raises(statement.body):
        outcome = False
    else:
        return None
    expected = _expected(statement, outcome, position)
    return None if expected is None else Guard(expected, ast.unparse(statement.test))


def tests_inside_call(frame: FrameType) -> bool:
    """Whether ``frame`` is calling a builtin that does the testing: ``max(x, 1)``, ``any(flags)``."""
    return _opname(frame).startswith(("CALL", "PRECALL"))


def _opname(frame: FrameType) -> str:
    return next((i.opname for i in dis.get_instructions(frame.f_code) if i.offset == frame.f_lasti), "")


def _only_raises(body: list[ast.stmt]) -> bool:
    return len(body) == 1 and isinstance(body[0], ast.Raise)


def _expected(statement: ast.Assert | ast.If, outcome: bool, position: _Position) -> bool | None:
    atoms = _atoms(statement.test, outcome)
    if atoms is None:
        return None
    for atom, value in atoms:
        if _range(atom) == position:
            return value
    values = {value for _, value in atoms}
    plain = len(values) == 1 and position[0] == statement.lineno
    return values.pop() if plain else None


def _atoms(test: ast.expr, outcome: bool) -> list[tuple[ast.expr, bool]] | None:
    """Return each single condition in ``test`` with the value that ``outcome`` forces on it; None if it forces none."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _atoms(test.operand, not outcome)
    if isinstance(test, ast.BoolOp):
        if isinstance(test.op, ast.And) is not outcome:
            return None
        parts = [_atoms(value, outcome) for value in test.values]
        return None if None in parts else [atom for part in parts if part is not None for atom in part]
    if isinstance(test, ast.Compare) and len(test.ops) > 1:
        return [(test, True)] if outcome else None
    if isinstance(test, (ast.Compare, ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
        return [(test, outcome)]
    return None


def _statement_at(filename: str, position: _Position) -> ast.Assert | ast.If | None:
    line = position[0]
    if line is None:
        return None
    found: ast.Assert | ast.If | None = None
    for node in ast.walk(_tree("".join(linecache.getlines(filename)))):
        if not isinstance(node, (ast.Assert, ast.If)):
            continue
        if node.lineno <= line <= (node.test.end_lineno or node.lineno) and (
            found is None or node.lineno >= found.lineno
        ):
            found = node
    return found


@lru_cache(maxsize=32)
def _tree(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def _range(node: ast.expr) -> _Position:
    return (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
