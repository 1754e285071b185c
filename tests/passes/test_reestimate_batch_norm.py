"""Statistics of batch norms behind quantised layers: by the formula, nearer to float, refusals."""

from __future__ import annotations

import re

import torch
from torch import Tensor, fx, nn

from fxq.ir import take_snapshot
from fxq.ir.metrics import distance
from fxq.manager import PassContext
from fxq.passes import (
    Calibrate,
    Canonicalise,
    ConvertQDQ,
    CorrectBiasAccurately,
    FoldBatchNorm,
    InsertObservers,
    ReestimateBatchNorm,
)
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace

COARSE = Recipe(activation="minmax", weight="per_tensor")  # larger errors to correct


class Dense(nn.Module):
    """A batch norm behind a concatenation, as in DenseNet."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, **options)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))))


def _dense(**options: bool) -> Dense:
    torch.manual_seed(0)
    model = Dense(**options).eval()
    with torch.no_grad():
        model.a.weight[0] *= 30.0  # the other channels get few codes
        model.b.weight[1] *= 30.0
        if model.norm.running_mean is not None:
            model.norm.running_mean.normal_()
            model.norm.running_var.uniform_(0.05, 0.5)
            model.norm.weight.uniform_(0.5, 2.0)
    return model


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(8, 3, 8, 8, generator=generator) for _ in range(3)]


def _observed(model: nn.Module, data: list[Tensor]) -> tuple[fx.GraphModule, PassContext]:
    inputs = normalise_inputs(model, data[0])
    context = PassContext(inputs, Calibration(data, model, inputs))
    gm = trace(model, data[0])
    for p in (Canonicalise(), FoldBatchNorm(), InsertObservers(COARSE), Calibrate()):
        gm = p(gm, context=context).graph_module
    return gm, context


def _seen(gm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The input and the output of the batch norm, channels last."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = gm.get_submodule("norm").register_forward_hook(lambda _, given, y: seen.append((given[0], y)))
    with torch.no_grad():
        gm(x)
    handle.remove()
    ((given, y),) = seen
    return given.transpose(1, 3).flatten(0, 2), y.transpose(1, 3).flatten(0, 2)


def test_the_output_gets_the_mean_and_deviation_that_it_has_in_float() -> None:
    model, data = _dense(), _batches()
    gm, context = _observed(model, data)
    result = ReestimateBatchNorm(COARSE)(gm, context=context)
    assert [m.rule for m in result.matched] == ["reestimate"]
    x = torch.cat(data)
    wanted = _seen(model, x)[1]
    plain = _seen(ConvertQDQ(COARSE)(gm, context=context).graph_module, x)[1]
    moved = _seen(ConvertQDQ(COARSE)(result.graph_module, context=context).graph_module, x)[1]
    torch.testing.assert_close(moved.mean(0), wanted.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.std(0), wanted.std(0), rtol=1e-4, atol=1e-4)
    assert float((plain.mean(0) - wanted.mean(0)).abs().max()) > 1e-2
    assert distance(wanted, moved).sqnr_db > distance(wanted, plain).sqnr_db + 1.0


def test_the_statistics_follow_the_formula_and_the_graph_that_goes_in_stays() -> None:
    model, data = _dense(), _batches()
    gm, context = _observed(model, data)
    digests = [n.digest for n in take_snapshot(gm).nodes]
    norm = ReestimateBatchNorm(COARSE)(gm, context=context).graph_module.get_submodule("norm")
    assert [n.digest for n in take_snapshot(gm).nodes] == digests
    x = torch.cat(data)
    exact, rounded = _seen(model, x)[0], _seen(ConvertQDQ(COARSE)(gm, context=context).graph_module, x)[0]
    ratio = rounded.var(0) / exact.var(0)
    mean = rounded.mean(0) - (exact.mean(0) - model.norm.running_mean) * ratio.sqrt()
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        norm.running_var + norm.eps, (model.norm.running_var + norm.eps) * ratio, rtol=1e-4, atol=1e-6
    )


def test_behind_corrected_biases_it_still_aims_at_the_float_network() -> None:
    model, data = _dense(), _batches()
    gm, context = _observed(model, data)
    biased = CorrectBiasAccurately(COARSE)(gm, context=context).graph_module
    both = ReestimateBatchNorm(COARSE)(biased, context=context).graph_module
    x = torch.cat(data)
    wanted = _seen(model, x)[1]
    one, two = (_seen(ConvertQDQ(COARSE)(g, context=context).graph_module, x)[1] for g in (biased, both))
    torch.testing.assert_close(two.mean(0), wanted.mean(0), rtol=1e-4, atol=1e-4)
    assert distance(wanted, two).sqnr_db > distance(wanted, one).sqnr_db


def test_the_float_layers_are_let_go_of_in_the_end() -> None:
    gm, context = _observed(_dense(), _batches())
    corrected = ReestimateBatchNorm(COARSE)(gm, context=context).graph_module
    assert corrected.meta["fxq_originals"]["norm"] is gm.get_submodule("norm")
    assert "fxq_originals" not in gm.meta
    assert "fxq_originals" not in ConvertQDQ(COARSE)(corrected, context=context).graph_module.meta


def test_a_norm_that_gains_nothing_is_refused_with_the_figures() -> None:
    model = _dense()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight.zero_()
            layer.weight[:, 0, 1, 1] = 1.0
            layer.bias.zero_()
    data = [torch.linspace(0, 1, 256).reshape(1, 1, 16, 16).expand(2, 3, 16, 16) for _ in range(2)]
    gm, context = _observed(model, data)
    result = ReestimateBatchNorm(COARSE)(gm, context=context)
    assert not result.modified
    assert re.fullmatch(r"its output would go from \S+ dB to \S+ dB", result.refused[0].reason)


def test_a_norm_without_running_statistics_is_refused() -> None:
    gm, context = _observed(_dense(track_running_stats=False), _batches())
    result = ReestimateBatchNorm(COARSE)(gm, context=context)
    assert [r.reason for r in result.refused] == ["`norm` normalises with the statistics of each batch"]


def test_where_all_norms_are_folded_the_record_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    gm, context = _observed(model, _batches())
    result = ReestimateBatchNorm(COARSE)(gm, context=context)
    assert not result.modified
    assert result.record.notes == ("no batch norm is left",)
