"""Which value of the reference graph each operation of a compiled graph stands for.

A compiled graph keeps the ids of the nodes that its passes kept, and each rewrite notes the ids that it was made from:
a convolution into which a batch norm and a ReLU were fused names all three, and its value is the last one's. Where the
ids of two graphs do not come from one history, the module paths are compared instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from fxq.ir.identify import identify
from fxq.ir.ops import DROPOUTS, IDENTITY_TYPES, MOVES
from fxq.ir.provenance import NodeInfo, node_info
from fxq.nn import Dequantize, QLookup, QMaxPool, QPad, Quantize, dequantize, quantize
from fxq.quant.observers import Observer

_NO_ERROR_OF_THEIR_OWN = (Observer, QMaxPool, QPad, Quantize, Dequantize, *IDENTITY_TYPES)

#: Rules that divide the channels of what the first of their nodes gives, and multiply weights of the others.
_RESCALING = ("equalise", "smooth")
FUSED_ELSEWHERE = "several operations in one, and the graph was not compiled from this reference"


@dataclass(frozen=True)
class Matching:
    """Pairs of nodes, and the nodes of the compiled graph that have no counterpart, with the reason."""

    pairs: dict[fx.Node, fx.Node]
    unmatched: dict[fx.Node, str]


def match_nodes(reference: fx.GraphModule, compiled: fx.GraphModule) -> Matching:
    """Match the operations of ``compiled``, whose nodes have ids as those of ``reference`` do.

    Left out are operations that only move values and dropouts, whose error is that of their input, and quantise,
    dequantise and observer nodes, whose error belongs to the operation before them.
    """
    layers = [n for n in compiled.graph.nodes if n.op.startswith("call_") and not _passes_through(n, compiled)]
    found = _by_id(reference, compiled, layers) if _one_history(reference, compiled) else _by_path(reference, layers)
    already = set(_rescaled(reference).values())
    rescaled = {n: f"`{by}` rescaled its channels" for n, by in _rescaled(compiled).items() if by not in already}
    pairs = {n: r for n, r in found.pairs.items() if n not in rescaled}
    return Matching(pairs, found.unmatched | {n: rescaled[n] for n in found.pairs if n in rescaled})


def _rescaled(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the values with other channel scales than the model's, up to the layers that undo them, with the pass."""
    rescaling = {n: [o for o in node_info(n).origins if o.rule in _RESCALING] for n in gm.graph.nodes}
    makers = {o.sources[0]: o.pass_name for origins in rescaling.values() for o in origins}
    found: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        others = [o for o in node_info(node).origins if o.rule not in _RESCALING]
        ids = {node_info(node).id, *(source for o in others for source in o.sources)}
        by = next((makers[i] for i in ids if i in makers), None)
        undone = any(o.sources[0] not in ids for o in rescaling[node])
        through = next((found[i] for i in node.all_input_nodes if i in found), None)
        if by is not None or (through is not None and not undone and node.op != "output"):
            found[node] = by or str(through)
    return found


def _passes_through(node: fx.Node, gm: fx.GraphModule) -> bool:
    if node.target in (quantize, dequantize):
        return True
    call = identify(node, gm)
    if isinstance(call.module, QLookup):
        return call.module.function == "identity"  # changes the scale only
    return isinstance(call.module, _NO_ERROR_OF_THEIR_OWN) or call.kind in MOVES or call.kind in DROPOUTS


def _one_history(reference: fx.GraphModule, compiled: fx.GraphModule) -> bool:
    """Whether the ids of both graphs count the same trace: then a shared id means the same module and source line."""
    known = {node_info(n).id: node_info(n) for n in reference.graph.nodes}
    if any(info.origins for info in known.values()):
        return _same_graph(reference, compiled)
    shared = [node_info(n) for n in compiled.graph.nodes if node_info(n).id in known]
    return bool(shared) and all(_place(i) == _place(known[i.id]) for i in shared)


def _same_graph(reference: fx.GraphModule, compiled: fx.GraphModule) -> bool:
    return [(n.name, node_info(n)) for n in reference.graph.nodes] == [
        (n.name, node_info(n)) for n in compiled.graph.nodes
    ]


def _place(info: NodeInfo) -> tuple[str, str | None]:
    return info.module_path, info.source


def _by_id(reference: fx.GraphModule, compiled: fx.GraphModule, layers: list[fx.Node]) -> Matching:
    values = {node_info(n).id: n for n in reference.graph.nodes}
    order = {id_: i for i, id_ in enumerate(values)}
    # Where a rewrite was taken apart again (a residual that is added in float after all), several nodes name it: what
    # it computed is what the last of them gives.
    last = {origin: n for n in layers for origin in node_info(n).origins}
    taken = {node_info(n).id for n in compiled.graph.nodes}
    pairs: dict[fx.Node, fx.Node] = {}
    unmatched: dict[fx.Node, str] = {}
    # Nodes of the trace come before nodes that a pass made from them, and late ones before early ones: where a rewrite
    # spans two operations that both stay, the later one has the better claim to the later value.
    kept = [n for n in reversed(layers) if node_info(n).id in values]
    made = [n for n in reversed(layers) if node_info(n).id not in values]
    for node in (*kept, *made):
        info = node_info(node)
        claimed = [s for origin in info.origins if last[origin] is node for s in origin.sources]
        sources = {s for s in claimed if s in values and s not in taken}
        candidates = sources | ({info.id} & set(values))
        if candidates:
            latest = max(candidates, key=order.__getitem__)
            taken.add(latest)
            pairs[node] = values[latest]
        else:
            unmatched[node] = _why(info, values)
    return Matching(pairs, unmatched)


def _why(info: NodeInfo, values: dict[int, fx.Node]) -> str:
    sources = [values[s].name for o in info.origins for s in o.sources if s in values]
    if sources:
        return f"made from `{sources[-1]}`, which another operation stands for"
    return "not made from an operation of the reference"


def _by_path(reference: fx.GraphModule, layers: list[fx.Node]) -> Matching:
    values = _last_of_path(n for n in reference.graph.nodes if n.op.startswith("call_"))
    compiled_origins = any(node_info(n).origins for n in reference.graph.nodes)
    pairs: dict[fx.Node, fx.Node] = {}
    unmatched: dict[fx.Node, str] = {}
    for path, node in _last_of_path(layers).items():
        if path not in values:
            unmatched[node] = "no operation of the reference belongs to this module"
        elif not compiled_origins and any(len(o.sources) > 1 for o in node_info(node).origins):
            unmatched[node] = FUSED_ELSEWHERE
        else:
            pairs[node] = values[path]
    for node in layers:
        if node not in pairs and node not in unmatched:
            unmatched[node] = "not the last operation of its module"
    return Matching(pairs, unmatched)


def _last_of_path(nodes: Iterable[fx.Node]) -> dict[str, fx.Node]:
    return {node_info(n).module_path: n for n in nodes}
