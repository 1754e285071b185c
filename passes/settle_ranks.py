"""What follows from numbers of dimensions, and from dtypes of parameters, is computed once; checks that hold go."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx

from fxq.ir.rewriter import Rewriter
from fxq.ir.scalars import is_shape
from fxq.ir.shapes import tensor_spec
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.graph.dtypes import attribute

_METHODS: Final = ("dim", "ndimension")
_FUNCTIONS: Final[frozenset[Callable[..., Any]]] = frozenset({
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.add, operator.sub,
    operator.and_, operator.or_, operator.not_, operator.contains,
})  # fmt: skip


@dataclass(frozen=True)
class SettleRanks(Pass):
    """Exchange numbers of dimensions inside the graph for the numbers that they are, and drop the checks that hold.

    Before: ``%y = conv(%x)``, ``%n = %y.ndim``, ``%c = %n == 4``, ``_assert(%c)``, ``%z = bn(%y)``. After:
    ``%y = conv(%x)``, ``%z = bn(%y)``. Tracing decides by numbers of dimensions which way through forward is taken, so
    a graph holds for inputs of as many dimensions as the example's; and a layer that is asked for its result's number
    of dimensions, as batch norms do, could not be folded or fused. The dtype of a parameter, of which models ask for
    ``x.to(self.weight.dtype)``, is that of the float model: int8 weights are not to turn ``x`` into whole numbers.

    What asks an input of the model is left alone: it checks what the caller gives. So is a check that does not hold,
    which fails when the graph runs.
    """

    name: ClassVar[str] = "settle_ranks"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        known: dict[fx.Node, Any] = {}
        for node in rw.nodes():
            value = _rank(node) if _is_rank(node) else _dtype(node, rw) or _computed(node, known)
            if value is not None:
                known[node] = value
            elif node.target is torch._assert and node.args and known.get(node.args[0]) is True:  # type: ignore[arg-type]
                with rw.rule("settled_check", node):
                    rw.erase(node)
        for node, value in known.items():
            users = [u for u in node.users if u not in known]
            if not users:
                continue
            with rw.rule("settled_rank", node):
                for user in users:
                    given = fx.map_arg((user.args, user.kwargs), lambda n: value if n is node else n)  # noqa: B023
                    rw.update(user, args=given[0], kwargs=given[1])
        rw.erase_unused(*reversed(list(known)))


def _is_rank(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op != "call_function" or len(node.args) == 0:
        return False
    return (node.target is getattr and node.args[1] == "ndim") or (node.target is len and is_shape(node.args[0]))


def _rank(node: fx.Node) -> int | None:
    """The number of dimensions of what the graph computes; None of an input, and where no run has shown it."""
    source = node.all_input_nodes[0]
    while is_shape(source):
        if source.target is operator.getitem:  # a slice of a shape
            return None
        source = source.all_input_nodes[0]
    spec = tensor_spec(source)
    return None if spec is None or source.op == "placeholder" else len(spec.shape)


def _dtype(node: fx.Node, rw: Rewriter) -> torch.dtype | None:
    """The dtype of a parameter or buffer that ``node`` asks for."""
    if node.op != "call_function" or node.target is not getattr or node.args[1] != "dtype":
        return None
    (source,) = node.all_input_nodes
    held = attribute(rw.gm, str(source.target)) if source.op == "get_attr" else None
    return held.dtype if isinstance(held, Tensor) else None


def _computed(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """What follows from known numbers; None of anything else."""
    if node.op != "call_function" or node.target not in _FUNCTIONS or node.kwargs:
        return None
    if not node.all_input_nodes or any(n not in known for n in node.all_input_nodes):
        return None
    args: Any = fx.map_arg(node.args, known.__getitem__)
    assert not isinstance(node.target, str)
    return node.target(*args)
