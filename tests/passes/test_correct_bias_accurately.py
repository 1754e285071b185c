"""Accurate bias correction: equal to correcting one layer after the other, never worse, refusals, bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.errors import CalibrationError
from fxq.ir import take_snapshot
from fxq.ir.metrics import distance
from fxq.manager import PassContext, PassResult
from fxq.nn import Epilogue
from fxq.passes import (
    Calibrate,
    Canonicalise,
    ConvertQDQ,
    CorrectBiasAccurately,
    FuseActivation,
    FuseResidual,
    InsertObservers,
)
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace

COARSE = Recipe(activation="minmax", weight="per_tensor")  # larger errors to correct


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.same = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.same(x) + x)
        x = torch.relu(self.up(x))
        return self.fc(x.mean((2, 3)))


def _net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for layer in (model.conv, model.same):
            layer.weight[0] *= 20  # the other channels get few codes
    return model


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(8, 3, 8, 8, generator=generator) + 0.5 for _ in range(3)]


def _observed(
    model: nn.Module, data: list[Tensor], recipe: Recipe = COARSE, calibration: object = None
) -> tuple[fx.GraphModule, PassContext]:
    inputs = normalise_inputs(model, data[0])
    context = PassContext(inputs, Calibration(calibration or data, model, inputs))
    gm = trace(model, data[0])
    for p in (Canonicalise(), FuseResidual(), FuseActivation(), InsertObservers(recipe), Calibrate()):
        gm = p(gm, context=context).graph_module
    return gm, context


def _corrected(gm: fx.GraphModule, context: PassContext, recipe: Recipe = COARSE) -> PassResult:
    return CorrectBiasAccurately(recipe, fewest=1)(gm, context=context)


def _means(gm: nn.Module, path: str, x: Tensor) -> Tensor:
    """The means of each sample in front of the activation of a layer, (samples, channels)."""
    seen: list[Tensor] = []
    layer = gm.get_submodule(path)
    epilogue = layer.epilogue if hasattr(layer, "epilogue") else None
    if epilogue is not None:
        layer.epilogue = Epilogue(add=epilogue.add, residual_first=epilogue.residual_first)
    handle = layer.register_forward_hook(lambda _, given, y: seen.append(y))
    with torch.no_grad():
        gm(x)
    handle.remove()
    if epilogue is not None:
        layer.epilogue = epilogue
    (y,) = seen
    return y.flatten(2).mean(2) if y.dim() > 2 else y


def test_one_run_gives_what_correcting_one_layer_after_the_other_gives() -> None:
    """Each layer corrected by hand on a graph converted anew, in which the layers before it are corrected already."""
    data = _batches()
    gm, context = _observed(_net(), data)
    result = _corrected(gm, context)
    x = torch.cat(data)
    state = _observed(_net(), data)[0]
    for path in ("conv", "same", "up", "fc"):
        qdq = ConvertQDQ(COARSE)(state, context=context).graph_module
        error = (_means(gm, path, x) - _means(qdq, path, x)).double()
        mean, of_mean = error.mean(0), error.var(0) / len(error)
        shift = mean * (1 - of_mean / mean**2).clamp_min(0)
        layer = state.get_submodule(path)
        layer.bias = nn.Parameter(shift.float() if layer.bias is None else layer.bias + shift.float())
        torch.testing.assert_close(result.graph_module.get_submodule(path).bias, layer.bias, rtol=1e-4, atol=1e-6)


def test_the_output_is_nearer_to_float_and_the_record_says_by_how_much() -> None:
    model, data = _net(), _batches()
    gm, context = _observed(model, data)
    result = _corrected(gm, context)
    plain = ConvertQDQ(COARSE)(gm, context=context).graph_module
    better = ConvertQDQ(COARSE)(result.graph_module, context=context).graph_module
    with torch.no_grad():
        x = torch.cat(data)
        wanted, with_correction, without = model(x), better(x), plain(x)
    assert distance(wanted, with_correction).sqnr_db > distance(wanted, without).sqnr_db + 3.0
    assert [m.rule for m in result.matched] == ["correct"] * 4
    assert result.record.notes[0].startswith("4 corrected: from ")
    assert result.record.notes[0].endswith("; 3 of 3 batches")


def test_the_graph_that_goes_in_stays() -> None:
    gm, context = _observed(_net(), _batches())
    digests = [n.digest for n in take_snapshot(gm).nodes]
    _corrected(gm, context)
    assert [n.digest for n in take_snapshot(gm).nodes] == digests
    assert gm.get_submodule("same").bias is None


def test_a_correction_that_would_make_the_output_worse_is_refused_with_the_figures() -> None:
    """Clipping a value that the ReLU throws away shifts the mean in front of it, and nothing behind it."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).eval()
    model[0].weight = nn.Parameter(torch.ones(1, 1))
    data = [torch.tensor([[-10.0], [1.0], [-11.0], [0.5]])]
    gm, context = _observed(model, data)
    observer = gm.get_submodule("observers.input_1")
    observer.minimum, observer.maximum = torch.tensor([-1.0]), torch.tensor([1.0])
    result = _corrected(gm, context)
    assert not result.modified
    (refused,) = result.refused
    assert refused.reason.startswith("its output would go from ")
    assert refused.reason.endswith(" dB")


