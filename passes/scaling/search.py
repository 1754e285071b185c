"""Scales for values of a graph, found one value after the other on what the graph computes in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, fx

from fxq.ir.rewriter import Rewriter
from fxq.passes.correcting.batch_run import Args
from fxq.passes.correcting.tally import Tally, from_to, mean_db, no_better
from fxq.passes.scaling.channel_scaling import factors_of
from fxq.passes.scaling.trial import Scaling, Trial
from fxq.quant.overrides import Choices

Visits = Iterable[tuple[fx.Node, list[Args]]]


def search_scales(
    rw: Rewriter,
    rule: str,
    scalings: Mapping[fx.Node, Scaling],
    visits: Visits,
    choices: Choices,
    candidates: Callable[[Scaling, Trial], Sequence[Tensor]],
) -> str:
    """Apply to each value the best of its candidates, refuse those that gain nothing; return what that did.

    Args:
        scalings: what may be scaled, by the node of the value.
        visits: the values' nodes with what their producers get, as ``arguments_at`` gives them.
        choices: how the recipe quantises weights and values.
        candidates: the scales to try.
    """
    tally = Tally()
    found: dict[fx.Node, tuple[Tensor, str]] = {}
    inputs: dict[fx.Node, Tensor] = {}
    for node, args in visits:
        scaling = scalings[node]
        trial = Trial(scaling, args, rw, choices)
        best = trial.best(candidates(scaling, trial), inputs.get(node))
        before, after = mean_db(best.before), mean_db(best.after)
        if best.scale is None:
            rw.refuse(rule, node, no_better(before, after))
            continue
        tally.add(before, after)
        found[node] = best.scale, from_to(before, after)
        inputs |= {r.call.node: factors_of(r, best.scale) for r in scaling.readers.layers}
    for node, (scale, detail) in found.items():
        scalings[node].apply(scale, rw, rule, detail)
    return str(tally)
