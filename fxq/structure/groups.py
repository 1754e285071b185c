"""Groups from classes: connected blocks of identities, their units, and what must be balanced among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import networkx as nx
import numpy as np

from fxq.structure.analysis import Analysis, Slot, Value
from fxq.structure.group import Group, Indices, Mask, Member
from fxq.structure.solve import Solution
from fxq.structure.space import Space


def make_groups(an: Analysis, solution: Solution) -> tuple[tuple[Group, ...], Indices, Indices]:
    """Connected blocks are a group; its classes are its units, in the order of the leader's channels."""
    space = an.space
    group_of, unit_of = np.full(space.size, -1, dtype=np.int64), np.full(space.size, -1, dtype=np.int64)
    component = _components(space, solution)
    members = _members(an, component)
    groups: list[Group] = []
    names: dict[str, int] = {}
    seen: Mask = np.zeros(space.size, dtype=np.bool_)
    for key, dims in members.items():
        ids = np.flatnonzero(component == key)
        roots = _in_order(solution.labels, dims, ids, seen)
        order = np.argsort(roots)
        group_of[ids], unit_of[ids] = len(groups), order[np.searchsorted(roots, solution.labels[ids], sorter=order)]
        groups.append(_group(_name(dims, names), dims, roots, solution, unit_of))
    balanced = _balances(space, groups, group_of, unit_of)
    return tuple(_covered(an, balanced, group_of, unit_of)), group_of, unit_of


def _components(space: Space, solution: Solution) -> Indices:
    """For each identity, the number of the connected blocks that it lies in."""
    starts = np.array([b.start for b in space.blocks], dtype=np.int64)
    block_of = np.repeat(np.arange(len(starts)), [b.size for b in space.blocks])
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(starts)))
    ties = [tie for tie in solution.ties if len(tie[0])]
    if ties:
        first, second = (block_of[np.concatenate(ids)] for ids in zip(*ties, strict=True))
        turns = np.flatnonzero((np.diff(first) != 0) | (np.diff(second) != 0)) + 1  # runs of one pair of blocks
        starts_of_runs = np.concatenate([[0], turns])
        graph.add_edges_from(set(zip(first[starts_of_runs].tolist(), second[starts_of_runs].tolist(), strict=True)))
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
            if ids is None:
                continue
            owners = component[ids]
            if (owners == owners[0]).all():
                found.setdefault(int(owners[0]), []).append((slot, d, ids))
                continue
            for key in np.unique(owners).tolist():
                found.setdefault(key, []).append((slot, d, np.where(owners == key, ids, -1)))
    led = {key: dims for key, dims in found.items() if any(s.roles[d] != "in" for s, d, _ in dims)}
    return {key: sorted(dims, key=lambda m: m[0].roles[m[1]] != "out") for key, dims in led.items()}


def _in_order(labels: Indices, dims: list[_Dim], ids: Indices, seen: Mask) -> Indices:
    """The classes of a component, in the order in which its parameters have them; notes them in ``seen``."""
    order = []
    for mine in (*(x[x >= 0] for _, _, x in dims), ids):
        found = labels[mine]
        found = found[~seen[found]]
        if len(found):
            _, first = np.unique(found, return_index=True)
            order.append(found[np.sort(first)])
            seen[found] = True
    return np.concatenate(order)


def _name(dims: list[_Dim], names: dict[str, int]) -> str:
    slot, d, _ = dims[0]
    base = slot.path if slot.roles[d] == "out" else f"{slot.path}.{slot.name}".lstrip(".")
    names[base] = names.get(base, 0) + 1
    return base if names[base] == 1 else f"{base}#{names[base]}"


def _group(name: str, dims: list[_Dim], roots: Indices, solution: Solution, unit_of: Indices) -> Group:
    fixed: Mask = solution.stays[roots]
    reasons = {solution.reasons[int(r)] for r in roots if int(r) in solution.reasons}
    members = tuple(_member(slot, d, ids, unit_of) for slot, d, ids in dims)
    return Group(name, len(roots), members, fixed, "; ".join(sorted(reasons)))


def _member(slot: Slot, dim: int, ids: Indices, unit_of: Indices) -> Member:
    units = np.where(ids >= 0, unit_of[ids], -1)
    parts = slot.parts if dim == 1 else 1
    return Member(slot.path, slot.name, slot.kind, slot.roles[dim], dim, units, parts)


def _covered(an: Analysis, groups: list[Group], group_of: Indices, unit_of: Indices) -> list[Group]:
    """Note the sets of units of which one must stay, because a value or a parameter has no other channels."""
    sets: dict[int, set[frozenset[int]]] = {}
    for ids in _all_axes(an):
        found = _needed(ids, groups, group_of, unit_of)
        if found is not None:
            sets.setdefault(found[0], set()).add(found[1])
    return [replace(g, cover=_least(sets[i])) if i in sets else g for i, g in enumerate(groups)]


def _all_axes(an: Analysis) -> Iterator[Indices]:
    axes = [*(slot.axes for slot in an.slots.values()), *(a for v in an.values.values() for a in _tensors(v))]
    yield from {id(ids): ids for a in axes for ids in a if ids is not None}.values()


def _tensors(value: Value) -> Iterator[tuple[Indices | None, ...]]:
    if isinstance(value, tuple):
        yield value
    for part in value if isinstance(value, list) else ():
        yield from _tensors(part)


def _needed(
    ids: Indices, groups: list[Group], group_of: Indices, unit_of: Indices
) -> tuple[int, frozenset[int]] | None:
    """The group and units of which one must stay so that ``ids`` never loses all; None where it never does."""
    mine = group_of[ids]
    if not len(mine) or mine.min() < 0:
        return None
    if (mine == mine[0]).all() and len(np.bincount(unit_of[ids]).nonzero()[0]) == groups[mine[0]].size:
        return None  # as nearly always: it has every unit of one group
    owners = np.unique(mine)
    units = [np.unique(unit_of[ids[group_of[ids] == g]]) for g in owners]
    for g, mine in zip(owners, units, strict=True):
        if len(mine) == groups[g].size or groups[g].fixed[mine].any():
            return None
    return int(owners[0]), frozenset(units[0].tolist())


def _least(sets: set[frozenset[int]]) -> tuple[Indices, ...]:
    """Without the sets that hold another: where that one keeps a unit, they do."""
    ordered = sorted(sets, key=lambda s: (len(s), sorted(s)))
    least = [s for i, s in enumerate(ordered) if not any(t <= s for t in ordered[:i])]
    return tuple(np.array(sorted(s), dtype=np.int64) for s in least)


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


def _balanced(group: Group, partitions: list[Indices], reason: str | None) -> Group:
    unique = {p.tobytes(): p for p in partitions}
    if reason is None:
        return replace(group, balance=tuple(unique.values()))
    why = "; ".join(filter(None, (group.reason, reason)))
    return replace(group, fixed=np.ones_like(group.fixed), reason=why)


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
