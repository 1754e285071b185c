"""Channels that matter least are removed, inside a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxq.errors import InputError, PassError
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.prune_channels import remove_units
from fxq.pruning.choosing import Chooser, choose, cost_share, find_criterion
from fxq.pruning.criteria import Criterion
from fxq.pruning.schedule import Goal, make_goal
from fxq.pruning.selection import Limits, check_limits
from fxq.pruning.view import GroupView, view_groups
from fxq.structure import analyse


@dataclass(frozen=True)
class Prune(Pass):
    """Choose by a criterion that looks at weights alone which channels stay, and remove the others.

    What :func:`fxq.prune` does in one step, as a pass: for pipelines that prune, share, quantise and lower in one run.
    The removal itself is that of :class:`PruneChannels`, which has the before and after.

    Args:
        ratio: the fraction of each group's units to remove, in [0, 1).
        macs, params: in place of a ratio, the fraction of the graph's multiply-adds or parameters that remains.
        criterion: a name in ``fxq.pruning.criteria.CRITERIA`` that needs no data, or a function of a group.
        protect: globs over module paths; the channels that come out of these layers stay.
        round_to: numbers of channels that stay are multiples of it.

    Raises:
        InputError: the goal is not one number in its range, or the criterion is unknown or needs data.
    """

    name: ClassVar[str] = "prune"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    resizes: ClassVar[bool] = True

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    criterion: str | Criterion | Callable[[GroupView], Tensor] = "l1"
    protect: tuple[str, ...] = ()
    round_to: int = 1

    def __post_init__(self) -> None:
        found = find_criterion(self.criterion)
        if found.needs:
            raise InputError(f"the criterion {found.name!r} needs {' and '.join(sorted(found.needs))}",
                             where="the pass `prune`", fix="call fxq.prune(model, x, data=...) first")  # fmt: skip
        assert self._goal is not None  # checks the numbers

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        if context.inputs is None:
            raise PassError("the pass `prune` needs example inputs", fix="pass example_inputs")
        structure = analyse(rw.gm, context.inputs)
        limits = Limits(self.protect, round_to=self.round_to)
        check_limits(structure.groups, limits)
        chooser = Chooser(find_criterion(self.criterion), "mean", "layer", "auto", limits)
        sizes = {g.name: g.size for g in structure.groups}
        goal = self._goal
        measure = None if goal.kind == "ratio" else cost_share(structure, structure.costs(), goal)
        choice = choose(chooser, goal, structure, view_groups(rw.gm, structure.groups), sizes, measure)
        if choice.note:
            context.note(choice.note)
        remove_units(rw, structure, choice.keep, context)

    @property
    def _goal(self) -> Goal:
        return make_goal(self.ratio, self.macs, self.params, None)
