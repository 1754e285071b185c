"""Batch norms folded into the layer in front of them, and into no other."""

from __future__ import annotations

from dataclasses import dataclass

from fxq.ir.matcher import RuleTable
from fxq.passes.fold_batch_norm import FoldBatchNorm


@dataclass(frozen=True)
class FoldBatchNormBehind(FoldBatchNorm):
    """Fold batch norms as :class:`fxq.passes.FoldBatchNorm` does, except those in front of a layer.

    A batch norm that is to train folded needs the statistics of what its layer gives. One that stands in front of a
    layer has those of its own input, and goes on as an operation by itself.

        %conv = conv2d[conv](%x) {3, 8, bias=False}         %conv = conv2d[conv](%x) {3, 8}
        %bn = batch_norm[bn](%conv)                    ->   return %conv
        return %bn
    """

    def rules(self) -> RuleTable:
        return RuleTable(rule for rule in super().rules().rules if rule.name != "fold_into_next_layer")
