"""Walk a graph, state what each operation says about channels, and form groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor, fx, nn

from fxq.analysis import profile
from fxq.ir.identify import Identifier
from fxq.ir.shapes import TensorSpec, is_recorded, recorded_value, run_recorded
from fxq.structure.analysis import Analysis, Cost, Slot, Value, plain_value, protect_value
from fxq.structure.group import Group, Indices, Mask, Member
from fxq.structure.rules.table import kind_name, rule_of
from fxq.structure.solve import Solution, solve
from fxq.structure.space import Space
from fxq.structure.structure import Structure
from fxq.tracing import ModelInputs, clone_inputs


def analyse(gm: fx.GraphModule, inputs: ModelInputs) -> Structure:
    """Find out which channels of ``gm`` can only be removed together.

    Args:
        gm: a graph at stage CANONICAL, in evaluation mode; where its shapes are not recorded yet, ``inputs`` run once.
        inputs: example inputs. The structure holds for every batch size.

    Raises:
        GraphError: the graph does not run on ``inputs``.
    """
    if not is_recorded(gm):
        given = clone_inputs(inputs)
        run_recorded(gm, given.args, given.kwargs)
    an = Analysis(gm)
    identify = Identifier(gm)
    for node in gm.graph.nodes:
        an.values[node] = _value(an, node, identify)
    solution = solve(an.space)
    groups, group_of, unit_of = _groups(an, solution)
    slots = tuple(an.slots.values())
    costs = (*an.costs, *_opaque_costs(gm, an, inputs))
    return Structure(gm, groups, tuple(an.opaque), an.values, slots, group_of, unit_of, costs, _others(gm, an))


def _value(an: Analysis, node: fx.Node, identify: Identifier) -> Value:
    if node.op == "placeholder":
        return plain_value(recorded_value(node))
    if node.op == "get_attr":
        return _attribute(an, node)
    if node.op == "output":
        for source in node.all_input_nodes:
            protect_value(an.space, an.values[source], "it is an output of the model")
        return None
    if not _holds_tensor(recorded_value(node)):
        return None  # a size, or arithmetic with sizes
    op = identify(node)
    rule = rule_of(op)
    return an.describe_as_opaque(node, kind_name(op.kind)) if rule is None else rule(an, op)


def _attribute(an: Analysis, node: fx.Node) -> Value:
    """A parameter or buffer that the graph reads by itself: each dimension is new."""
    *parents, name = str(node.target).split(".")
    owner = an.gm.get_submodule(".".join(parents))
    tensor = getattr(owner, name)
    if not isinstance(tensor, Tensor) or tensor.dim() == 0:
        return plain_value(recorded_value(node))
    known = an.slots.get(id(tensor))
    if known is not None and known.parts == 1:
        return known.axes
    path, where = ".".join(parents), str(node.target)
    axes = tuple(an.space.fresh(where, n) if n > 1 else None for n in tensor.shape)
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    an.slot(owner, path, name, kind, axes, ("scale",) * tensor.dim())
    return an.slots[id(tensor)].axes


def _opaque_costs(gm: fx.GraphModule, an: Analysis, inputs: ModelInputs) -> list[Cost]:
    """The multiply-adds of operations that no rule describes: counted in a run, and the same after any pruning."""
    if not an.opaque:
        return []
    names = {o.node for o in an.opaque}
    return [Cost(x.name, x.macs, ()) for x in profile(gm, inputs).layers if x.name in names and x.macs]


def _holds_tensor(spec: Any) -> bool:
    return isinstance(spec, TensorSpec) or (isinstance(spec, tuple) and any(map(_holds_tensor, spec)))


def _others(gm: fx.GraphModule, an: Analysis) -> int:
    return sum(p.numel() for p in gm.parameters() if id(p) not in an.slots)


# -- groups --------------------------------------------------------------------------------------------------------


def _groups(an: Analysis, solution: Solution) -> tuple[tuple[Group, ...], Indices, Indices]:
    """Connected blocks are a group; its classes are its units, in the order of the leader's channels."""
    space = an.space
    group_of, unit_of = np.full(space.size, -1, dtype=np.int64), np.full(space.size, -1, dtype=np.int64)
    component = _components(space, solution)
    members = _members(an, component)
    groups: list[Group] = []
    names: dict[str, int] = {}
    for key, dims in members.items():
        ids = np.flatnonzero(component == key)
        roots = _in_order(solution.labels, dims, ids)
        position = {int(r): i for i, r in enumerate(roots)}
        units = np.fromiter((position[int(r)] for r in solution.labels[ids]), np.int64, len(ids))
        group_of[ids], unit_of[ids] = len(groups), units
        groups.append(_group(_name(dims, names), dims, roots, solution, unit_of))
    balanced = _balances(space, groups, group_of, unit_of)
    return tuple(balanced), group_of, unit_of


def _components(space: Space, solution: Solution) -> Indices:
    """For each identity, the number of the connected blocks that it lies in."""
    starts = np.array([b.start for b in space.blocks], dtype=np.int64)
    block_of = np.repeat(np.arange(len(starts)), [b.size for b in space.blocks])
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(starts)))
    for a, b in solution.ties:
        pairs = np.unique(np.stack([block_of[a], block_of[b]]), axis=1)
        graph.add_edges_from(map(tuple, pairs.T.tolist()))
    number = np.zeros(len(starts), dtype=np.int64)
    for i, blocks in enumerate(nx.connected_components(graph)):
        number[list(blocks)] = i
    return number[block_of]


