"""Batch norms folded into the layer in front of them alone."""

from __future__ import annotations

import torch
from torch import nn

from fxq.passes.canonicalise import Canonicalise
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fold_batch_norm_behind import FoldBatchNormBehind
from fxq.tracing import trace

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()


def test_a_batch_norm_in_front_of_a_layer_stays() -> None:
    gm = Canonicalise()(trace(network(), X), X).graph_module
    everything = FoldBatchNorm()(gm, X).graph_module
    behind = FoldBatchNormBehind()(gm, X)
    norms = [n.name for n in behind.graph_module.graph.nodes if "BatchNorm" in str(_type(behind.graph_module, n))]
    assert len(norms) == 1
    assert not any("BatchNorm" in str(_type(everything, n)) for n in everything.graph.nodes)
    assert [m.rule for m in behind.record.matched] == ["fold_into_conv"]
    with torch.no_grad():
        torch.testing.assert_close(behind.graph_module(X), gm(X), rtol=1e-5, atol=1e-6)
    assert not FoldBatchNormBehind()(behind.graph_module, X).modified


def _type(gm: torch.fx.GraphModule, node: torch.fx.Node) -> type | None:
    return type(gm.get_submodule(str(node.target))) if node.op == "call_module" else None
