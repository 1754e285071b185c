"""Each int8 operation of a network in the engine by itself, on what the reference's modules give it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxq.engine.candidates import Candidates
from fxq.engine.segment import Segment
from fxq.ir.module import build_module
from fxq.ir.shapes import run_recorded


class Agreement(NamedTuple):
    """How far the engine's codes (or real values, in parts of their largest) lie from the reference's."""

    name: str
    most: float
    share: float


def agreements(gm: fx.GraphModule, x: Tensor) -> Iterator[Agreement]:
    """Yield the agreement of each operation of ``gm`` that the engine runs and that gives codes or real values."""
    values: dict[str, Any] = {}
    run_recorded(gm, (x,), watch=lambda node, value: values.__setitem__(node.name, value))
    candidates = Candidates(gm)
    for node in gm.graph.nodes:
        if candidates.why_not(node) is None and node.op == "call_module" and isinstance(values[node.name], Tensor):
            with torch.no_grad():
                found = _alone(gm, node)(*[values[i.name] for i in _inputs(node)])
            yield _agreement(node.name, found, values[node.name])


def _agreement(name: str, found: Tensor, wanted: Tensor) -> Agreement:
    if wanted.dtype is torch.uint8:
        difference = (found.int() - wanted.int()).abs()
        return Agreement(name, int(difference.max()), float((difference > 0).float().mean()))
    difference = (found - wanted).abs() / max(float(wanted.abs().max()), 1e-30)
    return Agreement(name, float((difference > 1e-5).sum()), float((difference > 1e-5).float().mean()))


def _inputs(node: fx.Node) -> list[fx.Node]:
    return list(dict.fromkeys(i for i in node.all_input_nodes if i.op != "get_attr"))


def _alone(gm: fx.GraphModule, node: fx.Node) -> Segment:
    graph = fx.Graph()
    copies = {}
    for source in _inputs(node):
        copies[source] = graph.placeholder(source.name)
        copies[source].meta = dict(source.meta)
    graph.output(graph.node_copy(node, lambda n: copies[n]))
    return Segment(build_module(gm, graph))
