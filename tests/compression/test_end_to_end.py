"""Compression and quantisation in one call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.compression import freeze_shared, keep_zeros, train_shared
from fxq.ir.metrics import distance
from fxq.manager import PassManager
from fxq.passes import Calibrate, ConvertQDQ, CorrectBias, InsertObservers, LowerInt8
from fxq.passes.factorise import Factorise
from fxq.passes.separate_convolutions import SeparateConvolutions
from fxq.passes.share_weights import ShareWeights
from fxq.passes.sparsify import Sparsify
from fxq.pipelines import float_pipeline, int8_pipeline


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 12, 12, generator=generator) for _ in range(count)]


def quantised_layers(gm: fx.GraphModule) -> dict[str, nn.Module]:
    return {name: m for name, m in gm.named_modules() if getattr(m, "weight", None) is not None}


def test_prune_share_and_quantise_in_one_call() -> None:
    model, data = net(), batches()
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    compress = [Sparsify(0.3, scope="lamp", exclude="stem"), ShareWeights(5, exclude="stem")]
    passes = [float_pipeline(), *compress, InsertObservers(), Calibrate(), CorrectBias(), ConvertQDQ(),
              LowerInt8("reference")]  # fmt: skip
    gm = fxq.compile(model, data[0], calibration=data, passes=passes, target="reference")
    assert all(torch.equal(p, wanted[name]) for name, p in model.named_parameters())

    records = {record.name: record for record in fxq.report(gm).passes}
    assert {"sparsify", "share_weights", "lower_int8"} <= set(records)
    compressed = fxq.compile(model, data[0], passes=[float_pipeline(), *compress])
    layers = quantised_layers(gm)
    assert set(layers) == {"stem", "conv1", "conv2", "head"}
    for name in ("conv1", "conv2", "head"):
        codes = layers[name].weight
        assert isinstance(codes, Tensor)
        assert codes.dtype == torch.int8
        per_channel = codes.flatten(1)
        assert max(len(row.unique()) for row in per_channel) <= 2**5  # shared values stay shared
        zero = compressed.get_parameter(f"{name}.weight") == 0
        assert int(zero.sum()) > 10
        assert bool((codes[zero] == 0).all())  # and zeros zeros
    assert int((layers["stem"].weight == 0).sum()) < 40  # type: ignore[operator, union-attr]

    unseen = torch.cat(batches(6)[4:])
    with torch.no_grad():
        against_float = distance(model(unseen), gm(unseen)).sqnr_db
    with torch.no_grad():
        against_compressed = distance(compressed(unseen), gm(unseen)).sqnr_db
    assert against_float > 12  # what pruning and sharing cost untrained
    assert against_compressed > 25  # what int8 adds


def test_sparse_and_shared_passes_fit_into_the_recipe_s_pipeline() -> None:
    model, data = net(), batches(2)
    manager = int8_pipeline(target="reference").insert_before("insert_observers", Sparsify(pattern=(2, 4)))
    gm = fxq.compile(model, calibration=data, passes=manager, target="reference")
    for name in ("conv1", "conv2"):
        rows = quantised_layers(gm)[name].weight.movedim(1, -1).reshape(-1, 4)  # type: ignore[operator, union-attr]
        assert bool(((rows != 0).sum(1) <= 2).all())


@pytest.mark.parametrize("p", [SeparateConvolutions(exclude="stem", max_error=1.0), Factorise(ratio=0.8)])
def test_smaller_layers_become_int8_too(p: fxq.passes.Pass) -> None:
    model, data = net(), batches(2)
    passes = [float_pipeline(), p]
    smaller = fxq.compile(model, data[0], passes=passes)
    gm = fxq.compile(model, calibration=data, target="reference", passes=[
        *passes, InsertObservers(), Calibrate(), ConvertQDQ(), LowerInt8("reference")
    ])  # fmt: skip
    assert len(quantised_layers(gm)) > 4
    assert all(m.weight.dtype == torch.int8 for m in quantised_layers(gm).values())  # type: ignore[union-attr]
    with torch.no_grad():
        assert distance(smaller(data[1]), gm(data[1])).sqnr_db > 20


def test_fine_tuning_between_the_passes() -> None:
    """Prune, fine-tune with the zeros kept, share, train the codebooks: each step keeps what the one before made."""
    model, (x, *_) = net(), batches(1)
    with torch.no_grad():
        targets = model(x).argmax(1)
    gm = fxq.compile(model, x, passes=[float_pipeline(), Sparsify(0.6, "layer")])
    zeros = {name: p == 0 for name, p in gm.named_parameters() if p.dim() > 1}
    for p in gm.parameters():
        p.requires_grad_(True)  # folding a batch norm leaves weights that do not train
    with keep_zeros(gm):
        train(gm, x, targets)
    shared, _ = PassManager([ShareWeights(4)])(gm, x)
    trained = freeze_shared(train(train_shared(shared), x, targets))
    for name, zero in zeros.items():
        weight = trained.get_parameter(name)
        assert torch.equal(weight == 0, zero)
        assert weight.unique().numel() <= 16
        assert not torch.equal(weight, shared.get_parameter(name))


def train(module: fx.GraphModule, x: Tensor, targets: Tensor) -> fx.GraphModule:
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), targets).backward()
        optimiser.step()
    return module
