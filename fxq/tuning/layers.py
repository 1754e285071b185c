"""The layers that int8 computes: their names, and about how much time each costs in float and in int8."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from fxq.analysis.costs import LayerCost
from fxq.analysis.profile import profile
from fxq.errors import InputError, nearest
from fxq.ir.identify import Identifier, OpCall
from fxq.ir.ops import MOVES
from fxq.ir.provenance import node_info
from fxq.ir.snapshot import kind_text
from fxq.quant.overrides import Override
from fxq.quant.recipe import Recipe
from fxq.targets.int8_moves import SPLITS
from fxq.targets.placement import plan_placement
from fxq.tracing import ModelInputs

#: A nominal machine, so that the order of layers is the same on every one: multiply-adds and bytes in a second.
_FLOAT_MACS_PER_S = 50e9
_INT8_MACS_PER_S = 200e9
_BYTES_PER_S = 10e9
#: int8 moves a quarter of the bytes.
_INT8_BYTES = 0.25


@dataclass(frozen=True)
class Layer:
    """An operation that int8 computes, or several that go by one name.

    Attributes:
        name: its module path, or the node's name where a path does not pick it alone; ``fxq.Override`` takes both.
        nodes: the nodes of the float graph.
        kind: what computes it.
        macs: multiply-adds on the example inputs.
        penalty_s: how much longer float takes than int8, by a roofline of a nominal machine (float32 50 GMAC/s, int8
            200 GMAC/s, 10 GB/s, a quarter of the bytes in int8): the same number on every machine, in seconds.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    macs: int
    penalty_s: float


def int8_layers(float_graph: fx.GraphModule, recipe: Recipe, inputs: ModelInputs) -> tuple[Layer, ...]:
    """Return the layers that ``recipe`` quantises, in the graph's order; operations that only move values left out."""
    choices = recipe.choices(float_graph)
    kept = {n: why for n in float_graph.graph.nodes if (why := choices.why_float(n)) is not None}
    plan = plan_placement(float_graph, kept)
    identify = Identifier(float_graph)
    calls = {n: identify(n) for n in float_graph.graph.nodes if n in plan.int8}
    calls = {n: c for n, c in calls.items() if c.kind not in MOVES and c.kind not in SPLITS}
    costs = {cost.name: cost for cost in profile(float_graph, inputs).layers}
    groups: dict[str, list[OpCall]] = {}
    for node, call in calls.items():
        groups.setdefault(_name(node, calls), []).append(call)
    return tuple(_layer(name, found, costs) for name, found in groups.items())


def select(layers: Sequence[Layer], globs: Iterable[str] | None) -> tuple[Layer, ...]:
    """Return the layers that a glob picks by name; all where None is given.

    Raises:
        InputError: a glob picks none; the nearest names are suggested.
    """
    if globs is None:
        return tuple(layers)
    globs = [globs] if isinstance(globs, str) else list(globs)
    for glob in globs:
        if not any(_picks(glob, layer) for layer in layers):
            raise InputError(f"layers: {glob!r} matches no layer that int8 computes",
                             fix=nearest(str(glob), [x.name for x in layers]))  # fmt: skip
    return tuple(x for x in layers if any(_picks(glob, x) for glob in globs))


def _picks(glob: str, layer: Layer) -> bool:
    return fnmatch.fnmatchcase(layer.name, glob) or layer.name.startswith(f"{glob}.")


def _name(node: fx.Node, calls: dict[fx.Node, OpCall]) -> str:
    """The module path where it picks the calls of this node's module and no other, else the node's name."""
    path = node_info(node).module_path
    if node.op != "call_module" or not path:
        return node.name
    mine = [n for n in calls if n.op == "call_module" and n.target == node.target]
    override = Override(path, quantise=False)
    return path if [n for n, call in calls.items() if override.picks(call)] == mine else node.name


def _layer(name: str, calls: list[OpCall], costs: dict[str, LayerCost]) -> Layer:
    found = [costs[c.node.name] for c in calls if c.node.name in costs]
    macs, moved = sum(c.macs for c in found), sum(c.access_bytes for c in found)
    slow = max(macs / _FLOAT_MACS_PER_S, moved / _BYTES_PER_S)
    fast = max(macs / _INT8_MACS_PER_S, _INT8_BYTES * moved / _BYTES_PER_S)
    return Layer(name, tuple(c.node.name for c in calls), kind_text(calls[0].kind), macs, slow - fast)
