"""Ranges of weights, equalised along all pairs of layers together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, cast

import torch
from torch import Tensor, fx, nn

from fxq.ir.rewriter import Rewriter
from fxq.nn import output_rows
from fxq.passes.correcting.batch_run import arguments_at
from fxq.passes.correcting.tally import Tally, from_to, mean_db, no_better
from fxq.passes.scaling.channel_scaling import factors_of, scale_inputs, scale_outputs, weight_ranges
from fxq.passes.scaling.trial import Scaling, Trial, is_better
from fxq.quant.corrections.balancing import balancing_scale
from fxq.quant.overrides import Choices
from fxq.tracing import ModelInputs

_ROUNDS: Final = 100
_CONVERGED: Final = 1e-3

#: Keeps the scale of a node's value within what its activation allows.
Limit = Callable[[fx.Node, Tensor], Tensor]


def scale_by_weights(
    rw: Rewriter, rule: str, scalings: Mapping[fx.Node, Scaling], batches: Sequence[ModelInputs], choices: Choices,
    limit: Limit,
) -> str:  # fmt: skip
    """Equalise the weights on both sides of each value, measure, and leave out what got worse until nothing does.

    Returns:
        What that did.
    """
    left = dict(scalings)
    while True:
        scales = equalised(rw, left, limit)
        tally, details, worse = _measured(rw, left, scales, batches, choices)
        for node, reason in worse.items():
            rw.refuse(rule, node, reason)
            del left[node]
        if not worse:
            break
    for node, scaling in left.items():
        scaling.apply(scales[node], rw, rule, details[node])
    return str(tally)


def equalised(rw: Rewriter, scalings: Mapping[fx.Node, Scaling], limit: Limit) -> dict[fx.Node, Tensor]:
    """The scale of each value with which its channels have one range in the weights on both sides.

    Pair after pair until no factor changes by more than a thousandth, or a hundred times.
    """
    involved = {n for s in scalings.values() for n in (s.node, *(r.call.node for r in s.readers.layers))}
    modules = {node: cast(nn.Module, rw.module_of(node)) for node in involved}
    scales: dict[fx.Node, Tensor] = {}
    for _ in range(_ROUNDS):
        moved = 0.0
        for node, scaling in scalings.items():
            front = output_rows(modules[node]).detach().abs().amax(1)
            layers = scaling.readers.layers
            behind = torch.stack([weight_ranges(modules[r.call.node], r.repeat) for r in layers]).amax(0)
            old = scales.get(node, torch.ones(len(front), dtype=torch.float64))
            new = limit(node, old * balancing_scale(front, behind, 0.5))
            step = new / old
            scales[node] = new
            modules[node] = scale_outputs(modules[node], 1.0 / step)
            for reader in layers:
                modules[reader.call.node] = scale_inputs(modules[reader.call.node], factors_of(reader, step))
            moved = max(moved, float(step.log().abs().max()))
        if moved < _CONVERGED:
            break
    return scales


def _measured(
    rw: Rewriter, scalings: Mapping[fx.Node, Scaling], scales: Mapping[fx.Node, Tensor],
    batches: Sequence[ModelInputs], choices: Choices,
) -> tuple[Tally, dict[fx.Node, str], dict[fx.Node, str]]:  # fmt: skip
    """Compare with and without all scales: the figures of each value that is better off, and the reasons to refuse."""
    tally, details, worse = Tally(), {}, {}
    inputs = {r.call.node: factors_of(r, scales[node]) for node, s in scalings.items() for r in s.readers.layers}
    for node, args in arguments_at(rw.gm, batches, scalings):
        trial = Trial(scalings[node], args, rw, choices)
        outputs = [scales.get(r.call.node) for r in scalings[node].readers.layers]
        without = trial.sqnr_db(torch.ones_like(scales[node]))
        with_all = trial.sqnr_db(scales[node], inputs.get(node), outputs)
        before, after = mean_db(without), mean_db(with_all)
        if is_better(without, with_all):
            tally.add(before, after)
            details[node] = from_to(before, after)
        else:
            worse[node] = no_better(before, after)
    return tally, details, worse
