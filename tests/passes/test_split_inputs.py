from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError
from fxq.ir.metrics import distance
from fxq.manager import PassContext, PassRecord
from fxq.nn import QConv2d, dequantize, quantize
from fxq.passes import Calibrate, InsertObservers, SplitInputs
from fxq.quant.calibration import Calibration
from fxq.quant.recipe import Recipe
from fxq.tracing import normalise_inputs
from tests.targets.lowering import fuse


class Net(nn.Module):
    def __init__(self, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1) if stem is None else stem
        self.body = nn.Conv2d(16, 64, 3, padding=1)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.stem(x)))
        return self.fc(torch.relu(x).mean((2, 3)))


def _observed(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, PassContext]:
    gm = fuse(model.eval(), x)
    context = PassContext(normalise_inputs(gm, x), Calibration([x], gm))
    gm, _ = InsertObservers()(gm, context=context)
    gm, _ = Calibrate()(gm, context=context)
    return gm, context


def _split(model: nn.Module, x: Tensor, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule, PassRecord]:
    gm, context = _observed(model, x)
    state = {k: v.clone() for k, v in gm.state_dict().items() if isinstance(v, Tensor)}
    out, record = SplitInputs(**options)(gm, context=context)
    assert all(torch.equal(v, gm.state_dict()[k]) for k, v in state.items())
    return gm, out, record


@pytest.mark.parametrize("copies", [2, 4])
def test_copies_round_to_a_fraction_of_the_step(copies: int) -> None:
    torch.manual_seed(0)
    x, s = torch.rand(10_000) * 2 - 1, 0.02
    parts = [x + s * (2 * i + 1 - copies) / (2 * copies) for i in range(copies)]
    rounded = torch.stack([dequantize(quantize(p, s, 128), s, 128) for p in parts]).mean(0)
    inside = x.abs() < 1.0 - s
    assert float((rounded - x)[inside].abs().max()) < s / (2 * copies) * 1.001
    assert torch.allclose(torch.round(rounded * copies / s), rounded * copies / s, atol=1e-3)


@pytest.mark.parametrize("copies", [2, 4])
def test_the_float_function_stays_and_the_error_of_the_input_falls(copies: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 16, 16)
    before, out, record = _split(Net(), x, copies=copies, most=1.0)
    assert distance(before(x), out(x)).sqnr_db > 110
    assert out.get_submodule("stem").in_channels == 3 * copies
    assert [m.rule for m in record.matched] == ["split"]
    old, new = (float(v.removesuffix(" dB")) for v in record.matched[0].detail.split(" to "))
    assert new > old + 3
    names = [n.name for n in out.graph.nodes]
    assert [f"x_copy_{i}" in names for i in range(copies + 1)] == [True] * copies + [False]


def test_a_second_run_finds_nothing() -> None:
    torch.manual_seed(0)
    gm, context = _observed(Net(), torch.randn(4, 3, 16, 16))
    once, _ = SplitInputs()(gm, context=context)
    again = SplitInputs()(once, context=context)
    assert not again.modified
    assert not again.record.refused


def test_the_codes_of_the_weights_stay_and_zeros_of_the_padding_are_zeros() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(8, 3, 16, 16)
    plain = fxq.compile(model, x, calibration=[x], recipe=Recipe(corrections=()), target="reference")
    split = fxq.compile(model, x, calibration=[x], recipe=Recipe(corrections=("split_inputs",)), target="reference")
    layer = split.get_submodule("stem")
    assert isinstance(layer, QConv2d)
    assert torch.equal(layer.weight, torch.cat([plain.get_submodule("stem").weight] * 2, 1))
    blank = torch.zeros(1, 3, 16, 16)
    exact = (plain(blank) - split(blank)).abs().max()
    assert float(exact) == 0.0


@pytest.mark.parametrize("target", ["native", "onednn", "reference"])
def test_it_is_a_correction_of_a_recipe_on_every_target(target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1)).eval()
    x, sqnr = torch.randn(8, 3, 16, 16), {}
    for corrections in (("bias",), ("bias", "split_inputs")):
        gm = fxq.compile(model, x, calibration=[x], recipe=Recipe(corrections=corrections), target=target)
        sqnr[corrections] = distance(model(x), gm(x)).sqnr_db
        assert gm(x[:3]).shape == (3, 64, 16, 16)
    assert sqnr["bias", "split_inputs"] > sqnr["bias",] + 0.5


def test_a_linear_layer_behind_moves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 600), nn.ReLU(), nn.Linear(600, 4))
    _, out, record = _split(model, torch.randn(32, 3, 4, 4))
    assert [m.rule for m in record.matched] == ["split"]
    assert out.get_submodule("1").in_features == 96


def test_what_is_computed_from_the_input_in_float_is_an_input_too() -> None:
    class Normalised(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - 0.4) / 0.2)

    torch.manual_seed(0)
    _, out, record = _split(Normalised(), torch.rand(8, 3, 16, 16))
    assert [m.rule for m in record.matched] == ["split"]
    assert out.get_submodule("stem").in_channels == 6


def test_what_a_layer_made_is_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    _, _, record = _split(model, torch.randn(32, 16))
    assert not record.matched
    assert not record.refused


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.relu(self.stem(x) * 0.5) + x)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Net(nn.Conv2d(3, 12, 3, padding=1, groups=3)), {}, "`stem` is a grouped convolution"),
        (Net(nn.ConvTranspose2d(3, 16, 3, padding=1)), {}, "`stem` is a transposed convolution"),
        (Net(), {"most": 0.01}, "110,592 multiply-adds would come on top"),
        (Read(), {}, "reads it, which is no layer"),
    ],
)
def test_refusals(model: nn.Module, options: dict[str, Any], reason: str) -> None:
    torch.manual_seed(0)
    if isinstance(model, Net) and model.stem.out_channels == 12:
        model.body = nn.Conv2d(12, 64, 3, padding=1)
    _, _, record = _split(model, torch.randn(1, 3, 16, 16), **options)
    assert any(reason in r.reason for r in record.refused), record.refused
    assert not record.matched


def test_an_input_that_has_its_codes_already_gains_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 16, 16)).float() / 255
    _, _, record = _split(Net(), x)
    assert not record.matched
    assert "its output would go from" in record.refused[0].reason


def test_bad_options() -> None:
    with pytest.raises(InputError, match=r"(?s)copies is 3.*give 2 or 4"):
        SplitInputs(copies=3)
