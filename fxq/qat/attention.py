"""The dropouts inside attention modules, which are lost where these are written out: found, to be put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from fxq.ir.identify import Identifier
from fxq.ir.provenance import ensure_ids, node_info
from fxq.nn.dropping_attention import DroppingAttention
from fxq.qat.dropout import Dropped

Path = str

_WRITTEN_OUT = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.TransformerDecoderLayer,
                nn.TransformerDecoder, nn.Transformer)  # fmt: skip
#: (dropout, the layer that it follows, whether an activation stands between).
_IN_ENCODER = (("dropout1", "self_attn.out_proj", False), ("dropout", "linear1", True), ("dropout2", "linear2", False))
_IN_DECODER = (("dropout1", "self_attn.out_proj", False), ("dropout2", "multihead_attn.out_proj", False),
               ("dropout", "linear1", True), ("dropout3", "linear2", False))  # fmt: skip


def attentions(gm: fx.GraphModule) -> dict[int, tuple[Path, nn.Module]]:
    """Return the attention modules and encoders that ``gm`` calls, with their paths, by the ids of the nodes."""
    ensure_ids(gm)
    found: dict[int, tuple[Path, nn.Module]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            if isinstance(module, _WRITTEN_OUT):
                found[node_info(node).id] = (str(node.target), module)
    return found


def written_out(gm: fx.GraphModule, before: dict[int, tuple[Path, nn.Module]], dropped: list[Dropped]) -> list[Dropped]:
    """Return the dropouts inside the modules of ``before`` that ``gm`` has written out.

    Those of ``dropped`` that stood behind such a module are told which node gives its result now.
    """
    ensure_ids(gm)
    alive = {node_info(n).id for n in gm.graph.nodes}
    nodes = {node_info(n).module_path: n for n in gm.graph.nodes if n.op == "call_module"}
    found: list[Dropped] = []
    for identity, (path, module) in before.items():
        if identity in alive:
            continue
        for one in dropped:
            if one.producer == identity and f"{path}.out_proj" in nodes:
                one.producer = node_info(nodes[f"{path}.out_proj"]).id
        for inner, layer in _parts(path, module):
            found += _inside(inner, layer, nodes, Identifier(gm))
    return [one for one in found if one.users]


def _parts(path: Path, module: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the layers and attentions in ``module``, itself included, with their paths."""
    if isinstance(module, nn.Transformer):
        yield from _parts(f"{path}.encoder", module.encoder)
        yield from _parts(f"{path}.decoder", module.decoder)
        return
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder):
        for i, layer in enumerate(module.layers):
            yield from _parts(f"{path}.layers.{i}", layer)
        return
    yield path, module
    for name in ("self_attn", "multihead_attn"):
        if not isinstance(module, nn.MultiheadAttention) and hasattr(module, name):
            yield f"{path}.{name}", getattr(module, name)


def _inside(path: Path, module: Any, nodes: dict[Path, fx.Node], identify: Identifier) -> Iterator[Dropped]:
    if isinstance(module, nn.MultiheadAttention):
        if module.dropout > 0 and f"{path}.out_proj" in nodes:
            yield from _of_weights(path, module.dropout, nodes[f"{path}.out_proj"], identify)
        return
    for name, source, activated in _IN_DECODER if isinstance(module, nn.TransformerDecoderLayer) else _IN_ENCODER:
        node = nodes.get(f"{path}.{source}")
        p = float(getattr(module, name).p)
        if node is not None and p > 0:
            yield _behind(next(iter(node.users)) if activated else node, nn.Dropout(p), f"{path}.{name}")


def _of_weights(path: Path, p: float, out_proj: fx.Node, identify: Identifier) -> Iterator[Dropped]:
    """``out_proj(flatten(permute(attention(...))))``, or with a product of written out weights for the attention."""
    node = out_proj
    for _ in range(3):
        node = node.all_input_nodes[0]
    call = identify(node)
    if call.kind == "attention":
        attrs = {k: v for k, v in call.attrs.items() if k != "dropout_p"}
        module = DroppingAttention(p, **attrs).eval()
        yield Dropped(module, f"{path}.attention", node_info(node).id, {node_info(u).id for u in node.users})
    elif call.kind == "matmul":
        yield _behind(node.all_input_nodes[0], nn.Dropout(p), f"{path}.dropout")


def _behind(node: fx.Node, module: nn.Module, path: Path) -> Dropped:
    return Dropped(module.eval(), path, node_info(node).id, {node_info(u).id for u in node.users})
