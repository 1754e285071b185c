"""Which values are held in half precision: decided on the graph, changing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, fx

from fxq.ir.identify import OpCall
from fxq.ir.ops import MOVES
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import describe_value, tensor_spec
from fxq.nn import Dequantize, Quantize
from fxq.nn.qlayer import QLayer
from fxq.passes.graph.dtypes import attribute
from fxq.passes.half.table import (
    LARGEST,
    PRODUCTS,
    SMALLEST,
    hindrance,
    is_real,
    real_inputs,
)
from fxq.passes.layers.products import macs, products_per_value
from fxq.targets.overwritten import overwritten
from fxq.targets.suitability import picks_from_tuple, reads_shape_only, reads_size_only

#: With fewer products than this for each value, reading and writing takes the time, not multiplying.
_DENSE: Final = 16


@dataclass
class HalfPlan:
    """The plan for one graph.

    Attributes:
        half: the nodes whose values are in half precision.
        sources: int8 layers with real results that some node of ``half`` reads: they give half precision themselves.
        refused: each operation that stays in float, with the reason.
        macs: the multiply-adds of each product.
    """

    half: set[fx.Node] = field(default_factory=set)
    sources: set[fx.Node] = field(default_factory=set)
    refused: dict[fx.Node, str] = field(default_factory=dict)
    macs: dict[fx.Node, int] = field(default_factory=dict)


def plan_half(
    rw: Rewriter, dtype: torch.dtype, least_macs: int, kept: Mapping[fx.Node, str],
    largest: Mapping[fx.Node, float] | None = None,
) -> HalfPlan:  # fmt: skip
    """Decide what runs in half precision; shapes are recorded.

    Between int8 layers, which give bf16 as well as float32 and read both, an operation is in half precision where
    something that it reads is; elsewhere, where everything is.

    Args:
        least_macs: a product of fewer multiply-adds does not pay for converting what it reads.
        kept: operations that must stay in float, with the reason.
        largest: the largest magnitude seen at each node, where the range matters.
    """
    plan = HalfPlan()
    calls = {c.node: c for c in rw.calls() if not reads_shape_only(c.node)}
    unstable = overwritten(calls)
    sources = {n for n, c in calls.items() if gives_real(c)} if dtype is torch.bfloat16 else set()
    for node, call in calls.items():
        if gives_real(call) or isinstance(call.module, Quantize):
            continue
        if not is_real(node):
            if call.kind in PRODUCTS:
                plan.refused[node] = f"it gives {describe_value(node)}, half precision replaces float32"
            continue
        if call.kind in PRODUCTS:
            plan.macs[node] = macs(call)
        reason = kept.get(node) or hindrance(call, dtype, between_int8=bool(sources))
        if reason is None and (node in unstable or unstable.intersection(call.nodes)):
            reason = "a value that it reads or gives is overwritten in place"
        reason = reason or _range_reason(node, largest) or _constant_reason(call, rw.gm, dtype)
        reason = reason or _surroundings(call, plan, sources, least_macs)
        if reason is None:
            plan.half.add(node)
        else:
            plan.refused[node] = reason
    _trim(plan, calls, sources)
    plan.sources = {n for n in sources if _has_half_user(n, plan)}
    return plan


def gives_real(call: OpCall) -> bool:
    """Whether a call leaves int8: a layer without codes for its result, or a dequantisation."""
    if isinstance(call.module, QLayer):
        return call.module.quantisation.output is None
    return isinstance(call.module, Dequantize)


def _constant_reason(call: OpCall, gm: fx.GraphModule, dtype: torch.dtype) -> str | None:
    """Say which constant would become infinite: bf16 ends just below float32's largest number, that of many masks."""
    for node in real_inputs(call):
        value = attribute(gm, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, Tensor) and bool((torch.isinf(value.to(dtype)) & torch.isfinite(value)).any()):
            return f"its constant `{node.target}` reaches numbers that are infinite in half precision"
    return None


