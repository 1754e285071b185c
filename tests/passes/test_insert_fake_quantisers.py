"""Observers become fake quantisers, layers become layers that train."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import InputError, PassError
from fxq.ir.provenance import ensure_ids, node_info
from fxq.nn.fake_quantisers import FakeQuantise
from fxq.nn.trainable import TrainableLayer
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.fold_batch_norm_behind import FoldBatchNormBehind
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.fuse_residual import FuseResidual
from fxq.passes.insert_fake_quantisers import InsertFakeQuantisers
from fxq.passes.insert_observers import InsertObservers
from fxq.quant.recipe import Recipe
from fxq.tracing import trace

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.bn(self.conv(x))))
        return out


def observed() -> tuple[fx.GraphModule, dict[int, nn.Module]]:
    """The observed graph of a small network, and the modules of its nodes before folding."""
    torch.manual_seed(0)
    gm = Canonicalise()(trace(Small().eval(), X), X).graph_module
    ensure_ids(gm)
    originals = {node_info(n).id: gm.get_submodule(str(n.target)) for n in gm.graph.nodes if n.op == "call_module"}
    for p in (FoldBatchNormBehind(), FuseResidual(), FuseActivation(), InsertObservers()):
        gm = p(gm, X).graph_module
    return gm, originals


def test_nodes_stay_and_what_they_call_changes() -> None:
    gm, originals = observed()
    before = [type(m) for m in gm.modules()]
    out, record = InsertFakeQuantisers(originals=originals)(gm, X)
    assert [n.name for n in out.graph.nodes] == [n.name for n in gm.graph.nodes]
    assert [type(out.get_submodule(str(n.target))).__name__ for n in out.graph.nodes if n.op == "call_module"] == [
        "FakeQuantise", "TrainableLayer", "FakeQuantise", "TrainableLayer",
    ]  # fmt: skip
    assert record.notes == ("2 fake quantisers of activations, 2 of weights; 1 batch norms train folded",)
    assert [m.rule for m in record.matched].count("layer") == 2
    assert [type(m) for m in gm.modules()] == before


def test_layers_share_the_parameters_that_they_had_before_folding() -> None:
    gm, originals = observed()
    out = InsertFakeQuantisers(originals=originals)(gm, X).graph_module
    conv, norm = (next(m for m in originals.values() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.BatchNorm2d))
    layer = out.get_submodule("conv")
    assert isinstance(layer, TrainableLayer)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert layer.norm is norm
    assert str(layer.epilogue) == "relu"


def test_seen_ranges_are_where_it_starts() -> None:
    gm, originals = observed()
    observer = gm.get_submodule("observers.x")
    observer.active = True  # type: ignore[assignment]
    gm(X)
    out = InsertFakeQuantisers(originals=originals)(gm, X).graph_module
    quantiser = out.get_submodule("observers.x")
    assert isinstance(quantiser, FakeQuantise)
    assert quantiser.seen
    assert quantiser.qparams().scale == pytest.approx(observer.qparams().scale, rel=1e-6)  # type: ignore[operator]
    unseen = out.get_submodule("observers.conv")
    assert isinstance(unseen, FakeQuantise)
    assert not unseen.seen


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match=r"unknown scales 'lsq'(.|\n)*'observed'"):
        InsertFakeQuantisers(scales="lsq")
    with pytest.raises(PassError, match="takes a OBSERVED graph"):
        InsertFakeQuantisers(Recipe())(trace(Small().eval(), X), X)
