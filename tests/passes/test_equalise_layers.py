"""Cross-layer equalisation: ranges by hand, the same function in float64, a network that it saves, ReLU6, refusals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.ir import take_snapshot
from fxq.ir.metrics import distance
from fxq.manager import PassContext, PassResult
from fxq.passes import EqualiseLayers
from fxq.pipelines import float_pipeline, int8_pipeline
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs, trace

TENSOR, CHANNEL = (Recipe(activation="minmax", weight=w) for w in ("per_tensor", "per_channel"))


def _data(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*(shape or (8, 3, 8, 8)), generator=generator) for _ in range(3)]


def _equalised(model: nn.Module, data: list[Tensor], recipe: Recipe = TENSOR) -> tuple[fx.GraphModule, PassResult]:
    inputs = normalise_inputs(model, data[0])
    context = PassContext(inputs, Calibration(data, model, inputs))
    gm = float_pipeline()(trace(model, data[0]), context=context).graph_module
    digests = [n.digest for n in take_snapshot(gm).nodes]
    result = EqualiseLayers(recipe)(gm, context=context)
    assert [n.digest for n in take_snapshot(gm).nodes] == digests, "the pass changed the graph that went in"
    return gm, result


def _spread(*layers: nn.Module, decades: float = 1.5) -> nn.Sequential:
    """A network whose layers' output channels differ by factors, for which the layers behind make up."""
    torch.manual_seed(0)
    model = nn.Sequential(*layers).eval()
    for layer in model:
        layer.reset_parameters() if hasattr(layer, "reset_parameters") else None
    found = [m for m in model if hasattr(m, "weight")]
    with torch.no_grad():
        for first, second in itertools.pairwise(found):
            factor = 10.0 ** (decades * (2 * torch.rand(len(first.bias)) - 1))
            first.weight.mul_(factor.reshape(-1, *[1] * (first.weight.dim() - 1)))
            first.bias.mul_(factor)
            if isinstance(second, nn.Conv2d) and second.groups > 1:
                second.weight.div_(factor.reshape(-1, 1, 1, 1))
            else:
                second.weight.div_(factor.reshape(1, -1, *[1] * (second.weight.dim() - 2)))
    return model


