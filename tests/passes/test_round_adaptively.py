"""Adaptive rounding: ConvertQDQ finds the same codes, layers come nearer, nothing is worse, the same at every run."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, fx, nn

from fxq.errors import CalibrationError, InputError
from fxq.ir import take_snapshot
from fxq.ir.metrics import distance
from fxq.manager import PassContext, PassResult
from fxq.passes import (
    Calibrate,
    Canonicalise,
    ConvertQDQ,
    CorrectBiasAccurately,
    FuseActivation,
    FuseResidual,
    InsertObservers,
    RoundAdaptively,
)
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace

PLAIN = Recipe(activation="minmax")
LAYERS = ("conv", "depthwise", "same", "up", "fc")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.same = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.conv(x))))
        x = torch.relu(self.same(x) + x)
        x = torch.relu(self.up(x))
        return self.fc(x.mean((2, 3)))


def _net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def _batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    smooth = nn.AvgPool2d(3, 1, 1)  # neighbours go together, as in a picture
    return [3 * smooth(torch.randn(16, 3, 8, 8, generator=generator)) for _ in range(count)]


def _observed(model: nn.Module, data: list[Tensor], recipe: Recipe) -> tuple[fx.GraphModule, PassContext]:
    inputs = normalise_inputs(model, data[0])
    context = PassContext(inputs, Calibration(data, model, inputs))
    gm = trace(model, data[0])
    for p in (Canonicalise(), FuseResidual(), FuseActivation(), InsertObservers(recipe), Calibrate()):
        gm = p(gm, context=context).graph_module
    return gm, context


def _rounded(recipe: Recipe | None = None, **options: object) -> tuple[fx.GraphModule, PassContext, PassResult]:
    recipe = recipe or PLAIN
    gm, context = _observed(_net(), _batches(), recipe)
    options = {"iterations": 40, **options}
    return gm, context, RoundAdaptively(recipe, **options)(gm, context=context)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", ["per_channel", "per_tensor"])
@pytest.mark.parametrize(("weight_range", "bits"), [("minmax", 8), ("mse", 8), ("minmax", 7)])
def test_convert_qdq_finds_the_same_scales_and_codes(weight: str, weight_range: str, bits: int) -> None:
    recipe = Recipe(activation="minmax", weight=weight, weight_range=weight_range, reduce_range=bits == 7)
    gm, context, result = _rounded(recipe)
    before = ConvertQDQ(recipe)(gm, context=context).graph_module
    after = ConvertQDQ(recipe)(result.graph_module, context=context).graph_module
    rounded = [m.where for m in result.matched if m.rule == "round"]
    assert rounded
    changed = 0
    for path in rounded:
        old, new = before.get_submodule(path), after.get_submodule(path)
        torch.testing.assert_close(new.weight_scale, old.weight_scale, rtol=1e-6, atol=0.0)
        weights = result.graph_module.get_submodule(path).weight
        torch.testing.assert_close(new.dequantized_weight(), weights.detach(), rtol=1e-6, atol=0.0)
        changed += int((old.weight != new.weight).sum())
        assert int(new.weight.abs().max()) == 2 ** (bits - 1) - 1
    assert changed > 20


def test_the_output_is_nearer_than_with_corrected_biases_alone() -> None:
    gm, context, result = _rounded()
    biased = CorrectBiasAccurately(PLAIN)(gm, context=context).graph_module
    model, x = _net(), torch.cat(_batches())
    with torch.no_grad():
        wanted = model(x)
        plain, rounded = (
            distance(wanted, ConvertQDQ(PLAIN)(g, context=context).graph_module(x)).sqnr_db
            for g in (biased, result.graph_module)
        )
    assert rounded > plain + 0.5


def test_every_layer_that_was_rounded_gained_by_the_figures_of_its_record() -> None:
    result = _rounded()[2]
    figures = [re.fullmatch(r"(\S+) dB to (\S+) dB", m.detail) for m in result.matched]
    assert len(figures) >= 4
    assert all(f is not None and float(f[2]) > float(f[1]) for f in figures)
    assert {m.where for m in result.matched} | {r.where for r in result.refused} == set(LAYERS)


def test_it_is_the_same_at_every_run() -> None:
    first, second = (_rounded()[2].graph_module for _ in range(2))
    for path in LAYERS:
        assert torch.equal(first.get_submodule(path).weight, second.get_submodule(path).weight)
        assert torch.equal(first.get_submodule(path).bias, second.get_submodule(path).bias)


def test_layers_for_which_learning_takes_long_are_settled_only(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _rounded(iterations=0)[2].graph_module
    monkeypatch.setattr("fxq.passes.round_adaptively._WORK", 1.0)
    actual = _rounded(iterations=300)[2].graph_module
    for path in LAYERS:
        assert torch.equal(actual.get_submodule(path).weight, expected.get_submodule(path).weight)


def test_weights_that_int8_holds_exactly_are_refused_with_the_figures() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, 64.0], [-127.0, 1.0]]))
        model[0].bias.zero_()
    data = [torch.tensor([[0.0, 255.0], [17.0, 3.0], [100.0, 250.0]])]
    gm, context = _observed(model, data, PLAIN)
    result = RoundAdaptively(PLAIN, iterations=10)(gm, context=context)
    assert not result.modified
    assert re.fullmatch(r"its output would go from \S+ dB to \S+ dB", result.refused[0].reason)


def test_the_graph_that_goes_in_stays() -> None:
    gm, context = _observed(_net(), _batches(), PLAIN)
    digests = [n.digest for n in take_snapshot(gm).nodes]
    assert RoundAdaptively(PLAIN, iterations=10)(gm, context=context).modified
    assert [n.digest for n in take_snapshot(gm).nodes] == digests


def test_a_layer_called_twice_is_refused() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    gm, context = _observed(nn.Sequential(layer, nn.ReLU(), layer).eval(), [torch.rand(4, 4)], PLAIN)
    result = RoundAdaptively(PLAIN, iterations=10)(gm, context=context)
    assert {r.reason for r in result.refused} == {"`0` is called twice"}


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match=r"iterations is -1\n.*give 0 or more"):
        RoundAdaptively(iterations=-1)
    with pytest.raises(InputError, match=r"damping is -0.5"):
        RoundAdaptively(damping=-0.5)


def test_without_data_the_error_says_what_to_pass() -> None:
    gm, context = _observed(_net(), _batches(), PLAIN)
    with pytest.raises(CalibrationError, match="pass calibration=loader"):
        RoundAdaptively()(gm, context=PassContext(context.inputs))
