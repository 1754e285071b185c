"""Exchanging parts of a graph for segments, and back."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx

from fxq.engine.candidates import Candidates, is_number
from fxq.engine.partition import is_convex, parts
from fxq.engine.segment import Segment
from fxq.errors import GraphError, TargetError
from fxq.ir.identify import identify
from fxq.ir.module import build_module
from fxq.ir.ops import MOVES
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import TENSOR_KEY, keep_record, tensor_spec
from fxq.ir.writing_order import writing_order
from fxq.nn import Dequantize, QCat, QPad, Quantize

#: What computes nothing: a part of these alone costs as much to call as it saves.
_BORDERS = (Quantize, Dequantize, QCat, QPad)


def form_segments(rw: Rewriter) -> None:
    """Exchange each part that the engine can run for a segment, and say of everything else why it stays.

    Where a call writes into memory that other values see, no part reaches across it, and what shares that memory stays
    outside: a segment computes all its results at once, each in memory of its own.
    """
    former = Former(rw)
    for node, reason in former.refused():
        rw.refuse("segment", node, reason)
    for part in former.parts():
        trivial = former.why_trivial(part)
        if trivial is not None:
            rw.refuse("segment", part[0], trivial)
            continue
        segment = former.segment(part)
        if isinstance(segment, str):
            rw.refuse("segment", part[0], segment)
            continue
        with rw.rule("segment", *part):
            former.exchange(part, segment)


class Former:
    """Finds the parts of a graph that the engine can run, and exchanges them."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._candidates = Candidates(rw.gm)
        order = writing_order(rw.graph, rw.identify)
        self._outside, self._period = order.shared, order.period
        self._found = self._cut()

    def parts(self) -> list[list[fx.Node]]:
        """Return the parts, in the graph's order."""
        return self._found

    def refused(self) -> Iterator[tuple[fx.Node, str]]:
        """Yield the nodes that compute tensors and stay outside, with the reason."""
        for node in self._rw.graph.nodes:
            reason = self._why_not(node)
            if reason is not None and node.op.startswith("call_") and not is_number(node):
                yield node, reason

    def why_trivial(self, part: Sequence[fx.Node]) -> str | None:
        """Return why a part is not worth a segment, None where it is."""
        if any(self._computes(node) for node in part):
            return None
        return "a part that only moves, quantises or dequantises costs a call and saves none"

    def segment(self, part: Sequence[fx.Node]) -> Segment | str:
        """Return the segment that runs a part, or why the engine cannot plan it as a whole.

        Raises:
            GraphError: a path leaves the part and comes back.
        """
        if not is_convex(self._rw.graph, part):
            raise GraphError("a path leaves this part of the graph and comes back", where=part[0].name)
        found = Segment(_subgraph(self._rw.gm, part, *_borders(part)))
        try:
            found.prepare()
        except TargetError as error:
            return error.what
        return found

    def exchange(self, part: Sequence[fx.Node], segment: Segment) -> None:
        """Let a segment take the place of its part."""
        rw, inside = self._rw, set(part)
        inputs, outputs = _borders(part)
        anchor = _make_room(rw, part)
        call = rw.call_module(rw.free_path("segment"), segment, tuple(inputs), after=anchor, like=part[-1])
        specs = tuple(output.meta.get(TENSOR_KEY) for output in outputs)
        if len(outputs) == 1:
            keep_record(outputs[0], call)
            rw.replace_uses(outputs[0], call, only=lambda user: user not in inside)
        else:
            call.meta[TENSOR_KEY] = specs
            for i in reversed(range(len(outputs))):
                self._pick(call, i, outputs[i], inside)
        constants = _unique(i for node in part for i in node.all_input_nodes if i.op == "get_attr")
        rw.erase_unused(*reversed(part), *constants)

    # -- inside ------------------------------------------------------------------------------------------------

    def _pick(self, call: fx.Node, i: int, output: fx.Node, inside: set[fx.Node]) -> None:

        item = self._rw.call_function(operator.getitem, (call, i), after=call, like=output, name=f"{output.name}_part")
        keep_record(output, item)
        self._rw.replace_uses(output, item, only=lambda user: user not in inside)

    def _cut(self) -> list[list[fx.Node]]:
        """Cut, and cut again without what would cross a border as a number or a tuple, until nothing does."""
        while True:
            found = [part for period in sorted(set(self._period.values())) for part in self._parts_of(period)]
            crossing = dict(self._crossing(found))
            if not crossing:
                return found
            self._outside |= crossing

    def _parts_of(self, period: int) -> list[list[fx.Node]]:
        return parts(self._rw.graph, lambda n: self._period[n] == period and self._why_not(n) is None)

    def _why_not(self, node: fx.Node) -> str | None:
        return self._outside.get(node) or self._candidates.why_not(node)

    def _computes(self, node: fx.Node) -> bool:
        call = identify(node, self._rw.gm)
        if isinstance(call.module, _BORDERS) or is_number(node):
            return False
        return not (isinstance(call.kind, str) and call.kind in MOVES)

    def _crossing(self, found: Sequence[Sequence[fx.Node]]) -> Iterator[tuple[fx.Node, str]]:
        """Yield the nodes that are no tensor and that a part would give or take, and the readers of such."""
        for part in found:
            inside = set(part)
            for node in part:
                if not self._candidates.gives_tensor(node) and any(user not in inside for user in node.users):
                    yield node, "its result is no tensor of the images, and is used outside of the part"
                for source in node.all_input_nodes:
                    if source not in inside and source.op != "get_attr" and tensor_spec(source) is None:
                        yield node, f"it reads `{source.name}`, which is computed outside of the part"


def _borders(part: Sequence[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return what a part reads and what it gives."""
    inside = set(part)
    inputs = _unique(i for node in part for i in node.all_input_nodes if i not in inside and i.op != "get_attr")
    return inputs, [node for node in part if any(user not in inside for user in node.users)]


def _unique(nodes: Iterator[fx.Node]) -> list[fx.Node]:
    return list(dict.fromkeys(nodes))


def _subgraph(
    gm: fx.GraphModule, part: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    constants = _unique(i for node in part for i in node.all_input_nodes if i.op == "get_attr")
    for node in (*constants, *part):
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    values: Any = tuple(copies[node] for node in outputs)
    end = graph.output(values[0] if len(values) == 1 else values)
    end.meta = {key: value for key, value in outputs[0].meta.items() if key != TENSOR_KEY}
    end.meta[TENSOR_KEY] = tuple(node.meta.get(TENSOR_KEY) for node in outputs)
    inner = build_module(gm, graph)
    inner.delete_all_unused_submodules()
    return inner


def _make_room(rw: Rewriter, part: Sequence[fx.Node]) -> fx.Node:
    """Move what reads results of the part behind its last node, which is returned."""
    inside, last = set(part), part[-1]
    order = list(rw.graph.nodes)
    behind: list[fx.Node] = []
    late = set(inside)
    for node in order[order.index(part[0]) : order.index(last)]:
        if node not in inside and any(i in late for i in node.all_input_nodes):
            late.add(node)
            behind.append(node)
    following = last.next
    for node in behind:
        rw.move_before(node, following)
    return last


def segments(gm: fx.GraphModule) -> list[tuple[fx.Node, Segment]]:
    """Return the segments of a graph and the nodes that call them, in order."""
    found = []
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Segment):
            found.append((node, module))
    return found
