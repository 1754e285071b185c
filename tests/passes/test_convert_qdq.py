from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import CalibrationError
from fxq.ir import Stage, diff, graph_text, stage_of, take_snapshot
from fxq.ir.metrics import distance
from fxq.nn import QDQConv2d, QDQLinear, dequantize, quantize
from fxq.passes.calibrate import Calibrate
from fxq.passes.convert_qdq import ConvertQDQ
from fxq.passes.insert_observers import InsertObservers
from fxq.quant.qparams import QParams
from fxq.quant.recipe import Recipe
from tests.targets.blocks import BLOCKS
from tests.targets.lowering import fuse, stages

X = torch.tensor([[1.0, -2.0], [0.5, 3.0]])

GOLDEN = """\
graph QDQ:
  %input_1 = placeholder -> f32[2, 2]
  %input_1_quantize = quantize(%input_1, 0.019607843831181526, 102) -> u8[2, 2]
  %input_1_dequantize = dequantize(%input_1_quantize, 0.019607843831181526, 102) -> f32[2, 2]
  %linear = QDQLinear[linear](%input_1_dequantize) {2, 3, epilogue=none} -> f32[2, 3]
  return %linear"""


class Tied(nn.Module):
    """Two layers with one weight, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.twice = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(F.relu(self.twice(self.b(F.relu(self.a(x))) * 4)))


def test_golden() -> None:
    gm = fuse(nn.Sequential(nn.Linear(2, 3)).eval(), X)
    made = stages(nn.Sequential(nn.Linear(2, 3)).eval(), X)
    text = graph_text(take_snapshot(made.qdq))
    assert text.replace("%_0", "%linear").replace("[0]", "[linear]") == GOLDEN
    assert stage_of(made.qdq) is Stage.QDQ
    assert stage_of(gm) is Stage.FUSED


def test_parameters_are_literals_of_the_observed_range() -> None:
    made = stages(nn.Linear(2, 3).eval(), X, data=[X, X * 2], recipe=Recipe(activation="minmax"))
    (q,) = [n for n in made.qdq.graph.nodes if n.target is quantize]
    assert q.args[1:] == (QParams.from_range(-4.0, 6.0).scale, QParams.from_range(-4.0, 6.0).zero_point)
    (d,) = [n for n in made.qdq.graph.nodes if n.target is dequantize]
    assert d.args[1:] == q.args[1:]


def test_weights_per_channel() -> None:
    layer = nn.Linear(2, 3).eval()
    made = next(m for m in stages(layer, X).qdq.modules() if isinstance(m, QDQLinear))
    assert made.weight.dtype is torch.int8
    assert torch.equal(made.weight_scale, layer.weight.detach().abs().amax(1) / 127)
    assert torch.equal(made.weight.abs().amax(1), torch.full((3,), 127, dtype=torch.int8))
    assert made.bias is not None
    assert torch.equal(made.bias, layer.bias.detach())


def test_weights_per_tensor() -> None:
    layer = nn.Conv2d(3, 4, 3).eval()
    made = stages(layer, torch.randn(1, 3, 5, 5), recipe=Recipe(weight="per_tensor")).qdq
    quantised = next(m for m in made.modules() if isinstance(m, QDQConv2d))
    wanted = torch.full((4,), float(layer.weight.detach().abs().max()) / 127)
    assert torch.equal(quantised.weight_scale, wanted)


@pytest.mark.parametrize("weight", ["per_channel", "per_tensor"])
def test_weights_of_zeros(weight: str) -> None:
    layer = nn.Linear(2, 3).eval()
    nn.init.zeros_(layer.weight)
    made = stages(layer, X, recipe=Recipe(weight=weight))
    assert torch.equal(made.int8(X), layer(X))


def test_a_layer_that_is_called_twice_is_quantised_for_each_call() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    made = stages(model, X, data=[X, X * 0.5])
    torch.testing.assert_close(made.int8(X), model(X), atol=0.05, rtol=0.05)
    calls = {n.name: made.int8.get_submodule(str(n.target)) for n in made.int8.graph.nodes if n.op == "call_module"}
    first, second = calls["twice"], calls["twice_1"]
    assert first.quantisation.input != second.quantisation.input  # type: ignore[union-attr]
    assert first.weight.data_ptr() == second.weight.data_ptr(), "the int8 weight is held once"


def test_the_float_weights_stay() -> None:
    model = Tied().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stages(model, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.a.weight is model.b.weight


def test_uncalibrated_observers() -> None:
    gm = InsertObservers()(fuse(nn.Linear(2, 2).eval(), X), X).graph_module
    with pytest.raises(CalibrationError, match=r"never observed\n.*`input_1`.*\n.*calibrate before converting"):
        ConvertQDQ()(gm, X)


def test_the_graph_that_goes_in_stays() -> None:
    block = BLOCKS["residual"]
    x = block.input()
    gm = InsertObservers()(fuse(block.make().eval(), x), x).graph_module
    gm = Calibrate([x])(gm, x).graph_module
    before = take_snapshot(gm)
    out, record = ConvertQDQ()(gm, x)
    assert not diff(before, take_snapshot(gm)).modified
    counts = [m.rule for m in record.matched]
    assert counts.count("weights") == 4
    assert counts.count("activations") == len([n for n in out.graph.nodes if n.target is quantize])


def test_the_simulation_is_near_the_float_model() -> None:
    torch.manual_seed(0)
    block = BLOCKS["dense"]
    model, x = block.make().eval(), block.input()
    made = stages(model, x)
    assert 25 < distance(model(x), made.qdq(x)).sqnr_db < 60
