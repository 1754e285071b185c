"""Parameters of one element become numbers that stand in the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxq.ir.identify import read_attribute
from fxq.ir.ops import is_finite_number
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.state import written_attributes
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext

_KINDS = frozenset({"add", "sub", "mul", "div"})


@dataclass(frozen=True)
class InlineNumbers(Pass):
    """Let sums and products of float32 values read the number that a parameter or buffer of one element holds.

    Before: ``%s = get_attr[scale]``, ``%y = mul(%x, %s)``. After: ``%y = mul(%x, 0.5)``. A number is computed with in
    the dtype of the other side, so the bits are the same; and an operation of one value and a number can run in int8
    by a table, be folded, or be part of a function that is recognised.

    Left alone: what the graph may write into, other dtypes, and a value that the parameter would make larger.
    Refused: a parameter that is not finite.
    """

    name: ClassVar[str] = "inline_numbers"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        written = written_attributes(rw.nodes(), rw.identify)
        for call in rw.calls():
            if call.kind not in _KINDS or call.inplace or len(call.nodes) != 2:
                continue
            for source, other in (call.nodes, call.nodes[::-1]):
                if source.op != "get_attr" or other.op == "get_attr" or str(source.target) in written:
                    continue
                _inline(call.node, source, other, rw)


def _inline(node: fx.Node, source: fx.Node, other: fx.Node, rw: Rewriter) -> None:
    value, spec = read_attribute(rw.gm, source), tensor_spec(other)
    if not isinstance(value, Tensor) or value.numel() != 1 or value.dtype != torch.float32:
        return
    if spec is None or spec.dtype != torch.float32 or value.dim() > len(spec.shape):
        return
    number = float(value.detach())
    if not is_finite_number(number):
        rw.refuse("number", node, f"`{source.target}` is {number}")
        return
    with rw.rule("number", node):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: number if n is source else n)
        rw.update(node, args=args, kwargs=kwargs)
        rw.erase_unused(source)
