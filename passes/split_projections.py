"""One projection for queries, keys and values becomes three, each with a range of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import fx

from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import tensor_spec
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.manager.running import ensure_recorded, run_on_copy
from fxq.passes.attention.int8 import int8_attentions
from fxq.passes.attention.multi_head import linear
from fxq.passes.graph.writer import Writer
from fxq.passes.layers.queries import called_again
from fxq.quant.recipe import Recipe

_RULE = "split_projection"
_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class SplitProjections(Pass):
    """Split the projection that gives queries, keys and values of an attention that int8 will compute.

    Parts of one value share its codes, and so the widest range of the three; values, which are often the narrowest,
    would lose most. Three layers compute the same, with the same multiply-adds.

        %qkv = linear[qkv](%x) {64, 192}, %heads = reshape(%qkv, (n, t, 3, 4, 16)),
        %rows = permute(%heads, (2, 0, 3, 1, 4)), %q = %rows[0], %k = %rows[1], %v = %rows[2]
    ->
        %qkv_query = linear[qkv.query](%x) {64, 64}, %heads_query = reshape(%qkv_query, (n, t, 1, 4, 16)),
        %rows_query = permute(%heads_query, (2, 0, 3, 1, 4)), %q = %rows_query[0], and so on

    CLOSE, because sums may be taken in another order. Refused: projections that are called twice, have hooks, or whose
    result is read in another way.
    """

    name: ClassVar[str] = "split_projections"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    recipe: Recipe = field(default_factory=Recipe)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if context.inputs is None:
            return
        ensure_recorded(rw.gm, context.inputs)
        done = 0
        for call in int8_attentions(rw, self.recipe):
            found = _Packed.of(call, rw)
            if isinstance(found, str):
                rw.refuse(_RULE, call.node, found)
            elif found is not None:
                found.split(rw)
                done += 1
        if done:
            run_on_copy(rw.gm, context.inputs)


@dataclass(frozen=True)
class _Packed:
    """A projection, the reshape that cuts it, the permutation behind, if any, and the picks of the three parts."""

    layer: OpCall
    cut: OpCall
    axis: int
    permutation: OpCall | None
    picks: tuple[fx.Node, ...]  # of the first third, the second, the last
    names: tuple[str, ...]  # what each is to attention

    @classmethod
    def of(cls, call: OpCall, rw: Rewriter) -> _Packed | str | None:
        """Return what gives ``call`` its operands; None where no one value does, or why it cannot be split."""
        picks = tuple(cast(fx.Node, i) for i in call.inputs[:3])
        sources = [_picked(pick, rw) for pick in picks]
        if None in sources or {index for _, index in sources} != {0, 1, 2} or len({s for s, _ in sources}) != 1:  # type: ignore[misc]
            return None
        rows = sources[0][0]  # type: ignore[index]
        permutation = rw.identify(rows) if rows.op == "call_function" else None
        if permutation is not None and permutation.kind != "permute":
            permutation = None
        cut = rw.identify(permutation.nodes[0] if permutation is not None else rows)
        axis = permutation.attrs["dims"][0] if permutation is not None else 0
        if cut.kind not in ("reshape", "unflatten"):
            return None
        layer = rw.identify(cut.nodes[0])
        if layer.kind != "linear" or layer.module is None:
            return None
        order = sorted(range(3), key=lambda i: sources[i][1])  # type: ignore[index]
        found = cls(layer, cut, axis, permutation, tuple(picks[i] for i in order), tuple(_PARTS[i] for i in order))
        return found._hindrance(rows, rw) or found

    def split(self, rw: Rewriter) -> None:
        """Write three layers, and the same moves behind each."""
        layer, (x,) = cast(Any, self.layer.module), self.layer.nodes
        size = layer.out_features // 3
        node = self.layer.node
        with rw.rule(_RULE, node, self.cut.node, *self.picks):
            rw.open_container(node)
            to = Writer(rw, node, str(node.target))
            for i, (name, pick) in enumerate(zip(self.names, self.picks, strict=True)):
                rows = slice(i * size, (i + 1) * size)
                bias = None if layer.bias is None else layer.bias[rows]
                part = to.module(name, linear(layer.weight[rows], bias, layer.training), x)
                for move in (self.cut, self.permutation):
                    part = part if move is None else self._moved(move, part, name, rw)
                rw.update(pick, args=(part, 0), kwargs={})
            rw.erase_unused(*reversed(_between(node, rw)))

    def _moved(self, move: OpCall, part: fx.Node, name: str, rw: Rewriter) -> fx.Node:
        source, old = move.nodes[0], move.node
        kwargs = fx.map_arg(old.kwargs, lambda n: part if n is source else n)
        if move is self.cut:
            key = "shape" if move.kind == "reshape" else "sizes"
            sizes = cast(tuple[Any, ...], kwargs[key])
            kwargs = {**kwargs, key: (*sizes[: self._place], 1, *sizes[self._place + 1 :])}
        args = fx.map_arg(old.args, lambda n: part if n is source else n)
        return rw.call_function(old.target, args, kwargs, before=old, like=old, name=f"{old.name}_{name}")  # type: ignore[arg-type]

    @property
    def _place(self) -> int:
        """Where the three stands among the sizes that the reshape is given."""
        return self.axis if self.cut.kind == "reshape" else self.axis - (len(_shape(self.cut.nodes[0])) - 1)

    def _hindrance(self, rows: fx.Node, rw: Rewriter) -> str | None:
        name = f"`{self.layer.node.target}`"
        module = self.layer.module
        assert module is not None
        sizes, whole = _shape(self.cut.node), _shape(self.layer.node)
        given = self.cut.attrs["shape" if self.cut.kind == "reshape" else "sizes"]
        cut_last = self.cut.kind == "reshape" or self.cut.attrs["dim"] in (-1, len(whole) - 1)
        if not (cut_last and sizes[: self.axis] == whole[:-1] and 0 <= self._place < len(given)
                and sizes[self.axis] == given[self._place] == 3):  # fmt: skip
            return f"the parts of {name} are not cut from its features alone"
        chain = [self.layer.node, self.cut.node, *([self.permutation.node] if self.permutation is not None else [])]
        if any(len(n.users) > 1 for n in chain if n is not rows) or set(_readers(rows)) != set(self.picks):
            return f"{name} is read by more than queries, keys and values"
        if has_hooks(module):
            return f"{name} has hooks"
        return called_again(self.layer, rw)


def _picked(node: fx.Node, rw: Rewriter) -> tuple[fx.Node, int] | None:
    """The value and the number of the part of its first dimension that ``node`` picks."""
    call = rw.identify(node) if node.op == "call_function" else None
    if call is None or call.kind != "getitem" or not isinstance(call.attrs["index"], int):
        return None
    source = rw.identify(call.nodes[0])
    if source.kind == "unbind" and source.attrs["dim"] == 0:
        return source.nodes[0], call.attrs["index"]
    return (call.nodes[0], call.attrs["index"]) if tensor_spec(call.nodes[0]) is not None else None


def _readers(rows: fx.Node) -> list[fx.Node]:
    """What picks from ``rows``, or from what it is unbound to."""
    return [user for node in rows.users for user in (node.users if tensor_spec(node) is None else (node,))]


def _between(layer: fx.Node, rw: Rewriter) -> list[fx.Node]:
    """What only the layer's result is read for, in order."""
    found = {layer: None}
    for node in rw.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found[node] = None
    return list(found)


def _shape(node: fx.Node) -> tuple[int, ...]:
    spec = tensor_spec(node)
    return () if spec is None else tuple(spec.shape)