def _range_reason(node: fx.Node, largest: Mapping[fx.Node, float] | None) -> str | None:
    value = 1.0 if largest is None else largest.get(node, 1.0)
    if value > LARGEST or value != value:
        return f"its values reach {value:.3g} on the example inputs: out of the range of fp16"
    return f"its values stay below {value:.3g} on the example inputs: fp16 has few bits there" if (
        0.0 < value < SMALLEST) else None  # fmt: skip


def _surroundings(call: OpCall, plan: HalfPlan, sources: set[fx.Node], least_macs: int) -> str | None:
    """Return why ``call``, which is safe, stays in float among what surrounds it; products that pay never do."""
    count = plan.macs.get(call.node, 0)
    if call.kind in PRODUCTS and count >= least_macs and products_per_value(call) >= min(_DENSE, least_macs):
        return None
    reads = [n for n in real_inputs(call) if n.op != "get_attr"]
    others = [n for n in reads if n not in plan.half and n not in sources]
    if len(others) < len(reads) and (not others or (sources and _narrows(call, others))):
        return None
    if call.kind in PRODUCTS:
        return f"its {count:,} multiply-adds do not pay for conversions"
    return "what it reads is in float"


def _narrows(call: OpCall, others: list[fx.Node]) -> bool:
    """Whether ``call`` is worth narrowing ``others``, which are in float, for what it reads from int8 layers.

    Not what an operation repeats: that may be a mask of float32's lowest number, which bf16 does not have.
    """
    if call.kind in PRODUCTS:
        return False
    shape = _shape(call.node)
    return call.kind in MOVES or all(_shape(n) == shape for n in others)


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    spec = tensor_spec(node)
    return None if spec is None else tuple(spec.shape)


def _trim(plan: HalfPlan, calls: Mapping[fx.Node, OpCall], sources: set[fx.Node]) -> None:
    """Give back to float what has no use in half precision, where that takes fewer conversions.

    The parts of a value (of a split, of queries, keys and values in one tensor) go together with what they are taken
    from: one conversion in front of it serves them all.
    """

    def ends_here(node: fx.Node) -> bool:
        return calls[node].kind not in PRODUCTS and not any(
            u in plan.half or (u in calls and isinstance(calls[u].module, Quantize)) for u in node.users
        )

    for node in reversed(list(calls)):
        if node not in plan.half or calls[node].kind in PRODUCTS or picks_from_tuple(calls[node]):
            continue
        parts = [u for u in node.users if u in plan.half]
        alone = all(set(u.all_input_nodes) == {node} for u in parts)
        if not alone or not all(map(ends_here, parts)) or (not parts and not ends_here(node)):
            continue
        unit = {node, *parts}
        around = [*unit, *real_inputs(calls[node])]
        before = _conversions(around, plan, calls, sources)
        plan.half -= unit
        after = _conversions(around, plan, calls, sources)
        if after < before or (sources and after == before):  # of two that cost the same, the exact one
            plan.refused |= dict.fromkeys(unit, "its result is used in float")
        else:
            plan.half |= unit


def _conversions(
    values: list[fx.Node], plan: HalfPlan, calls: Mapping[fx.Node, OpCall], sources: set[fx.Node]
) -> int:  # fmt: skip
    """How many of ``values`` must be there in both precisions."""
    count = 0
    for node in values:
        if node in sources:  # in the one or the other as it is asked for
            count += _has_half_user(node, plan) and _has_float_user(node, plan, calls)
        elif node in plan.half:
            count += _has_float_user(node, plan, calls)
        elif node.op != "get_attr":
            count += _has_half_user(node, plan)
    return count


def _has_half_user(node: fx.Node, plan: HalfPlan) -> bool:
    return any(u in plan.half for u in node.users)


def _has_float_user(node: fx.Node, plan: HalfPlan, calls: Mapping[fx.Node, OpCall]) -> bool:
    return any(u not in plan.half and not _takes_both(u, calls) for u in node.users)


def _takes_both(user: fx.Node, calls: Mapping[fx.Node, OpCall]) -> bool:
    """Whether ``user`` reads any precision: for the size alone, or to quantise it."""
    return reads_size_only(user) or (user in calls and isinstance(calls[user].module, Quantize))