def _mobile() -> nn.Sequential:
    return _spread(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LeakyReLU(0.1),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def test_both_sides_of_a_channel_end_with_one_range() -> None:
    """Ranges 8 and 1/2 in front, 1/8 and 2 behind: sqrt(r1 / r2) = 8 and 1/2, and either side has a range of 1."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
    model[0].weight = nn.Parameter(torch.tensor([[8.0, 5.0], [0.5, 0.3]]))
    model[0].bias = nn.Parameter(torch.tensor([1.0, 1.0]))
    model[2].weight = nn.Parameter(torch.tensor([[0.125, 1.5], [0.1, 2.0]]))
    _, result = _equalised(model, [x.abs() for x in _data(64, 2)])
    out = result.graph_module
    geometric = (8 * 0.5) ** 0.5
    first, second = out.get_submodule("0"), out.get_submodule("2")
    torch.testing.assert_close(first.weight.detach(), torch.tensor([[1.0, 0.625], [1.0, 0.6]]) * geometric)
    torch.testing.assert_close(first.bias.detach(), torch.tensor([0.125, 2.0]) * geometric)
    torch.testing.assert_close(second.weight.detach(), torch.tensor([[1.0, 0.75], [0.8, 1.0]]) / geometric)
    assert second.bias is None


@pytest.mark.parametrize("recipe", [TENSOR, CHANNEL])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.LeakyReLU(0.2), nn.Conv2d(8, 4, 1)),
        lambda: (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)),
        lambda: (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1, groups=2), nn.ReLU()),
        lambda: (nn.ConvTranspose2d(3, 8, 2), nn.Conv2d(8, 4, 3, bias=False), nn.ReLU()),
        lambda: (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU()),
    ],
)
def test_in_float64_the_function_stays(layers: Callable[[], tuple[nn.Module, ...]], recipe: Recipe) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*layers()).eval().double()
    with torch.no_grad():
        outputs = 1 if isinstance(model[0], nn.ConvTranspose2d) else 0
        factor = 10.0 ** torch.randn(model[0].weight.shape[outputs])
        model[0].weight.transpose(0, outputs).mul_(factor.reshape(-1, 1, 1, 1))
    data = [x.double() for x in _data()]
    gm, result = _equalised(model, data, recipe)
    assert result.modified
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(data[1]), gm(data[1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", [TENSOR, CHANNEL])
def test_a_network_that_int8_loses_comes_back(recipe: Recipe) -> None:
    model, data = _mobile(), _data()
    plain = int8_pipeline(replace(recipe, corrections=("bias",)), target="reference")
    made = [
        fxq.compile(model, data[0], calibration=data, passes=p)
        for p in (plain, plain.insert_before("insert_observers", EqualiseLayers(recipe)))
    ]
    with torch.no_grad():
        wanted = model(data[2])
        before, after = (distance(wanted, gm(data[2])).sqnr_db for gm in made)
    assert before < 30.0
    assert after > before + 10.0
    (record,) = (p for p in fxq.report(made[1]).passes if p.name == "equalise_layers")
    assert record.notes[0].startswith("3 corrected: from ")


def test_all_pairs_together_are_equalised() -> None:
    """Also in the middle, where a weight stands behind one value and in front of another."""
    model, data = _mobile(), _data()
    _, result = _equalised(model, data)
    out = result.graph_module
    weights = [out.get_submodule(p).weight.detach() for p in ("0", "2", "4")]
    depthwise = weights[1].abs().flatten(1).amax(1)
    first = weights[0].abs().flatten(1).amax(1)
    last = weights[2].abs().amax((0, 2, 3))
    for front, behind in ((first, depthwise), (depthwise, last)):
        ratio = front / behind
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=5e-3, atol=0.0)


def test_relu6_stays_and_clips_nothing_that_it_did_not_clip() -> None:
    """Channel 0 reaches the ceiling and keeps its factor; channel 1 may grow to 4/5 of the ceiling, and no further."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU6(), nn.Conv2d(2, 2, 1, groups=2, bias=False)).eval()
    model[0].weight = nn.Parameter(torch.tensor([[10.0, 0.0], [0.0, 0.05]]).reshape(2, 2, 1, 1))
    data = [x.abs().clamp(max=2.0) for x in _data(4, 2, 5, 5)]
    gm, result = _equalised(model, data, CHANNEL)
    assert result.modified
    out = result.graph_module
    with torch.no_grad():
        x = torch.cat(data)
        torch.testing.assert_close(out(x), gm(x), rtol=1e-5, atol=1e-6)
        middle = out.get_submodule("0")(x).amax((0, 2, 3))
    assert torch.equal(out.get_submodule("0").weight[0], model[0].weight[0])
    torch.testing.assert_close(middle, torch.tensor([6.0, 4.8]))


def test_example_inputs_count_for_the_ceiling_too() -> None:
    """They may be larger than the calibration data, and the pass is verified on them."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU6(), nn.Conv2d(2, 2, 1, groups=2, bias=False)).eval()
    model[0].weight = nn.Parameter(torch.tensor([[10.0, 0.0], [0.0, 0.05]]).reshape(2, 2, 1, 1))
    manager = int8_pipeline(CHANNEL, target="reference").insert_before("insert_observers", EqualiseLayers(CHANNEL))
    data = [x.abs().clamp(max=2.0) for x in _data(4, 2, 5, 5)]
    gm = fxq.compile(model, 30 * data[0], calibration=data, passes=manager)
    assert any(p.name == "equalise_layers" and p.modified for p in fxq.report(gm).passes)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(y) + y))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.mean((2, 3)))))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Residual(), "`a` is the residual of `b`"),
        (Residual(), "`b` adds a residual, which would have to share its factors"),
        (Residual(), "`c` is an output"),
        (Tied(), "shares its weight with another module"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.GELU(), nn.Conv2d(3, 3, 1)), r"ends in gelu\(none\), which no factor"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardtanh(), nn.Conv2d(3, 3, 1)), "ends in hardtanh"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Softmax(1), nn.Conv2d(3, 3, 1)), "goes into softmax, which no factor"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(8, 3)), "reads another axis than the channels"),
    ],
)
def test_refusals(model: nn.Module, reason: str) -> None:
    _, result = _equalised(model.eval(), _data())
    assert any(re.search(reason, r.reason) for r in result.refused), result.refused


@pytest.mark.parametrize("recipe", [TENSOR, CHANNEL])
def test_what_would_make_a_layer_worse_is_refused_with_the_figures(recipe: Recipe) -> None:
    """Weights that int8 holds exactly, and one activation range: there is nothing to win."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[2].weight.copy_(torch.eye(4))
    data = [torch.full((3, 4), 0.5) for _ in range(2)]
    _, result = _equalised(model, data, recipe)
    assert not result.modified
    assert re.match(r"its output would go from \S+ dB to \S+ dB", result.refused[-1].reason)
