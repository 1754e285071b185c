"""The table of layers of a finished graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from torch import fx

from fxq.engine.segment import Segment
from fxq.ir.identify import OpCall, get_module, identify
from fxq.ir.provenance import node_info
from fxq.ir.shapes import TensorSpec, describe_value, recorded_value
from fxq.ir.snapshot import kind_text
from fxq.manager.record import PassRecord
from fxq.manager.report import LayerRecord
from fxq.quant.qparams import QParams
from fxq.targets.suitability import picks_from_tuple

#: The rules of passes that quantise, or lower the precision.
_RULES: Final = ("int8", "dynamic", "half")


def layer_records(gm: fx.GraphModule, passes: Iterable[PassRecord]) -> list[LayerRecord]:
    """Return a record for each operation that computes tensors, with why it stayed in float where it did."""
    reasons = {r.node: r.reason for p in passes for r in p.refused if r.rule in _RULES}
    records = []
    for node, owner, engine in _nodes(gm):
        call = identify(node, owner)
        if not node.op.startswith("call_") or not _holds_tensor(recorded_value(node)) or picks_from_tuple(call):
            continue
        output = _output(call)
        records.append(
            LayerRecord(
                name=node.name,
                module_path=node_info(node).module_path,
                kind=kind_text(call.kind),
                value=describe_value(node),
                kernel=engine or _kernel(call),
                scale=None if output is None else output.scale,
                zero_point=None if output is None else output.zero_point,
                why_float=reasons.get(node.name, ""),
            )
        )
    return records


def _nodes(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.GraphModule, str]]:
    """Yield every node with the graph that it stands in: in the place of a segment, the nodes that it runs.

    The third is what runs it, where that is a segment: ``"native (segment_1)"``.
    """
    for node in gm.graph.nodes:
        module = get_module(gm, node)
        if isinstance(module, Segment):
            for inner in module.subgraph.graph.nodes:
                yield inner, module.subgraph, f"{module.describe()} ({node.name})"
        else:
            yield node, gm, ""


def _holds_tensor(seen: Any) -> bool:
    return isinstance(seen, TensorSpec) or (isinstance(seen, tuple) and any(map(_holds_tensor, seen)))


def _kernel(call: OpCall) -> str:
    describe = getattr(call.module, "describe", None)
    return str(describe()) if callable(describe) else ""


def _output(call: OpCall) -> QParams | None:
    quantisation = getattr(call.module, "quantisation", None)
    found = getattr(quantisation if quantisation is not None else call.module, "output", None)
    if isinstance(found, QParams):
        return found
    if kind_text(call.kind) == "quantize":
        return QParams(float(call.node.args[1]), int(call.node.args[2]))  # type: ignore[arg-type]
    return None
