"""How much each group of channels matters: prune it alone, and measure."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn

from fxq.errors import InputError
from fxq.manager import Report
from fxq.progress import track
from fxq.pruner.preparation import bind_inputs, prepare
from fxq.pruner.stepping import Evidence, Loss, build
from fxq.pruning.choosing import Chooser, choose, find_criterion
from fxq.pruning.criteria import Criterion, check_needs
from fxq.pruning.schedule import Goal
from fxq.pruning.selection import Limits, check_ratio
from fxq.pruning.view import GroupView
from fxq.structure import Mask, Structure, analyse
from fxq.tracing import ModelInputs

Evaluate = Callable[[fx.GraphModule], float | Tensor]


@dataclass(frozen=True)
class GroupSensitivity:
    """What happened when one group was pruned alone.

    Attributes:
        group: its name.
        units: how many it has.
        kept: how many it kept, at each ratio.
        values: what was measured, at each ratio.
    """

    group: str
    units: int
    kept: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured; the group that matters most comes first.

    Attributes:
        dense: what was measured on the dense model.
        ratios: the ratios that were tried, rising.
        rows: one for each group.
    """

    dense: float
    ratios: tuple[float, ...]
    rows: tuple[GroupSensitivity, ...]

    def __getitem__(self, group: str) -> GroupSensitivity:
        """Return the row of a group; KeyError where there is none."""
        for row in self.rows:
            if row.group == group:
                return row
        raise KeyError(group)

    def within(self, drop: float) -> dict[str, float]:
        """Return for each group the largest ratio up to which every one costs at most ``drop``; 0 where none does.

        ``fxq.prune(model, x, ratio=0, ratios=found.within(0.01))`` prunes by it.
        """
        out = {}
        for row in self.rows:
            bad = [i for i, value in enumerate(row.values) if not self.dense - value <= drop]
            first = bad[0] if bad else len(self.ratios)
            out[row.group] = self.ratios[first - 1] if first else 0.0
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """Return the result as a rich table."""
        table = Table(box=box.SIMPLE_HEAD, title="each group pruned alone", title_justify="left")
        table.add_column("group")
        table.add_column("units", justify="right")
        for ratio in self.ratios:
            table.add_column(f"ratio {ratio:g}", justify="right")
        table.add_row("none", "", *[f"{self.dense:.4g}"] * len(self.ratios))
        for row in self.rows:
            values = [f"{v:.4g} ({v - self.dense:+.2g})" for v in row.values]
            table.add_row(row.group, str(row.units), *values)
        return table

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Evaluate,
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    criterion: str | Criterion | Callable[[GroupView], Tensor] = "l1",
    coupling: str = "mean",
    protect: Iterable[str] = (),
    data: Any = None,
    loss: Loss | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Prune each group of channels alone, at each of some ratios, and measure the model.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.2.

    Args:
        model, example_inputs, criterion, coupling, protect, data, loss, progress: as for :func:`prune`.
        evaluate: measures a model of its own, in eval mode; higher is better.
        ratios: the fractions of units to remove, in (0, 1).

    Raises:
        InputError: as for :func:`prune`; a ratio is out of range; ``evaluate`` does not return a number.
    """
    tried = _rising(ratios)
    chooser = Chooser(find_criterion(criterion), coupling, "layer", "none", Limits(protect))
    check_needs(chooser.criterion, data=data is not None, gradients=data is not None)
    inputs = bind_inputs(model, example_inputs)
    structure = analyse(prepare(model, inputs, Report(), verify=False), inputs)
    masks = _masks(structure, chooser, tried, Evidence(data, loss, progress), inputs)
    dense = _measured(evaluate, structure.gm)
    rows = []
    for name in track(list(masks), "sensitivity", progress=progress):
        values = tuple(_measured(evaluate, build(structure, {name: m}, inputs, Report())) for m in masks[name])
        kept = tuple(int(m.sum()) for m in masks[name])
        rows.append(GroupSensitivity(name, len(masks[name][0]), kept, values))
    rows.sort(key=lambda row: sum(row.values))
    return Sensitivity(dense, tried, tuple(rows))


def _rising(ratios: Sequence[float]) -> tuple[float, ...]:
    tried = tuple(sorted({check_ratio(r, "a ratio") for r in ratios} - {0.0}))
    if not tried:
        raise InputError("there is no ratio to try", fix="give some in (0, 1), such as ratios=(0.25, 0.5, 0.75)")
    return tried


def _masks(
    structure: Structure, chooser: Chooser, ratios: tuple[float, ...], evidence: Evidence, inputs: ModelInputs
) -> Mapping[str, list[Mask]]:
    """For each group the units that stay at each ratio."""
    chooser = replace(chooser, criterion=evidence.fitted(chooser.criterion, structure))
    views = evidence.views(structure, chooser.criterion, inputs)
    sizes = {g.name: g.size for g in structure.groups}
    found = [choose(chooser, Goal("ratio", ratio), structure, views, sizes, None).keep for ratio in ratios]
    return {name: [keep[name] for keep in found] for name in found[0]}


def _measured(evaluate: Evaluate, gm: fx.GraphModule) -> float:
    value = evaluate(copy.deepcopy(gm))  # layers that are not pruned are shared with the other candidates
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"evaluate returned a {type(value).__name__}", fix="return a number, higher for better"
        ) from error