_Dim = tuple[Slot, int, Indices]


def _members(an: Analysis, component: Indices) -> dict[int, list[_Dim]]:
    """For each component that parameters run along: which of their dimensions, those that make channels first."""
    found: dict[int, list[_Dim]] = {}
    for slot in an.slots.values():
        for d, ids in enumerate(slot.axes):
            if ids is not None:
                for key in np.unique(component[ids]).tolist():
                    found.setdefault(key, []).append((slot, d, np.where(component[ids] == key, ids, -1)))
    led = {key: dims for key, dims in found.items() if any(s.roles[d] != "in" for s, d, _ in dims)}
    return {key: sorted(dims, key=lambda m: m[0].roles[m[1]] != "out") for key, dims in led.items()}


def _in_order(labels: Indices, dims: list[_Dim], ids: Indices) -> Indices:
    """The classes of a component, in the order in which its parameters have them."""
    seen = np.concatenate([*(labels[x[x >= 0]] for _, _, x in dims), labels[ids]])
    _, first = np.unique(seen, return_index=True)
    return seen[np.sort(first)]


def _name(dims: list[_Dim], names: dict[str, int]) -> str:
    slot, d, _ = dims[0]
    base = slot.path if slot.roles[d] == "out" else f"{slot.path}.{slot.name}".lstrip(".")
    names[base] = names.get(base, 0) + 1
    return base if names[base] == 1 else f"{base}#{names[base]}"


def _group(name: str, dims: list[_Dim], roots: Indices, solution: Solution, unit_of: Indices) -> Group:
    fixed: Mask = solution.stays[roots]
    reasons = {solution.reasons[int(r)] for r in roots if int(r) in solution.reasons}
    members = tuple(_member(slot, d, ids, unit_of) for slot, d, ids in dims)
    return Group(name, len(roots), members, fixed, "; ".join(sorted(reasons)), cover=_cover(members, len(roots)))


def _cover(members: tuple[Member, ...], size: int) -> tuple[Indices, ...]:
    """The sets of units of which each member needs one; a set that holds another of them says nothing more."""
    sets = {tuple(np.unique(m.units[m.units >= 0]).tolist()) for m in members if (m.units >= 0).all()}
    proper = sorted((set(s) for s in sets if len(s) < size), key=len)
    least = [s for i, s in enumerate(proper) if not any(t <= s for t in proper[:i])]
    return tuple(np.array(sorted(s), dtype=np.int64) for s in least)


def _member(slot: Slot, dim: int, ids: Indices, unit_of: Indices) -> Member:
    units = np.where(ids >= 0, unit_of[ids], -1)
    parts = slot.parts if dim == 1 else 1
    return Member(slot.path, slot.name, slot.kind, slot.roles[dim], dim, units, parts)


def _balances(space: Space, groups: list[Group], group_of: Indices, unit_of: Indices) -> list[Group]:
    """Turn runs of positions that must keep equally many into partitions of units."""
    found: dict[int, list[Indices]] = {}
    fixed: dict[int, str] = {}
    for balance in space.balances:
        runs = balance.ids.reshape(balance.parts, -1)
        for g in np.unique(group_of[balance.ids]).tolist():
            if g < 0:
                continue
            partition = _partition(runs, g, groups[g].size, group_of, unit_of)
            if partition is None:
                fixed[g] = f"{balance.where}: its groups cannot keep equally many"
            elif len(partition):
                found.setdefault(g, []).append(partition)
    return [_balanced(group, found.get(i, []), fixed.get(i)) for i, group in enumerate(groups)]


def _partition(runs: Indices, g: int, size: int, group_of: Indices, unit_of: Indices) -> Indices | None:
    """The part of each unit; empty where every part has every unit as often; None where no partition says it."""
    counts = np.zeros((len(runs), size), dtype=np.int64)
    for part, ids in enumerate(runs):
        mine = ids[group_of[ids] == g]
        np.add.at(counts[part], unit_of[mine], 1)
    if (counts == counts[0]).all():
        return np.empty(0, dtype=np.int64)
    present = counts > 0
    used = counts.sum(0)
    lone = bool((present.sum(0) <= 1).all()) and len(np.unique(used[used > 0])) == 1
    even = len(np.unique(present.sum(1))) == 1
    if not lone or not even:
        return None
    return np.where(used > 0, present.argmax(0), -1)


def _balanced(group: Group, partitions: list[Indices], reason: str | None) -> Group:
    unique: list[Indices] = []
    for p in partitions:
        if not any(_same(p, q) for q in unique):
            unique.append(p)
    finest = max(unique, key=lambda p: len(np.unique(p)), default=None)
    if finest is not None and not all(_coarser(p, finest) for p in unique):
        reason = "two grouped layers divide its channels in ways that do not fit each other"
    fixed = np.ones_like(group.fixed) if reason else group.fixed
    why = "; ".join(filter(None, (group.reason, reason)))
    return replace(group, fixed=fixed, reason=why, balance=() if finest is None else (finest,))


def _same(p: Indices, q: Indices) -> bool:
    return bool(np.array_equal(p, q))


def _coarser(p: Indices, finest: Indices) -> bool:
    """Whether every part of ``p`` is a union of equally many parts of ``finest``."""
    pairs = np.unique(np.stack([finest, p]), axis=1)
    _, per_part = np.unique(pairs[0], return_counts=True)
    _, unions = np.unique(pairs[1], return_counts=True)
    return bool((per_part == 1).all()) and len(np.unique(unions)) == 1
