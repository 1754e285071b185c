"""Estimate the statistics of batch norms anew, on the values that quantised layers give them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import fx, nn

from fxq.ir.identify import OpCall
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.correcting.batch_run import MEMORY
from fxq.passes.correcting.side_by_side import SideBySide, Visit
from fxq.passes.correcting.visiting import Correction, correct_visited
from fxq.passes.layers.queries import copy_module, opaque_layer
from fxq.passes.observed.layers import observed_layers, quantised_layers, refuse_shared, seen_batches
from fxq.pruning.reestimate import ChannelSums
from fxq.quant.recipe import Recipe


@dataclass(frozen=True)
class ReestimateBatchNorm(Pass):
    """Move the statistics of batch norms with the values that they get, once the layers in front are quantised.

    This is for batch norms that no layer could take in: behind a sum or a concatenation, or in front of an activation
    as in DenseNet and pre-activation ResNets. Let a channel have mean m and standard deviation d in the float network,
    and m_q and d_q behind quantised and corrected layers, over batch and positions. Then

        sigma' = sigma d_q / d          mu' = m_q - (m - mu) sigma' / sigma

    give the batch norm's output the mean and the deviation that it has in the float network. (Where mu and sigma are
    the statistics of the very data, those are the plain new statistics, as in the batch norm tuning of Hubara et al.,
    Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming, 2020. Where they stem
    from other data, only the change counts, and the float network is not turned into another one.)

    Before: ``%norm = batch_norm[norm](%cat)``. After: the same with other running statistics.

    Means and variances are pooled over all batches in float64, as `fxq.pruning.reestimate` does. The graph runs once,
    in float and rounded side by side, and each norm acts on all that follows. A norm whose output comes no nearer to
    the float network's keeps its statistics, and is refused with both figures.
    """

    name: ClassVar[str] = "reestimate_batch_norm"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.OBSERVED,)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    recipe: Recipe = field(default_factory=Recipe)
    memory: int = MEMORY

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        batches = seen_batches(rw.gm, context, self.name)
        norms = refuse_shared(rw, "reestimate", _norms(rw))
        if not norms:
            context.note("no batch norm is left")
            return
        choices = self.recipe.choices(rw.gm)
        forms = quantised_layers(observed_layers(rw, choices), choices)
        forms |= {node: cast(nn.Module, rw.module_of(node)) for node in norms}
        runs = SideBySide(rw.gm, batches, forms, self.memory)

        def correct(visit: Visit) -> Correction:
            norm = _moved(visit)
            return Correction(norm, norm)

        correct_visited(rw, "reestimate", runs, norms, correct, context, "estimating")


def _norms(rw: Rewriter) -> dict[fx.Node, OpCall]:
    """The batch norms that use running statistics; others are refused."""
    found = {}
    for call in rw.calls():
        if call.kind != "batch_norm":
            if isinstance(call.module, nn.modules.batchnorm._BatchNorm):
                rw.refuse("reestimate", call.node, opaque_layer(call) or "it is no plain batch norm")
        elif call.module is None or call.module.training or call.module.running_var is None:
            rw.refuse("reestimate", call.node, f"`{call.node.target}` normalises with the statistics of each batch")
        else:
            found[call.node] = call
    return found


def _moved(visit: Visit) -> nn.Module:
    """The batch norm with statistics that have moved as the values have."""
    exact, rounded = ChannelSums(), ChannelSums()
    for float_args, rounded_args in zip(visit.exact, visit.rounded, strict=True):
        exact.add(float_args[0])
        rounded.add(rounded_args[0])
    old: Any = visit.original
    new: Any = copy_module(visit.original)
    new._buffers = dict(new._buffers)
    ratio = torch.where(exact.variance > 0, rounded.variance / exact.variance.clamp_min(_TINY), 1.0)
    mean, variance = old.running_mean.double(), old.running_var.double() + old.eps
    wanted = rounded.mean - (exact.mean - mean) * ratio.sqrt()
    new.running_mean = wanted.to(old.running_mean)
    new.running_var = (variance * ratio - old.eps).clamp_min(0.0).to(old.running_var)
    return cast(nn.Module, new)


_TINY = torch.finfo(torch.float64).tiny
