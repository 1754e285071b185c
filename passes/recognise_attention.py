"""Attention that a model writes out by hand, replaced by the operation that computes it at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxq.ir.identify import OpCall, read_attribute
from fxq.ir.matcher import Rule, RuleTable
from fxq.ir.ops import SPECS, is_finite_number
from fxq.ir.pattern import AnyOf, Anything, Match, Pattern, call
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import TensorSpec, tensor_spec
from fxq.manager.base import Numerics, RulePass
from fxq.passes.layers.queries import write_between

_FACTORS = ("factor", "query factor")
_DIVISORS = ("divisor", "query divisor")


@dataclass(frozen=True)
class RecogniseAttention(RulePass):
    """Replace scaled dot-product attention (Vaswani et al., arXiv:1706.03762) written out by hand.

    Before: ``softmax((q * a) @ k^T * b + bias, -1) @ v``, or divisions; each factor and the bias may be missing. After:
    ``attention(q, k, v, bias, scale=a b)``, with ``q, k, v [..., length, width]``.

    One operation sums in another order than several: the result is close, not equal.

    Refused: a bias that the graph computes, or that is minus infinity for every key of a query, where softmax gives not
    a number and the attention operation zeros; a softmax over another dimension; values in between that are used
    elsewhere.
    """

    name: ClassVar[str] = "recognise_attention"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rules(self) -> RuleTable:
        key = Anything("key", numbers=False)
        query = Anything("query", numbers=False)
        product = AnyOf((
            call("matmul", call("mul", query, Anything("query factor")), key, name="scores"),
            call("matmul", call("div", query, Anything("query divisor")), key, name="scores"),
            call("matmul", query, key, name="scores"),
        ))  # fmt: skip
        scaled = AnyOf((
            call("mul", product, Anything("factor")),
            call("div", product, Anything("divisor")),
            product,
        ))  # fmt: skip
        biased = AnyOf((call("add", scaled, Anything("bias", numbers=False)), scaled))
        mixed = call("matmul", call("softmax", biased, name="softmax"), Anything("value", numbers=False))
        return RuleTable([Rule("attention", mixed, _replace), Rule("attention", _any_softmax(), _explain)])


def _any_softmax() -> Pattern:
    return call("matmul", call("softmax", name="softmax"), Anything("value", numbers=False))


def _explain(match: Match, rw: Rewriter) -> str:
    (source,) = match.call("softmax").nodes
    return f"the softmax is not that of one scaled product of two matrices: it reads `{source.name}`"


def _replace(match: Match, rw: Rewriter) -> str | None:
    if _scale(match) is None or any(c.attrs.get("alpha", 1) != 1 for c in match.calls):
        return ""  # another of the alternatives fits, or none
    scores, softmax = match.call("scores"), match.call("softmax")
    query, key, value = (match.value(name) for name in ("query", "key", "value"))
    bias = match.bound.get("bias")
    reason = (
        _writes(match, rw)
        or _softmax_reason(softmax)
        or _shapes_reason(query, key, value)
        or (None if bias is None else _bias_reason(bias, tensor_spec(scores.node), rw))
    )
    if reason is not None:
        return reason
    anchor, *inner = match.nodes
    columns = rw.identify(key)
    if columns.kind == "transpose" and _swaps_last(columns):
        rows = columns.nodes[0]
    else:
        rows = rw.call_function(torch.transpose, (key, -2, -1), before=anchor, like=anchor, name=f"{key.name}_rows")
    attrs = SPECS["attention"].normalise({"scale": _scale(match)})
    inputs = (query, rows, value) if bias is None else (query, rows, value, bias)
    new = rw.call_function(SPECS["attention"].function, inputs, attrs, after=anchor, like=anchor)
    rw.replace(anchor, new)
    rw.erase_unused(*inner, key)
    return None


def _scale(match: Match) -> float | None:
    """The factor of the scores; None where it is not made of finite numbers that stand in the graph."""
    factors = [match.bound[name] for name in _FACTORS if name in match.bound]
    divisors = [match.bound[name] for name in _DIVISORS if name in match.bound]
    if not all(map(is_finite_number, (*factors, *divisors))) or 0 in divisors:
        return None
    return float(math.prod(factors) / math.prod(divisors))


def _writes(match: Match, rw: Rewriter) -> str | None:
    writer = next((c.node for c in match.calls if c.inplace), None)
    if writer is not None:
        return f"`{writer.name}` writes in place"
    first = min(match.nodes, key=list(rw.graph.nodes).index)
    return write_between(first, match.anchor.node, rw)


def _softmax_reason(softmax: OpCall) -> str | None:
    spec = tensor_spec(softmax.node)
    if spec is None:
        return "the shapes are not known without example inputs"
    if softmax.attrs.get("dtype") not in (None, spec.dtype):
        return f"the softmax returns {softmax.attrs['dtype']}"
    if softmax.attrs["dim"] not in (-1, len(spec.shape) - 1):
        return "the softmax is taken over another dimension than the keys"
    return None


def _shapes_reason(query: fx.Node, key: fx.Node, value: fx.Node) -> str | None:
    specs = [tensor_spec(n) for n in (query, key, value)]
    if any(s is None for s in specs):
        return "the shapes are not known without example inputs"
    q, k, v = (s.shape for s in specs if s is not None)
    if len(q) < 3 or not q[:-2] == k[:-2] == v[:-2]:
        return f"queries {list(q)}, keys {list(k)} and values {list(v)} differ in their first dimensions"
    return None


def _bias_reason(bias: fx.Node, scores: TensorSpec | None, rw: Rewriter) -> str | None:
    """Say why ``bias`` cannot be the attention operation's mask, or None."""
    if bias.op != "get_attr":
        return f"its mask `{bias.name}` is computed, and may leave a query without any key: softmax gives NaN there"
    value: Any = read_attribute(rw.gm, bias)
    if not isinstance(value, Tensor) or scores is None or value.dtype != scores.dtype:
        return f"its mask `{bias.target}` is of another dtype than the scores"
    ends = scores.shape[len(scores.shape) - value.dim() :]
    if value.dim() > len(scores.shape) or any(n not in (1, m) for n, m in zip(value.shape, ends, strict=True)):
        return f"its mask `{bias.target}` {list(value.shape)} makes the scores {list(scores.shape)} larger"
    if bool(value.isnan().any()) or bool((value == float("-inf")).all(-1).any()):
        return f"its mask `{bias.target}` leaves a query without any key: softmax gives NaN there"
    return None


def _swaps_last(columns: OpCall) -> bool:
    spec = tensor_spec(columns.node)
    if spec is None:
        return False
    rank = len(spec.shape)
    return {columns.attrs["dim0"] % rank, columns.attrs["dim1"] % rank} == {rank - 2, rank - 1}
