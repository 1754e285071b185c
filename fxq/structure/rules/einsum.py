"""Products that ``torch.einsum`` spells with letters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import fx

from fxq.ir.identify import OpCall
from fxq.structure.analysis import Analysis, Cost, Value
from fxq.structure.axes import tie_axis
from fxq.structure.group import Indices

_EQUATION: Final = re.compile(r"([A-Za-z]+(?:,[A-Za-z]+)?)(?:->([A-Za-z]*))?")
_Letters = Mapping[str, Indices | None]


def einsum(an: Analysis, op: OpCall) -> Value:
    """Dimensions of one letter are tied; the result has those of its letters.

    Returns:
        None, so that the operation is opaque, for more than two operands, whose cost depends on the order of the
        products, and for what the letters do not say: ellipses and lists of numbers.
    """
    equation, *operands = op.node.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    found = _EQUATION.fullmatch(equation.replace(" ", "")) if isinstance(equation, str) else None
    if found is None or not all(isinstance(o, fx.Node) for o in operands):
        return None
    terms = found[1].split(",")
    result = found[2] if found[2] is not None else "".join(sorted(c for c in set(found[1]) if found[1].count(c) == 1))
    result = result.replace(",", "")
    lengths: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, length in zip(term, an.shape(operand), strict=True):
            lengths[letter] = max(lengths.get(letter, 1), length)
    letters = _tied(an, op, terms, operands, lengths)
    contracted = {c for c in letters if c not in result and len(terms) == 2 and c in terms[0] and c in terms[1]}
    if contracted:
        _cost(an, op, [c for c in letters if c in result or c in contracted], letters, lengths)
    return tuple(letters[c] for c in result)


def _tied(an: Analysis, op: OpCall, terms: list[str], operands: list[Any], lengths: Mapping[str, int]) -> _Letters:
    """The identities of each letter; a dimension of length 1 is stretched, and ties nothing."""
    letters: dict[str, Indices | None] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, ids, length in zip(term, an.axes(operand), an.shape(operand), strict=True):
            if length == lengths[letter]:
                reason = f"{an.where(op.node)} multiplies it with a dimension that is never pruned"
                letters[letter] = tie_axis(an.space, letters[letter], ids, reason) if letter in letters else ids
    return letters


def _cost(an: Analysis, op: OpCall, product: list[str], letters: _Letters, lengths: Mapping[str, int]) -> None:
    """One multiply-add for each position of the letters that the product runs over; others are summed before it.

    Without a letter that is summed over in both operands, the product is one of elements, which no layer's count has.
    """
    constant, axes = 1, []
    for letter in product:
        ids = letters[letter]
        if ids is None:
            constant *= lengths[letter]
        else:
            axes.append(ids)
    an.costs.append(Cost(op.node.name, constant, tuple(axes)))
