"""SmoothQuant: factors by hand, the same function in float64, less error where channels stand out, refusals."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError
from fxq.ir import take_snapshot
from fxq.ir.metrics import distance
from fxq.manager import PassContext, PassResult
from fxq.passes import SmoothQuant
from fxq.pipelines import float_pipeline, int8_pipeline
from fxq.quant.calibration import Calibration
from fxq.tracing import normalise_inputs, trace

WIDTH = 16


class Block(nn.Module):
    """Attention with projections of their own, and an MLP."""

    def __init__(self, hidden: nn.Module, outliers: float = 100.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.fc1, self.hidden, self.fc2 = nn.Linear(WIDTH, 32), hidden, nn.Linear(32, WIDTH)
        with torch.no_grad():
            for norm in (self.norm1, self.norm2):
                norm.weight[3] *= outliers
                norm.bias.normal_()
            for layer in (self.query, self.key, self.value, self.fc1):
                layer.weight[:, 3] /= outliers

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.out(F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y)))
        return x + self.fc2(self.hidden(self.fc1(self.norm2(x))))


def _block(hidden: nn.Module | None = None, outliers: float = 100.0) -> Block:
    torch.manual_seed(0)
    return Block(hidden or nn.GELU(), outliers).eval()


def _data(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*(shape or (8, 5, WIDTH)), generator=generator) for _ in range(4)]


def _smoothed(model: nn.Module, data: list[Tensor], p: SmoothQuant | None = None) -> tuple[fx.GraphModule, PassResult]:
    inputs = normalise_inputs(model, data[0])
    context = PassContext(inputs, Calibration(data, model, inputs))
    gm = float_pipeline()(trace(model, data[0]), context=context).graph_module
    digests = [n.digest for n in take_snapshot(gm).nodes]
    result = (p or SmoothQuant())(gm, context=context)
    assert [n.digest for n in take_snapshot(gm).nodes] == digests, "the pass changed the graph that went in"
    return gm, result


def test_the_factors_are_those_of_the_paper() -> None:
    """``sqrt(max|X| / max|W|)``, divided by their geometric mean."""
    torch.manual_seed(0)
    norm, layer = nn.LayerNorm(4), nn.Linear(4, 3, bias=False)
    norm.weight = nn.Parameter(torch.tensor([100.0, 1.0, 2.0, 3.0]))
    layer.weight = nn.Parameter(layer.weight.detach() / norm.weight.detach())
    model, data = nn.Sequential(norm, layer).eval(), _data(64, 4)
    out = _smoothed(model, data, SmoothQuant(alpha=0.5))[1].graph_module
    with torch.no_grad():
        largest = torch.cat([norm(x) for x in data[:3]]).abs().amax(0)  # the last batch is measured on
        s = (largest / layer.weight.abs().amax(0)).sqrt()
        s = s / s.prod() ** 0.25
        torch.testing.assert_close(out.get_submodule("0").weight, norm.weight / s)
        torch.testing.assert_close(out.get_submodule("1").weight, layer.weight * s)
    assert out.get_submodule("1").bias is None


@pytest.mark.parametrize("hidden", [nn.GELU(), nn.ReLU(), nn.LeakyReLU(0.1)])
def test_in_float64_the_function_stays(hidden: nn.Module) -> None:
    model = _block(hidden).double()
    data = [x.double() for x in _data()]
    gm, result = _smoothed(model, data)
    assert result.modified
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(data[1]), gm(data[1]), rtol=1e-12, atol=1e-12)


def test_projections_that_share_an_input_share_its_factors() -> None:
    _, result = _smoothed(_block(), _data())
    assert result.matched[0].nodes == ("norm1", "query", "key", "value")
    old, new = _block(), result.graph_module
    factors = old.norm1.weight / new.get_submodule("norm1").weight
    for path in ("query", "key", "value"):
        torch.testing.assert_close(new.get_submodule(path).weight, old.get_submodule(path).weight * factors)


def test_where_channels_stand_out_int8_comes_much_nearer_to_float() -> None:
    model, data = _block(), _data()
    plain = int8_pipeline(target="reference")
    smooth = plain.insert_before("insert_observers", SmoothQuant())
    made = [fxq.compile(model, data[0], calibration=data, passes=p) for p in (plain, smooth)]
    with torch.no_grad():
        wanted = model(data[3])
        before, after = (distance(wanted, gm(data[3])).sqnr_db for gm in made)
    assert after > before + 6.0
    (record,) = (p for p in fxq.report(made[1]).passes if p.name == "smooth_quant")
    assert record.notes[0].startswith("2 corrected: from ")
    assert record.notes[0].endswith("; 4 batches")


def test_linear_layers_pass_factors_through_relu() -> None:
    _, result = _smoothed(_block(nn.ReLU()), _data(), SmoothQuant(alpha=0.9))
    rules = {m.nodes for m in result.matched} | {(r.node,) for r in result.refused}
    assert any(nodes[0] == "fc1" for nodes in rules)  # tried, whatever the figures say
    assert not any("`fc1` ends in" in r.reason for r in result.refused)


def test_a_value_that_gains_nothing_is_refused_with_the_figures() -> None:
    """Where all weights are of one size, alpha = 0 finds nothing to move."""
    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)).eval()
    with torch.no_grad():
        model[1].weight.fill_(0.5)
    _, result = _smoothed(model, _data(64, WIDTH), SmoothQuant(alpha=0.0))
    assert not result.modified
    assert re.fullmatch(r"its output would go from (\S+) dB to \1 dB", result.refused[0].reason)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.LayerNorm(WIDTH, elementwise_affine=False), nn.Linear(WIDTH, 4)), "has no weight to take up"),
        (nn.Sequential(nn.LayerNorm((5, WIDTH)), nn.Linear(WIDTH, 4)), "normalises over more than the channels"),
        (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4)), r"ends in gelu\(none\)"),
        (nn.Sequential(nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)), "goes into tanh, which no factor"),
        (nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, 4)), "nothing in front can take up a factor: it reads tanh"),
    ],
)
def test_refusals(model: nn.Module, reason: str) -> None:
    _, result = _smoothed(model.eval(), _data())
    assert not result.modified
    assert any(re.search(reason, r.reason) for r in result.refused), result.refused


def test_alpha_must_be_a_share() -> None:
    with pytest.raises(InputError, match=r"alpha is 2\n.*in \[0, 1\]"):
        SmoothQuant(alpha=2)


def test_a_generator_is_still_whole_for_calibration() -> None:
    model, data = _block(), _data()
    manager = int8_pipeline(target="reference").insert_before("insert_observers", SmoothQuant())
    seen = fxq.compile(model, data[0], calibration=iter(data), passes=manager)
    again = fxq.compile(model, data[0], calibration=data, passes=manager)
    with torch.no_grad():
        assert torch.equal(seen(data[0]), again(data[0]))


def test_layers_that_stay_in_float_are_measured_in_float() -> None:
    model, data = _block(), _data()
    recipe = fxq.Recipe(overrides=(fxq.Override("fc1", quantise=False),))
    _, result = _smoothed(model, data, SmoothQuant(recipe))
    float_fc1 = {m.nodes: m.detail for m in result.matched}[("norm2", "fc1")]
    int8_fc1 = {m.nodes: m.detail for m in _smoothed(model, data)[1].matched}[("norm2", "fc1")]
    before, after = (float(detail.split()[0]) for detail in (int8_fc1, float_fc1))
    assert after > before