def test_batches_are_given_up_until_the_values_fit() -> None:
    gm, context = _observed(_net(), _batches())
    result = CorrectBiasAccurately(COARSE, memory=1)(gm, context=context)
    assert result.record.notes[0].endswith("; 1 of 3 batches")
    assert result.modified


def test_a_callable_is_seen_too() -> None:
    model, data = _net(), _batches()
    gm, context = _observed(model, data)
    expected = _corrected(gm, context).graph_module

    def run(net: nn.Module) -> None:
        for batch in data:
            net(batch)

    gm, context = _observed(model, data, calibration=run)
    actual = _corrected(gm, context).graph_module
    for path in ("conv", "same", "up", "fc"):
        assert torch.equal(actual.get_submodule(path).bias, expected.get_submodule(path).bias)


def test_a_callable_that_can_run_only_once_leaves_biases_alone() -> None:
    model, batches = _net(), iter(_batches())

    def run(net: nn.Module) -> None:
        for batch in batches:
            net(batch)

    result = _corrected(*_observed(model, _batches(), calibration=run))
    assert result.record.notes == ("not corrected: the calibration callable does not run the model a second time",)
    assert not result.modified


def test_what_clipping_took_from_the_spread_comes_back_with_the_same_codes() -> None:
    """Half of the range is cut off: the layer behind makes up for it, by its scales."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    data = [torch.randn(64, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    recipe = Recipe(activation="minmax")
    gm, context = _observed(model, data, recipe)
    (last,) = (n for n in gm.graph.nodes if n.target == "2")
    clipping = gm.get_submodule(str(last.args[0].target))
    clipping.maximum = clipping.maximum / 2
    result = _corrected(gm, context, recipe)
    plain, better = (ConvertQDQ(recipe)(g, context=context).graph_module for g in (gm, result.graph_module))
    old, new = plain.get_submodule("2"), better.get_submodule("2")
    assert bool((new.weight_scale > 1.005 * old.weight_scale).all())
    assert int((new.weight != old.weight).sum()) <= 1  # a tie of rounding
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert distance(model(x), better(x)).sqnr_db > distance(model(x), plain(x)).sqnr_db + 0.3


def test_a_layer_called_twice_is_refused() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    data = [torch.rand(4, 4)]
    result = _corrected(*_observed(model, data))
    assert {r.reason for r in result.refused} == {"`0` is called twice"}
    assert not result.modified


def test_without_data_the_error_says_what_to_pass() -> None:
    gm, context = _observed(_net(), _batches())
    with pytest.raises(CalibrationError, match="pass calibration=loader"):
        _corrected(gm, PassContext(context.inputs))


@pytest.mark.parametrize("seed", range(3))
def test_few_samples_correct_errors_of_weights_alone(seed: int) -> None:
    """On other images than the two that it saw, each layer fitted to the noise of those before it is the worse one."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(8):
        layers += [nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    for _ in range(20):
        model(torch.randn(16, 3, 16, 16))
    two, others = torch.randn(2, 3, 16, 16), torch.randn(64, 3, 16, 16)
    model.eval()
    passes = fxq.pipeline(Recipe(), "reference")
    fitted = passes.replace("correct_bias_accurately", CorrectBiasAccurately(fewest=1))
    few, forced = (fxq.compile(model, calibration=[two], passes=p, target="reference") for p in (passes, fitted))
    assert "2 samples are few" in fxq.report(few)["correct_bias_accurately"].notes[0]
    with torch.no_grad():
        wanted = model(others)
        assert distance(wanted, few(others)).sqnr_db > distance(wanted, forced(others)).sqnr_db + 1
