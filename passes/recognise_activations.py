"""Activation functions that a model writes out by hand, replaced by the operation that computes them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fxq.ir.matcher import Action, Rule, RuleTable
from fxq.ir.ops import SPECS, Kind, is_finite_number
from fxq.ir.pattern import AnyOf, Anything, Match, Pattern, call
from fxq.ir.rewriter import Rewriter
from fxq.manager.base import Numerics, RulePass
from fxq.passes.graph.powers import POWERS, exponent_of

_ERF: tuple[Kind, ...] = (torch.erf, torch.special.erf, "method:erf")
_ROOT_HALF = math.sqrt(0.5)
_ROOT_TWO_BY_PI = math.sqrt(2.0 / math.pi)

#: The value that a number bound to a name must have; the same in all patterns. Models write few enough digits.
_NUMBERS = {"half": 0.5, "one": 1.0, "three": 3.0, "six": 6.0, "sixth": 1 / 6, "root half": _ROOT_HALF,
            "root two": 1 / _ROOT_HALF, "cubic": 0.044715, "root two by pi": _ROOT_TWO_BY_PI}  # fmt: skip
_TOLERANCE = 1e-5

_X = Anything("x", numbers=False)


@dataclass(frozen=True)
class RecogniseActivations(RulePass):
    """Replace activation functions written out by hand.

        x * sigmoid(x)                                                  ->  silu(x)
        relu6(x + 3) / 6                                                ->  hardsigmoid(x)
        x * hardsigmoid(x),  x * relu6(x + 3) / 6                       ->  hardswish(x)
        0.5 * x * (1 + erf(x / sqrt(2)))                                ->  gelu(x)
        0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))    ->  gelu(x, approximate="tanh")

    in any order of the factors and terms, ReLU6 also as a clamp between 0 and 6. One operation rounds differently from
    several: the result is close, not equal. GELU is that of Hendrycks and Gimpel (arXiv:1606.08415), hardswish that of
    Howard et al. (arXiv:1905.02244).
    """

    name: ClassVar[str] = "recognise_activations"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rules(self) -> RuleTable:
        erf = call(_ERF, AnyOf((_number("div", _X, "root two"), _number("mul", _X, "root half"))))
        return RuleTable([
            Rule("silu", call("mul", _X, call("sigmoid", _X)), _become("silu")),
            Rule("hardsigmoid", _sixth(_relu6()), _become("hardsigmoid")),
            Rule("hardswish", call("mul", _X, call("hardsigmoid", _X)), _become("hardswish")),
            Rule("hardswish", _sixth(call("mul", _X, _relu6())), _become("hardswish")),
            Rule("gelu", _half_of_product(_number("add", erf, "one")), _become("gelu", approximate="none")),
            Rule("gelu_tanh", _half_of_product(_number("add", _tanh(), "one")), _become("gelu", approximate="tanh")),
        ])  # fmt: skip


def _number(kind: str, value: Pattern, name: str) -> Pattern:
    """An operation of a value and the number called ``name`` in ``_NUMBERS``."""
    return call(kind, value, Anything(name))


def _relu6() -> Pattern:
    shifted = _number("add", _X, "three")
    return AnyOf((
        call("relu6", shifted),
        call("hardtanh", shifted, min_val=0, max_val=6),
        call("clamp", shifted, min=0, max=6),
    ))  # fmt: skip


def _sixth(value: Pattern) -> Pattern:
    return AnyOf((_number("div", value, "six"), _number("mul", value, "sixth")))


def _half_of_product(factor: Pattern) -> Pattern:
    """``0.5 * x * factor``, multiplied in any order."""
    return AnyOf((
        call("mul", _number("mul", _X, "half"), factor),
        call("mul", _X, _number("mul", factor, "half")),
        _number("mul", call("mul", _X, factor), "half"),
    ))  # fmt: skip


def _tanh() -> Pattern:
    cube = call(POWERS, _X, name="cube")
    return call("tanh", _number("mul", call("add", _X, _number("mul", cube, "cubic")), "root two by pi"))


def _become(kind: str, **attrs: Any) -> Action:
    """Return the action that replaces a match by one operation on ``x``."""
    return lambda match, rw: _replace(match, rw, SPECS[kind].function, attrs)


def _replace(match: Match, rw: Rewriter, function: Callable[..., Any], attrs: dict[str, Any]) -> str | None:
    if not all(_fits(name, value) for name, value in _numbers(match)):
        return ""  # other numbers: another function
    writer = next((c.node for c in match.calls if c.inplace), None)
    if writer is not None:
        return f"`{writer.name}` writes in place"
    anchor, *inner = match.nodes
    rw.replace(anchor, rw.call_function(function, (match.value("x"),), attrs, after=anchor, like=anchor))
    rw.erase_unused(*inner)
    return None


def _numbers(match: Match) -> Iterator[tuple[str, Any]]:
    """The numbers of a match, and the exponent of a power, which is no input in the table."""
    yield from ((name, value) for name, value in match.bound.items() if name in _NUMBERS)
    cube = match.get("cube")
    if cube is not None:
        yield "three", exponent_of(cube)


def _fits(name: str, value: Any) -> bool:
    return is_finite_number(value) and math.isclose(value, _NUMBERS[name], rel_tol=_TOLERANCE)
