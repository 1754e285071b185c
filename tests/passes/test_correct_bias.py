"""Correcting biases: the mean error of each channel goes, refusals, and an untouched input."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.errors import CalibrationError
from fxq.ir import graph_text, take_snapshot
from fxq.ir.metrics import distance
from fxq.manager import PassContext
from fxq.passes import Calibrate, Canonicalise, ConvertQDQ, CorrectBias, InsertObservers
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace

MINMAX = Recipe(activation="minmax")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.up(x))
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.fc(x)))


def _batches(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(*shape, generator=generator) + 0.5 for _ in range(3)]


def _observed(
    model: nn.Module, batches: list[Tensor], recipe: Recipe | None = None
) -> tuple[fx.GraphModule, PassContext]:
    inputs = normalise_inputs(model, batches[0])
    context = PassContext(inputs, Calibration(batches, model, inputs))
    gm = trace(model.eval(), batches[0])
    for p in (Canonicalise(), InsertObservers(recipe or Recipe()), Calibrate()):
        gm = p(gm, context=context).graph_module
    return gm, context


def _net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_the_mean_of_every_channel_comes_back() -> None:
    """With one layer, the correction is exact: the QDQ layer's mean error is what float rounding leaves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1))
    batches = _batches(4, 3, 8, 8)
    gm, context = _observed(model, batches)
    corrected = CorrectBias()(gm, context=context).graph_module
    quantised = ConvertQDQ()(gm, context=context).graph_module.get_submodule("0")
    repaired = ConvertQDQ()(corrected, context=context).graph_module.get_submodule("0")
    x = torch.cat(batches)
    with torch.no_grad():
        before = (quantised(x) - model(x)).mean((0, 2, 3)).abs().max()
        after = (repaired(x) - model(x)).mean((0, 2, 3)).abs().max()
    assert before > 1e-4
    assert after < 1e-6


def test_the_output_is_nearer_to_float() -> None:
    model, batches = _net(), _batches(4, 3, 8, 8)
    gm, context = _observed(model, batches, MINMAX)
    corrected = CorrectBias(MINMAX)(gm, context=context)
    plain = ConvertQDQ(MINMAX)(gm, context=context).graph_module
    better = ConvertQDQ(MINMAX)(corrected.graph_module, context=context).graph_module
    with torch.no_grad():
        x = torch.cat(batches)
        wanted, with_correction, without = model(x), better(x), plain(x)
    assert distance(wanted, with_correction).sqnr_db > distance(wanted, without).sqnr_db + 1.0
    assert [m.rule for m in corrected.matched] == ["correct"] * 3


def test_a_layer_without_bias_gets_one_and_the_input_graph_stays() -> None:
    gm, context = _observed(_net(), _batches(4, 3, 8, 8))
    before = graph_text(take_snapshot(gm))
    digests = [n.digest for n in take_snapshot(gm).nodes]
    out = CorrectBias()(gm, context=context).graph_module
    assert out.get_submodule("up").bias is not None
    assert gm.get_submodule("up").bias is None
    assert graph_text(take_snapshot(gm)) == before
    assert [n.digest for n in take_snapshot(gm).nodes] == digests


def test_a_mean_that_is_chance_is_refused_with_both_figures() -> None:
    """Inputs of zero mean: the mean errors of the halves of a batch are noise, of which the others know nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4))
    halves = torch.randn(4, 2, 64, 16)
    batches = list((halves - halves.mean((0, 1, 2))).reshape(4, 128, 16))
    gm, context = _observed(model, batches)
    result = CorrectBias()(gm, context=context)
    assert not result.modified
    (refused,) = result.refused
    before, after = re.fullmatch(r"its mean error would go from (\S+) to (\S+)", refused.reason).groups()
    assert float(after) >= float(before) > 0


def test_what_was_measured_is_in_the_record() -> None:
    gm, context = _observed(_net(), _batches(4, 3, 8, 8))
    for match in CorrectBias()(gm, context=context).matched:
        before, after = re.fullmatch(r"mean error from (\S+) to (\S+)", match.detail).groups()
        assert float(after) < float(before)


def test_sizes_of_batches_are_not_noted_on_a_graph_that_stays() -> None:
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(16, 4), nn.ReLU()).eval(), [torch.zeros(8, 16)] * 2
    gm = fxq.compile(model, calibration=batches, recipe=fxq.Recipe(corrections=("bias",)), target="reference")
    assert not next(p for p in fxq.report(gm).passes if p.name == "correct_bias").matched
    assert torch.isfinite(gm(batches[0])).all()


def test_a_single_sample_is_corrected_for() -> None:
    gm, context = _observed(_net(), [torch.rand(1, 3, 8, 8) + 0.5])
    assert len(CorrectBias()(gm, context=context).matched) == 3


def test_batches_count_by_their_samples() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)), torch.rand(7, 3, 8, 8) + 0.5
    biases = []
    for batches in ([x], [x[:2], x[2:]]):
        gm, context = _observed(model, batches)
        biases.append(CorrectBias()(gm, context=context).graph_module.get_submodule("0").bias)
    torch.testing.assert_close(*biases, rtol=0, atol=1e-7)


def test_a_layer_called_twice_is_refused() -> None:
    gm, context = _observed(Twice(), _batches(4, 4))
    result = CorrectBias()(gm, context=context)
    assert {r.reason for r in result.refused} == {"`fc` is called twice"}
    assert not result.modified


def test_without_data_the_error_says_what_to_pass() -> None:
    gm, context = _observed(_net(), _batches(4, 3, 8, 8))
    with pytest.raises(CalibrationError, match="pass calibration=loader"):
        CorrectBias()(gm, context=PassContext(context.inputs))


def test_a_callable_gives_no_inputs_to_look_at() -> None:
    model, batches = _net(), _batches(4, 3, 8, 8)
    gm, context = _observed(model, batches)
    data = Calibration(lambda m: m(batches[0]), model, context.inputs)
    result = CorrectBias()(gm, context=PassContext(context.inputs, data))
    assert not result.modified
    assert result.record.notes == ("not corrected: the inputs of a calibration callable are not seen",)


def test_nothing_is_run_where_every_layer_stays_in_float() -> None:
    """Batches are larger than the inputs that passes are verified on: their sizes must not be noted on the graph."""
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), [torch.randn(8, 3, 6, 6)]
    recipe = fxq.Recipe(overrides=(fxq.Override("*", quantise=False),))
    gm = fxq.compile(model, calibration=batches, recipe=recipe, target="reference")
    assert torch.equal(gm(batches[0]), model(batches[0]))
