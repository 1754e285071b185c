"""Layers corrected one after the other, each kept as it was where its output comes no nearer to float."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import fx, nn

from fxq.ir.rewriter import Rewriter
from fxq.manager.context import PassContext
from fxq.passes.correcting.originals import set_corrected
from fxq.passes.correcting.side_by_side import SideBySide, Visit
from fxq.passes.correcting.tally import Tally, from_to, no_better
from fxq.progress import track


class Correction(NamedTuple):
    """What would become of a layer.

    Attributes:
        layer: what the graph would call in its place, in float.
        form: what the layers behind it would see of that: its quantised form, or itself.
    """

    layer: nn.Module
    form: nn.Module


def correct_visited(
    rw: Rewriter, rule: str, runs: SideBySide, chosen: Collection[fx.Node], correct: Callable[[Visit], Correction],
    context: PassContext, description: str,
) -> None:  # fmt: skip
    """Correct the chosen layers in the order of execution; both runs go on with what was corrected before.

    The output of each is measured behind its activation, with and without the correction. Where it comes no nearer to
    the float network's, the layer is refused with both figures.

    Args:
        correct: makes the correction of a layer that both runs have reached.
        description: what the progress bar says.
    """
    tally, given = Tally(), runs.batches
    done: dict[fx.Node, tuple[nn.Module, str]] = {}
    for visit in track(runs.visits(), description, total=runs.layers, progress=context.progress):
        if visit.node not in chosen:
            continue
        found = correct(visit)
        before, after = visit.sqnr_db(visit.given(visit.layer)), visit.sqnr_db(visit.given(found.form))
        if after > before:
            visit.layer = found.form
            tally.add(before, after)
            done[visit.node] = found.layer, from_to(before, after)
        else:
            rw.refuse(rule, visit.node, no_better(before, after))
    for node, (layer, detail) in done.items():
        with rw.rule(rule, node, detail=detail):
            set_corrected(rw, node, layer)
    context.note(f"{tally}; {runs.batches} of {given} batches")
