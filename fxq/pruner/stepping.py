"""One step of a prune: analyse, choose, remove, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from fxq.errors import VerifyError
from fxq.ir.snapshot import GraphSnapshot
from fxq.manager import PassContext, Report
from fxq.passes.prune_channels import PruneChannels
from fxq.pruner.latency import Stopwatch
from fxq.pruner.mending import Mending
from fxq.pruner.ownership import own
from fxq.pruning.choosing import Choice, Chooser, Measure, choose, cost_share
from fxq.pruning.criteria import Criterion
from fxq.pruning.evidence.activations import collect_activations, layers_of
from fxq.pruning.evidence.gradients import collect_gradients
from fxq.pruning.masking import Equivalence, compare_with_masked
from fxq.pruning.sampled import SampledCriterion
from fxq.pruning.schedule import Goal
from fxq.pruning.view import GroupView, view_groups
from fxq.structure import Costs, Mask, Structure
from fxq.tracing import ModelInputs

Loss = Callable[[nn.Module, Any], Tensor]
#: A graph that computes in float32 whatever its inputs are differs from float64 by no more than this.
_FLOAT32_ROUNDING = 1e-3


@dataclass(frozen=True)
class Dense:
    """The model before any pruning: what ratios and budgets count from.

    Attributes:
        structure: of the dense graph.
        costs: of the dense graph.
        stopwatch: times against it; None where no latency is asked for.
    """

    structure: Structure
    costs: Costs
    stopwatch: Stopwatch | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The number of units of each group."""
        return {g.name: g.size for g in self.structure.groups}


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at beside the weights.

    Attributes:
        data: batches, or None.
        loss: ``loss(model, batch)``; None for cross-entropy on pairs (inputs, labels).
        progress: show progress bars.
    """

    data: Any = None
    loss: Loss | None = None
    progress: bool | None = None

    def fitted(self, criterion: Criterion, structure: Structure) -> Criterion:
        """Return the criterion with what it samples itself, on the graph as it is now."""
        if not isinstance(criterion, SampledCriterion):
            return criterion
        groups = [g for g in structure.groups if g.prunable]
        return criterion.fitted(structure.gm, groups, self.data, progress=self.progress)

    def views(self, structure: Structure, criterion: Criterion, inputs: ModelInputs) -> dict[str, GroupView]:
        """Return views of all groups, with what the criterion needs collected on the graph as it is now."""
        gm, groups = structure.gm, structure.groups
        needs = frozenset() if isinstance(criterion, SampledCriterion) else criterion.needs
        gradients = collect_gradients(gm, self.data, self.loss) if "gradients" in needs else None
        activations = collect_activations(gm, self.data, layers_of(groups), inputs) if "data" in needs else None
        return view_groups(gm, groups, gradients=gradients, activations=activations)


@dataclass
class Run:
    """A prune under way.

    Attributes:
        model: the user's, with which no result may share anything.
        inputs: the example inputs.
        dense: the model before any pruning.
        report: where passes leave their records.
        check: compare each step with the masked model.
        mend: what is done to the graph after that.
        seen: a snapshot of the dense graph, where there is one.
        costs: of the graph as it is now.
        masks, checks, notes: of the steps so far.
    """

    model: nn.Module
    inputs: ModelInputs
    dense: Dense
    report: Report
    check: bool
    mend: Mending
    seen: GraphSnapshot | None = None
    costs: Costs = field(init=False)
    masks: list[dict[str, Mask]] = field(default_factory=list)
    checks: list[Equivalence] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def step(
        self, structure: Structure, chooser: Chooser, goal: Goal, evidence: Evidence
    ) -> tuple[fx.GraphModule, Choice]:
        """Choose units of ``structure`` and remove the others."""
        chooser = replace(chooser, criterion=evidence.fitted(chooser.criterion, structure))
        views = evidence.views(structure, chooser.criterion, self.inputs)
        choice = choose(chooser, goal, structure, views, self.dense.sizes, self._measure(goal, structure))
        if choice.note:
            self.notes.append(choice.note)
        return self.remove(structure, choice.keep), choice

    def remove(self, structure: Structure, keep: Mapping[str, Mask]) -> fx.GraphModule:
        """Keep those units only, check the result, and mend it.

        Raises:
            VerifyError: the pruned model does not equal the masked one.
        """
        before = self.seen if structure is self.dense.structure else None
        pruned = own(build(structure, keep, self.inputs, self.report, before), self.model)
        self.masks.append(dict(keep))
        self.costs = structure.costs(keep)
        if self.check:
            self._check(structure, keep, pruned)
        return self.mend(pruned, structure, keep)

    def _check(self, structure: Structure, keep: Mapping[str, Mask], pruned: fx.GraphModule) -> None:
        try:
            found = compare_with_masked(structure, keep, pruned, self.inputs)
        except RuntimeError as error:  # a cast to float32 in the graph, an operation without a float64 kernel
            self.notes.append(f"not checked, the graph does not run in float64: {str(error).splitlines()[0]}")
            return
        if not found.difference <= _FLOAT32_ROUNDING:
            raise VerifyError(
                "the pruned model does not equal the masked dense model", where=f"node `{found.node}`",
                why=f"the largest relative difference in float64 is {found.difference:.3g}",
                fix="protect the layers around it, and report this as a bug of fxq",
            )  # fmt: skip
        self.checks.append(found)

    def _measure(self, goal: Goal, structure: Structure) -> Measure | None:
        if goal.kind == "ratio":
            return None
        if goal.kind == "latency":
            stopwatch = self.dense.stopwatch
            assert stopwatch is not None
            return lambda keep: stopwatch(build(structure, keep, self.inputs, Report()))
        return cost_share(structure, self.dense.costs, goal)


def build(
    structure: Structure,
    keep: Mapping[str, Mask],
    inputs: ModelInputs,
    report: Report,
    before: GraphSnapshot | None = None,
) -> fx.GraphModule:
    """Return the graph of ``structure`` with those units only; ``before`` is a snapshot of it, where there is one."""
    pruned, record = PruneChannels.of(keep, structure)(structure.gm, context=PassContext(inputs), before=before)
    report.add(record)
    return pruned
