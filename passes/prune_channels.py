"""Channels are removed from every layer that makes or reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from torch import fx

from fxq.errors import PassError
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.structure import Group, Mask, Structure, analyse
from fxq.surgery.exchange import shrink_layers
from fxq.surgery.selections import erase_idle, fit_selections
from fxq.surgery.sizes import fit_sizes


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove all units of some groups but those that are kept; what goes together is found by ``fxq.structure``.

        %conv1 = conv2d[conv1](%x) {3, 64}           %conv1 = conv2d[conv1](%x) {3, 32}
        %bn1 = batch_norm[bn1](%conv1) {64}     ->   %bn1 = batch_norm[bn1](%conv1) {32}
        %conv2 = conv2d[conv2](%bn1) {64, 128}       %conv2 = conv2d[conv2](%bn1) {32, 128}

    The output is that of the dense graph with the removed channels set to zero wherever they are read, and with norms
    over channels taken over those that stay. New layers own their parameters, which train.

    Args:
        kept: for each group by name, the units that stay, in ascending order; other groups stay whole.
        structure: of the graph that the pass will be given, where it is known already.
    """

    kept: tuple[tuple[str, tuple[int, ...]], ...]
    structure: Structure | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "prune_channels"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    resizes: ClassVar[bool] = True

    @classmethod
    def of(cls, keep: Mapping[str, Mask], structure: Structure | None = None) -> Self:
        """Return the pass that keeps what these masks say, one for each group by name."""
        kept = tuple((name, tuple(np.flatnonzero(m).tolist())) for name, m in keep.items() if not m.all())
        return cls(kept, structure)

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if context.inputs is None:
            raise PassError("the pass `prune_channels` needs example inputs", fix="pass example_inputs")
        known = self.structure
        structure = analyse(rw.gm, context.inputs) if known is None else known.on_copy(rw.gm)
        keep = {name: _mask(_find(structure, name), units) for name, units in self.kept}
        remove_units(rw, structure, keep, context)


def remove_units(rw: Rewriter, structure: Structure, keep: Mapping[str, Mask], context: PassContext) -> None:
    """Remove all units of some groups of ``structure``, which is of the rewriter's graph, but those in ``keep``."""
    assert context.inputs is not None
    chosen = [g for g in structure.groups if g.name in keep and not keep[g.name].all()]
    callers = {str(n.target): n for n in reversed(list(rw.nodes())) if n.op == "call_module"}
    for group in structure.groups:
        if group.fixed.all() and group.reason:
            _refuse(rw, group, callers)
    if not chosen:
        return
    kept = structure.kept(keep)
    with rw.rule("prune", *_leaders(rw, chosen)):
        shrink_layers(rw, structure, kept)
        idle = fit_selections(rw, structure, kept)
        fit_sizes(rw, structure, kept, context.inputs)
        erase_idle(rw, idle)
    for note in (f"{g.name}: {int(keep[g.name].sum())} of {g.size} kept" for g in chosen):
        context.note(note)


def _find(structure: Structure, name: str) -> Group:
    try:
        return structure.group(name)
    except StopIteration:
        raise PassError(f"the graph has no group of channels `{name}`",
                        fix="take names from fxq.structure.analyse(gm, inputs).groups") from None  # fmt: skip


def _mask(group: Group, units: Iterable[int]) -> Mask:
    """The units that stay as a mask; every way in which they cannot be kept is an error."""
    mask = np.zeros(group.size, dtype=np.bool_)
    chosen = list(units)
    if not chosen or min(chosen) < 0 or max(chosen) >= group.size:
        raise PassError(f"`{group.name}` has the units 0 to {group.size - 1}, and at least one stays",
                        where=group.name, why=f"{len(chosen)} units were given")  # fmt: skip
    mask[chosen] = True
    if bool((group.fixed & ~mask).any()):
        raise PassError(f"some units of `{group.name}` must stay", where=group.name, why=group.reason)
    for needed in group.cover:
        if not mask[needed].any():
            raise PassError(f"a layer of `{group.name}` would keep no channel", where=group.name,
                            why=f"it has only the units {needed.tolist()[:8]}")  # fmt: skip
    for partition in group.balance:
        counts = np.bincount(partition[mask & (partition >= 0)], minlength=int(partition.max()) + 1)
        if len(np.unique(counts)) > 1 or counts[0] == 0:
            raise PassError(
                f"the {len(counts)} parts of `{group.name}` must keep equally many units", where=group.name,
                why=f"between {counts.min()} and {counts.max()} were to stay",
            )  # fmt: skip
    return mask


def _leaders(rw: Rewriter, groups: list[Group]) -> list[Any]:
    paths = {g.members[0].path for g in groups}
    found = [n for n in rw.nodes() if n.op == "call_module" and str(n.target) in paths]
    return found or [next(iter(rw.nodes()))]


def _refuse(rw: Rewriter, group: Group, callers: Mapping[str, fx.Node]) -> None:
    node = callers.get(group.members[0].path)
    if node is not None:
        rw.refuse("prune", node, group.reason)
