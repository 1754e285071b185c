"""Immutable pictures of a graph: taken before and after each pass, compared, printed, drawn and written as JSON."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from fxq.ir.identify import identify, read_attribute
from fxq.ir.provenance import Origin, ensure_ids, node_info
from fxq.ir.shapes import describe_value
from fxq.ir.stage import Stage, stage_of


@dataclass(frozen=True)
class NodeRecord:
    """One node, as it was.

    Attributes:
        id: stable through passes.
        name: the node's name in the graph.
        op: ``placeholder``, ``get_attr``, ``call_function``, ``call_method``, ``call_module`` or ``output``.
        kind: what it computes: an operation's name, or a module's class name.
        target: the module path, or the function's or method's name.
        inputs: ids of the nodes that it reads, in order.
        args: all arguments as text, nodes as ``%name``.
        details: the module's settings as text, ``""`` for a function.
        digest: changes when a parameter or buffer of the called module changes.
        value: shape and dtype of its value as text, ``""`` where no run was recorded.
        module_path, source, origins: provenance.
    """

    id: int
    name: str
    op: str
    kind: str
    target: str
    inputs: tuple[int, ...]
    args: str
    details: str
    digest: int
    value: str
    module_path: str
    source: str | None
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class GraphSnapshot:
    """Every node of a graph in order, and the graph's stage."""

    stage: Stage
    nodes: tuple[NodeRecord, ...]

    def by_id(self) -> dict[int, NodeRecord]:
        """Return the records by node id."""
        return {n.id: n for n in self.nodes}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"stage": str(self.stage), "nodes": [asdict(n) for n in self.nodes]}

    def seen_now(self, gm: fx.GraphModule) -> GraphSnapshot:
        """Return this snapshot of ``gm``, which was not edited since, with the shapes of the last recorded run."""
        values = [describe_value(n) for n in gm.graph.nodes]
        if [n.value for n in self.nodes] == values:
            return self
        nodes = tuple(replace(n, value=value) for n, value in zip(self.nodes, values, strict=True))
        return replace(self, nodes=nodes)

    def __len__(self) -> int:
        return len(self.nodes)


def take_snapshot(gm: fx.GraphModule) -> GraphSnapshot:
    """Return a snapshot of ``gm``; shapes are those of the last recorded run."""
    ensure_ids(gm)
    return GraphSnapshot(stage_of(gm), tuple(_record(n, gm) for n in gm.graph.nodes))


def _record(node: fx.Node, gm: fx.GraphModule) -> NodeRecord:
    info = node_info(node)
    call = identify(node, gm)
    kwargs = [f"{k}={argument_text(v)}" for k, v in node.kwargs.items()]
    return NodeRecord(
        id=info.id,
        name=node.name,
        op=node.op,
        kind=kind_text(call.kind),
        target=node.target if isinstance(node.target, str) else kind_text(node.target),
        inputs=tuple(node_info(n).id for n in node.all_input_nodes),
        args=", ".join([*map(argument_text, node.args), *kwargs]),
        details="" if call.module is None else call.module.extra_repr(),
        digest=_digest(node, gm, call.module),
        value=describe_value(node),
        module_path=info.module_path,
        source=info.source,
        origins=info.origins,
    )


def kind_text(kind: Any) -> str:
    """Return the short name of an operation's kind, or of a call target."""
    if isinstance(kind, str):
        return kind.removeprefix("method:")
    name = getattr(kind, "__name__", None) or str(kind)
    return name.split(".")[-1] if isinstance(kind, type) else name


def argument_text(value: Any) -> str:
    """Print an argument the same way on every machine: nodes as ``%name``, floats in full."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, tuple | list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        tail = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return left + ", ".join(map(argument_text, value)) + tail + right
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {argument_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return "slice(" + ", ".join(map(argument_text, parts)) + ")"
    if isinstance(value, int | float | str | bool | torch.dtype | torch.device) or value is None:
        return repr(value)
    return kind_text(value) if callable(value) else repr(value)


#: By the identity of a tensor: the tensor, its version and address, and the checksum of its values.
_digests: dict[int, tuple[weakref.ref[torch.Tensor], tuple[int, int], int]] = {}


def _digest(node: fx.Node, gm: fx.GraphModule, module: nn.Module | None) -> int:
    tensors: Iterable[torch.Tensor | None] = ()
    if module is not None and not module._modules:
        tensors = (*module._parameters.values(), *module._buffers.values())
    elif module is not None:
        tensors = (*module.parameters(), *module.buffers())
    elif node.op == "get_attr":
        value = read_attribute(gm, node)
        tensors = (value,) if isinstance(value, torch.Tensor) else ()
    out = 0
    for tensor in tensors:
        if tensor is not None:
            out = zlib.crc32(_tensor_digest(tensor).to_bytes(4, "little"), out)
    return out


def _tensor_digest(tensor: torch.Tensor) -> int:
    """Checksum of the values, remembered for as long as the tensor lives unchanged: weights are hashed once."""
    version = (tensor._version if not tensor.is_inference() else -1, tensor.data_ptr())
    key = id(tensor)
    found = _digests.get(key)
    if found is not None and found[0]() is tensor and found[1] == version and version[0] >= 0:
        return found[2]
    data = tensor.detach().cpu().contiguous().reshape(-1)
    value = zlib.crc32(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
    if data.numel():
        value = zlib.crc32(data.view(torch.uint8).numpy().data, value)
    _digests[key] = (weakref.ref(tensor, lambda gone: _forget(key, gone)), version, value)
    return value


def _forget(key: int, gone: weakref.ref[torch.Tensor]) -> None:
    found = _digests.get(key)
    if found is not None and found[0] is gone:  # else another tensor has the identity by now
        del _digests[key]
