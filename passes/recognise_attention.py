"""Attention that a model writes out by hand, replaced by the operation that computes it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx

from fxq.ir.identify import read_attribute
from fxq.ir.matcher import Rule, RuleTable
from fxq.ir.ops import is_finite_number
from fxq.ir.pattern import AnyOf, Anything, Match, Pattern, call
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.manager.base import Numerics, RulePass

_QUERY, _VALUE = Anything("query", numbers=False), Anything("value", numbers=False)
_KEY = call(("transpose", "permute"), Anything("key", numbers=False), name="turned")


@dataclass(frozen=True)
class RecogniseAttention(RulePass):
    """Replace scaled dot-product attention written out by hand.

        (q @ k.transpose(-2, -1) * scale + bias).softmax(-1) @ v  ->  scaled_dot_product_attention(q, k, v, bias, scale)

    The scale may also divide, stand at the query, or be missing; the bias, where there is one, is a constant of the
    model, as relative positions are: under a mask that comes in, a query without any key gives not a number here and
    zeros there. One operation takes its sums in another order: the result is close, not equal.
    """

    name: ClassVar[str] = "recognise_attention"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    def rules(self) -> RuleTable:
        scale = Anything("scale")
        plain = call("matmul", _QUERY, _KEY)
        scaled: tuple[Pattern, ...] = (
            call("mul", plain, scale),
            call("div", plain, Anything("divisor")),
            call("matmul", call("mul", _QUERY, scale), _KEY),
            call("matmul", call("div", _QUERY, Anything("divisor")), _KEY),
            plain,
        )
        scores = AnyOf((*(call("add", s, Anything("bias", numbers=False)) for s in scaled), *scaled))
        weights = call("softmax", scores, name="softmax")
        return RuleTable([Rule("attention", call("matmul", weights, _VALUE), _replace)])


def _replace(match: Match, rw: Rewriter) -> str | None:
    if not _is_turned(match) or not _is_last(match) or any(c.attrs.get("alpha", 1) != 1 for c in match.calls):
        return ""  # another function
    scale = _scale(match)
    if scale is None:
        return "its scale is no number that is written down"
    bias = match.bound.get("bias")
    reason = None if bias is None else _why_no_bias(rw, bias)
    if reason is not None:
        return reason
    writer = next((c.node for c in match.calls if c.inplace), None)
    if writer is not None:
        return f"`{writer.name}` writes in place"
    anchor, *inner = match.nodes
    inputs = (match.value("query"), match.value("key"), match.value("value"))
    settings = {"scale": scale} | ({} if bias is None else {"attn_mask": bias})
    made = rw.call_function(F.scaled_dot_product_attention, inputs, settings, after=anchor, like=anchor)
    rw.replace(anchor, made)
    rw.erase_unused(*inner)
    return None


def _is_turned(match: Match) -> bool:
    """Whether the keys' last two dimensions are exchanged, and no others."""
    found = match.call("turned")
    count = _rank(found.node)
    if found.kind == "permute":
        dims = found.attrs["dims"]
        return count > 1 and [d % count for d in dims] == [*range(count - 2), count - 1, count - 2]
    dims = {found.attrs["dim0"], found.attrs["dim1"]}
    return dims == {-1, -2} or (count > 1 and {d % count for d in dims} == {count - 1, count - 2})


def _is_last(match: Match) -> bool:
    """Whether the softmax is taken over the last dimension, in the type of the scores."""
    found = match.call("softmax")
    dim = found.attrs["dim"]
    return found.attrs.get("dtype") is None and dim in (-1, _rank(found.node) - 1)


def _scale(match: Match) -> Any:
    """Return the factor of the scores: a number, or a node that gives one; None where it is no such thing."""
    if "divisor" in match.bound:
        divisor = match.bound["divisor"]
        return 1.0 / divisor if is_finite_number(divisor) and divisor != 0 else None
    scale = match.bound.get("scale", 1.0)
    return float(scale) if is_finite_number(scale) else None


def _why_no_bias(rw: Rewriter, bias: Any) -> str | None:
    found = read_attribute(rw.gm, bias) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
    if not isinstance(found, torch.Tensor):
        return "its mask is computed: a query without keys would give zeros, not nan"
    if found.dtype != torch.float32 or found.dim() < 2 or not bool(found.isfinite().all()):
        return "its mask is not float32, finite and of two dimensions or more"
    return None


def _rank(node: fx.Node) -> int:
    """Return the number of dimensions of a node's tensor, 0 where no run has shown it."""
    spec = tensor_spec(node)
    return 0 if spec is None else len(spec.shape)
