"""Which operations run in int8, and which values therefore need an observer: decided on the graph, changing nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx, nn

from fxq.ir.identify import Identifier, OpCall
from fxq.ir.ops import MOVES, WEIGHTED
from fxq.ir.shapes import TensorSpec, tensor_spec
from fxq.nn import FUSED_LAYERS
from fxq.targets.int8_modules import HEADS, activation_of

POOLS = frozenset(f"{mode}_pool{n}d" for mode in ("avg", "adaptive_avg") for n in (1, 2, 3)) | {"mean"}
UNARY = frozenset({
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "elu",
    "mish", "softplus", "clamp", "neg", "abs",
})  # fmt: skip
BINARY = frozenset({"add", "mul"})
_SIZE_READS = frozenset({"size", "dim", "ndimension", "numel", "shape", "ndim", "device"})
_SHAPE_READS = _SIZE_READS | {"dtype", "is_floating_point", "element_size"}


@dataclass
class Placement:
    """The plan for one graph.

    Attributes:
        int8: the nodes that compute in int8.
        observed: each value that needs scale and zero point, with the users that read it quantised.
        groups: for each observed value, the number of its group; values of a group share scale and zero point.
        refused: each operation that stays in float, with the reason.
    """

    int8: set[fx.Node] = field(default_factory=set)
    observed: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    groups: dict[fx.Node, int] = field(default_factory=dict)
    refused: dict[fx.Node, str] = field(default_factory=dict)


def reads_shape_only(user: fx.Node) -> bool:
    """Whether a node reads no more of its input than its size, dtype or device."""
    return _reads(user, _SHAPE_READS)


def reads_size_only(user: fx.Node) -> bool:
    """Whether a node reads only what codes and values have in common: size and device."""
    return _reads(user, _SIZE_READS)


def _reads(user: fx.Node, names: frozenset[str]) -> bool:
    if user.op == "call_method":
        return str(user.target) in names
    if user.op == "call_function" and user.target is getattr and len(user.args) > 1:
        return str(user.args[1]) in names
    return False


def is_weighted(call: OpCall) -> bool:
    """Whether a call is a float layer whose weights int8 can hold: a convolution or linear layer, fused or not."""
    return call.kind in WEIGHTED or type(call.module) in FUSED_LAYERS.values()


def plan_placement(gm: fx.GraphModule) -> Placement:
    """Decide what runs in int8. ``gm`` has recorded shapes; it is not changed."""
    identify = Identifier(gm)
    calls = {n: identify(n) for n in gm.graph.nodes if n.op.startswith("call_") and not reads_shape_only(n)}
    plan = Placement()
    for node, call in calls.items():
        reason = _unsuited(call)
        if reason is None:
            plan.int8.add(node)
        elif reason:
            plan.refused[node] = reason
    _drop_islands(plan, calls)
    _find_observed(plan, calls)
    _share_groups(plan, calls)
    return plan


def _unsuited(call: OpCall) -> str | None:
    """Return why a call cannot run in int8, None where it can, ``""`` where the question makes no sense."""
    node = call.node
    spec = node.meta.get("fxq_tensor")
    values = [tensor_spec(i) for i in call.nodes]
    if not any(isinstance(s, TensorSpec) for s in [spec, *values]):
        return "" if call.kind not in MOVES else _float_reason(call)
    if is_weighted(call):
        return _float_reason(call)
    if call.kind in MOVES:
        return _move_reason(call) or _float_reason(call)
    if call.kind in POOLS or call.kind in UNARY:
        return _unary_reason(call) or _float_reason(call)
    if call.kind in BINARY:
        return _binary_reason(call) or _float_reason(call)
    if call.kind == "batch_norm":
        frozen = isinstance(call.module, nn.Module) and not call.module.training and call.module.running_var is not None
        return _float_reason(call) if frozen else "batch norm without frozen statistics"
    return f"no int8 kernel for {_name(call)}"


def _name(call: OpCall) -> str:
    if isinstance(call.kind, str):
        return call.kind.removeprefix("method:")
    return getattr(call.kind, "__name__", str(call.kind))


def _float_reason(call: OpCall) -> str | None:
    for node in call.nodes:
        spec = tensor_spec(node)
        if spec is not None and spec.dtype != torch.float32:
            return f"its input is {spec}, int8 replaces float32"
        if node.op == "get_attr":
            return f"its input `{node.target}` is a constant tensor"
    return None


def _move_reason(call: OpCall) -> str | None:
    if call.kind == "interpolate" and call.attrs["mode"] not in ("nearest", "nearest-exact"):
        return f"{call.attrs['mode']} interpolation makes new values"
    if call.kind == "getitem" and tensor_spec(call.node) is None:
        return ""
    if call.kind == "getitem" and not _is_basic_index(call.attrs["index"]):
        return "it selects by a computed index"
    return None


def _is_basic_index(index: object) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)


def _unary_reason(call: OpCall) -> str | None:
    if any(isinstance(v, fx.Node) for v in call.attrs.values()):
        return "its settings are computed in the graph"
    if call.attrs.get("dtype") not in (None, torch.float32):
        return f"it returns {call.attrs['dtype']}"
    if call.kind == "mean" and call.attrs["dim"] is None:
        return "a mean over every dimension, the batch included"
    return None


def _binary_reason(call: OpCall) -> str | None:
    if call.attrs.get("alpha", 1) != 1:
        return f"{call.kind} with alpha={call.attrs['alpha']}"
    if len(call.nodes) == 2 and any(tensor_spec(n) is None for n in call.nodes):
        return "one side is a number computed in the graph"
    return None


def _drop_islands(plan: Placement, calls: dict[fx.Node, OpCall]) -> None:
    """Leave in float what would only convert to int8 and back: no int8 producer, or no int8 user."""
    changed = True
    while changed:
        changed = False
        for node in [n for n in plan.int8 if not is_weighted(calls[n])]:
            reason = _island_reason(node, calls[node], plan.int8)
            if reason:
                plan.int8.discard(node)
                plan.refused[node] = reason
                changed = True


def _island_reason(node: fx.Node, call: OpCall, int8: set[fx.Node]) -> str | None:
    users = [u for u in node.users if not reads_shape_only(u)]
    if not any(u in int8 for u in users):
        return "its result is used in float"
    if not any(i in int8 for i in call.nodes):
        return "its inputs are float"
    return None


def _find_observed(plan: Placement, calls: dict[fx.Node, OpCall]) -> None:
    """A value is observed where an int8 operation reads it; what int8 produced, every user reads quantised."""
    for node in _values(calls):
        readers = [u for u in node.users if u in plan.int8]
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
