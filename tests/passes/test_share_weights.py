"""Shared weights: how many values are left, which layers are left alone, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.compression.clustering import cluster
from fxq.errors import InputError
from fxq.manager import PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.share_weights import ShareWeights
from fxq.passes.sparsify import Sparsify
from fxq.tracing import trace
from tests.compression.lossy import UNFIT, Twice, reasons, run_lossy

LAYERS = ("stem", "up", "head")
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.tiny = nn.Conv2d(8, 8, 1, groups=8)
        self.head = nn.Linear(8, 60)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.tiny(torch.relu(self.up(x)))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("bits", [2, 4, 5])
def test_each_layer_takes_as_many_values_as_the_bits_allow(bits: int) -> None:
    model = net()
    result = run_lossy(ShareWeights(bits, exclude="tiny"), model, X)
    for name in LAYERS:
        old, new = model.get_parameter(f"{name}.weight").detach(), result.graph_module.get_parameter(f"{name}.weight")
        assert new.unique().numel() == 2**bits
        clusters = cluster(old, 2**bits)
        assert torch.equal(new.detach(), clusters.centroids[clusters.codes(old).long()].float())
        assert new.requires_grad
    assert [m.where for m in result.matched] == list(LAYERS)


def test_what_takes_more_room_shared_is_refused() -> None:
    result = run_lossy(ShareWeights(3), net(), X)
    assert reasons(result) == ["`tiny` has 8 weights: codes and a codebook of 8 take more"]


def test_zeros_stay_zeros() -> None:
    result = run_lossy(ShareWeights(3), net(), X, (Canonicalise(), Sparsify(0.6)))
    sparse = Sparsify(0.6)(Canonicalise()(trace(net(), X)).graph_module).graph_module
    for name in LAYERS:
        old, new = sparse.get_parameter(f"{name}.weight"), result.graph_module.get_parameter(f"{name}.weight")
        assert torch.equal(old == 0, new == 0)
        assert new.unique().numel() == 8


def test_zeros_are_weights_like_others_where_asked() -> None:
    result = run_lossy(ShareWeights(2, layers="head", keep_zeros=False), net(), X, (Canonicalise(), Sparsify(0.6)))
    assert result.graph_module.get_parameter("head.weight").unique().numel() == 4


def test_the_note_counts_the_bits() -> None:
    result = run_lossy(ShareWeights(4), net(), X)
    weights = 16 * 4 * 9 + 16 * 8 * 4 + 8 * 60
    before, after = weights * 4, (weights * 4 + 3 * 16 * 32) // 8
    assert result.record.notes == (
        f"3 layers share 16 values each: {before:,} bytes of weights become {after:,} "
        f"(4 bits a weight and 16 x 32 bits a layer), {before / after:.1f} times fewer",
    )


def test_fused_layers_keep_their_epilogue() -> None:
    result = run_lossy(ShareWeights(4), net(), X, (Canonicalise(), FoldBatchNorm(), FuseActivation()))
    stem = result.graph_module.get_submodule("stem")
    assert str(stem.epilogue) == "relu"
    assert result.graph_module.get_parameter("stem.weight").unique().numel() == 16


def test_more_bits_are_nearer() -> None:
    errors = []
    for bits in (2, 4, 6):
        _, report = PassManager([Canonicalise(), ShareWeights(bits, exclude="tiny")])(trace(net(), X), X)
        step = report.passes[-1].step
        assert step is not None
        errors.append(step.sqnr_db)
    assert errors[0] + 6 < errors[1] < errors[2] - 6
    assert errors[2] > 30


def test_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40)).to(torch.bfloat16)
    result = run_lossy(ShareWeights(4), model, torch.randn(2, 40).bfloat16())
    weight = result.graph_module.get_parameter("0.weight")
    assert weight.dtype == torch.bfloat16
    assert 12 <= weight.unique().numel() <= 16


def test_a_layer_that_is_called_twice_is_shared_once() -> None:
    torch.manual_seed(0)
    result = run_lossy(ShareWeights(4), Twice(), torch.randn(1, 8, 6, 6))
    assert len(result.matched) == 1
    assert result.graph_module.get_parameter("conv.weight").unique().numel() == 16


@pytest.mark.parametrize("name", UNFIT)
def test_refused(name: str) -> None:
    make, reason = UNFIT[name]
    torch.manual_seed(0)
    result = run_lossy(ShareWeights(4), make(), torch.randn(2, 32))
    assert reason in reasons(result)
    assert not result.modified


def test_refused_where_the_values_are_few_already() -> None:
    model = net()
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.sign())
    result = run_lossy(ShareWeights(2, layers="head"), model, X)
    assert reasons(result)[-1] == "the weights of `head` take at most 4 values already"


@pytest.mark.parametrize("bits", [1, 9, 4.0, True, "4"])
def test_bad_bits(bits: Any) -> None:
    with pytest.raises(InputError, match=r"bits is .*\n(.*\n)*.*a whole number from 2 to 8"):
        ShareWeights(bits)


def test_a_glob_that_matches_nothing() -> None:
    with pytest.raises(InputError, match=r"the glob 'haed\*' matches no convolution or linear") as caught:
        ShareWeights(4, layers="haed*")(Canonicalise()(trace(net(), X)).graph_module)
    assert "did you mean 'head'?" in str(caught.value)
