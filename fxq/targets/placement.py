"""Which operations run in int8, and which values therefore need an observer: decided on the graph, changing nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import networkx as nx
from torch import fx

from fxq.ir.identify import Identifier, OpCall
from fxq.ir.ops import MOVES
from fxq.ir.shapes import TensorSpec, tensor_spec
from fxq.nn.activations import activation_of
from fxq.targets.int8_modules import HEADS
from fxq.targets.int8_moves import SPLITS
from fxq.targets.overwritten import overwritten
from fxq.targets.residuals import float_residuals
from fxq.targets.suitability import is_weighted, picks_from_tuple, quantised_inputs, reads_shape_only, why_float


@dataclass
class Placement:
    """The plan for one graph.

    Attributes:
        int8: the nodes that compute in int8.
        observed: each value that needs scale and zero point, with the users that read it quantised.
        groups: for each observed value, the number of its group; values of a group share scale and zero point.
        refused: each operation that stays in float, with the reason.
        float_residuals: the fused layers that should leave the addition of their residual to float.
    """

    int8: set[fx.Node] = field(default_factory=set)
    observed: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    groups: dict[fx.Node, int] = field(default_factory=dict)
    refused: dict[fx.Node, str] = field(default_factory=dict)
    float_residuals: list[fx.Node] = field(default_factory=list)


def plan_placement(gm: fx.GraphModule, kept_in_float: Mapping[fx.Node, str] | None = None) -> Placement:
    """Decide what runs in int8. ``gm`` has recorded shapes; it is not changed.

    Args:
        kept_in_float: operations that must stay in float, with the reason.
    """
    kept_in_float = kept_in_float or {}
    identify = Identifier(gm)
    calls = {n: identify(n) for n in gm.graph.nodes if n.op.startswith("call_") and not reads_shape_only(n)}
    plan = Placement()
    unstable = overwritten(calls)
    for node, call in calls.items():
        if not _computes_tensor(call, calls):
            continue
        reason = kept_in_float.get(node) or why_float(call)
        if reason is None and unstable.intersection(call.nodes):
            reason = "a value that it reads is overwritten in place later"
        if reason is None:
            plan.int8.add(node)
        else:
            plan.refused[node] = reason
    _drop_islands(plan, calls)
    plan.float_residuals = float_residuals(plan.int8, calls)
    _find_observed(plan, calls)
    _share_groups(plan, calls)
    return plan


def _computes_tensor(call: OpCall, calls: Mapping[fx.Node, OpCall]) -> bool:
    """Whether a call computes with tensors; arithmetic on sizes and picking a tensor from a tuple do not.

    Picking one part of a split counts, because the part has the codes of the whole.
    """
    if picks_from_tuple(call):
        source = calls.get(call.nodes[0])
        return source is not None and source.kind in SPLITS
    return tensor_spec(call.node) is not None or any(tensor_spec(i) is not None for i in call.nodes)


def _drop_islands(plan: Placement, calls: dict[fx.Node, OpCall]) -> None:
    """Leave in float what would only convert to int8 and back: no int8 producer, or no int8 user."""
    changed = True
    while changed:
        changed = False
        for node, call in calls.items():  # in the graph's order: a set's would give other reasons at each run
            if node not in plan.int8 or is_weighted(call):
                continue
            reason = _island_reason(node, call, plan.int8)
            if reason:
                plan.int8.discard(node)
                plan.refused[node] = reason
                changed = True


def _island_reason(node: fx.Node, call: OpCall, int8: set[fx.Node]) -> str | None:
    if call.kind == "attention":
        return None if int8.issuperset(quantised_inputs(call)) else "its queries, keys or values are float"
    users = [u for u in node.users if not reads_shape_only(u)]
    if not any(u in int8 for u in users):
        return "its result is used in float"
    if not any(i in int8 for i in call.nodes):
        return "its inputs are float"
    return None


def _find_observed(plan: Placement, calls: dict[fx.Node, OpCall]) -> None:
    """A value is observed where an int8 operation reads it; what int8 produced, every user reads quantised."""
    for node in _values(calls):
        readers = [u for u in node.users if u in plan.int8 and node in quantised_inputs(calls[u])]
        if _goes_into_activation(node, calls, plan.int8):
            continue
        if not readers or not isinstance(node.meta.get("fxq_tensor"), TensorSpec):
            continue
        everyone = node in plan.int8
        plan.observed[node] = [u for u in node.users if not reads_shape_only(u)] if everyone else readers


def _goes_into_activation(node: fx.Node, calls: dict[fx.Node, OpCall], int8: set[fx.Node]) -> bool:
    """Whether one int8 module computes ``node`` and the activation behind it: the value between stays real."""
    if node not in int8 or calls[node].kind not in HEADS or len(node.users) != 1:
        return False
    if len(calls[node].inputs) == 2 and len(calls[node].nodes) != 2:
        return False
    (user,) = node.users
    return user in int8 and activation_of(calls[user]) is not None


def _values(calls: dict[fx.Node, OpCall]) -> Iterator[fx.Node]:
    seen: dict[fx.Node, None] = {}
    for node, call in calls.items():
        seen.update(dict.fromkeys(call.nodes))
        seen[node] = None
    yield from seen


def _share_groups(plan: Placement, calls: dict[fx.Node, OpCall]) -> None:
    """Join the values on both sides of an operation that only moves values."""
    graph = nx.Graph()
    graph.add_nodes_from(plan.observed)
    for node in plan.int8:
        if calls[node].kind in MOVES:
            graph.add_edges_from((node, i) for i in calls[node].nodes)
    order = {n: i for i, n in enumerate(plan.observed)}
    components: Iterable[set[fx.Node]] = nx.connected_components(graph)
    for members in components:
        observed = [n for n in members if n in order]
        number = min((order[n] for n in observed), default=0)
        plan.groups.update(dict.fromkeys(observed, number))
