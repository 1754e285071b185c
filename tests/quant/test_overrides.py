from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.errors import InputError
from fxq.ir.identify import get_module
from fxq.nn import QConv2d, QLinear
from fxq.passes import Calibrate, InsertObservers
from fxq.quant.observers import HistogramObserver, MinMaxObserver
from fxq.quant.overrides import Override
from fxq.quant.recipe import Recipe
from tests.targets.lowering import fuse


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.body(x)
        return self.fc(x.mean((2, 3)))


def _compiled(*overrides: Override) -> tuple[dict[str, type], dict[str, str]]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = fxq.compile(Net().eval(), x, calibration=[x], recipe=Recipe(overrides=overrides), target="reference")
    kinds = {str(n.target): type(get_module(gm, n)) for n in gm.graph.nodes if n.op == "call_module"}
    return kinds, {layer.module_path: layer.why_float for layer in fxq.report(gm).layers}


def test_a_layer_by_its_path() -> None:
    kinds, reasons = _compiled(Override("fc", quantise=False))
    assert kinds["fc"] is nn.Linear
    assert kinds["stem"] is QConv2d
    assert "the recipe keeps `fc` in float" in reasons["fc"]


def test_all_inside_a_module_a_glob_and_a_class() -> None:
    for where in ("body", "body.*", "bod*"):
        kinds, _ = _compiled(Override(where, quantise=False))
        assert kinds["body.0"] is not QConv2d
        assert kinds["body.2"] is not QConv2d
        assert kinds["stem"] is QConv2d
    kinds, _ = _compiled(Override(nn.Conv2d, quantise=False))
    assert QConv2d not in kinds.values()
    assert kinds["fc"] is QLinear


def test_a_later_override_wins() -> None:
    kinds, _ = _compiled(Override(nn.Conv2d, quantise=False), Override("stem"))
    assert kinds["stem"] is QConv2d
    assert kinds["body.2"] is not QConv2d


def test_options_of_what_a_layer_returns() -> None:
    x = torch.randn(2, 3, 8, 8)
    recipe = Recipe(activation="minmax", overrides=(Override("stem", activation="mse"),))
    observed = InsertObservers(recipe)(fuse(Net().eval(), x), x).graph_module
    observed = Calibrate([x])(observed, x).graph_module
    found = {n.name: get_module(observed, n) for n in observed.graph.nodes if n.op == "call_module"}
    assert isinstance(found["stem_observer"], HistogramObserver)
    assert isinstance(found["x_observer"], MinMaxObserver)


def test_functions_and_classes_pick_every_spelling() -> None:
    x = torch.randn(2, 3, 8, 8)
    gm = fuse(Net().eval(), x)
    for where in (torch.mean, "fc", nn.Linear):
        choices = Recipe(overrides=(Override(where, quantise=False),)).choices(gm)
        assert sum(choices.why_float(n) is not None for n in gm.graph.nodes) == 1, where


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("fcc", r"the override for `fcc` matches no layer\n(.|\n)*did you mean 'fc'"),
        ("layer4.*", r"matches no layer"),
        (nn.LSTM, r"the override for `LSTM` matches no layer"),
    ],
)
def test_one_that_matches_nothing_is_an_error(where: str | type[nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _compiled(Override(where, quantise=False))


def test_bad_options_are_found_when_it_is_made() -> None:
    with pytest.raises(InputError, match=r"unknown calibrator|unknown activation observer 'mze'"):
        Override("fc", activation="mze")
    with pytest.raises(InputError, match="an override is for 3"):
        Override(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="an override is a str"):
        Recipe(overrides=("fc",))  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["dynamic", "weight8", "weight4", "bf16", "fp16"])
def test_recipes_without_calibration_keep_a_layer_in_float(recipe: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval(), torch.randn(2, 64)
    gm = fxq.compile(model, x, recipe=Recipe(recipe, overrides=(Override("0", quantise=False),)))
    assert type(gm.get_submodule("0")) is nn.Linear
    if recipe in ("dynamic", "weight8", "weight4"):
        assert type(gm.get_submodule("1")) is not nn.Linear
        refused = {r.node: r.reason for p in fxq.report(gm).passes for r in p.refused}
        assert "the recipe keeps `0` in float" in refused.values()


@pytest.mark.parametrize("recipe", ["dynamic", "weight8", "weight4", "bf16", "fp16", "int8", "auto"])
def test_an_override_that_matches_nothing_is_an_error_in_every_recipe(recipe: str) -> None:
    model, x = nn.Sequential(nn.Linear(64, 64)).eval(), torch.randn(2, 64)
    chosen = Recipe(recipe, overrides=(Override("head", quantise=False),))
    with pytest.raises(InputError, match="the override for `head` matches no layer"):
        fxq.compile(model, x, recipe=chosen, calibration=[x] if recipe == "int8" else None)


def test_a_layer_that_one_call_keeps_in_float_stays_for_all() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    gm = fxq.compile(Twice().eval(), torch.randn(2, 64), recipe=Recipe("weight8", overrides=(Override("fc_1", False),)))
    assert type(gm.get_submodule("fc")) is nn.Linear


def test_options_that_a_recipe_does_not_look_at_are_errors() -> None:
    with pytest.raises(InputError, match=r"override for `fc` sets activation, percentile\n.*recipe 'dynamic' has no"):
        Recipe("dynamic", overrides=(Override("fc", activation="percentile", percentile=99.0),))
    with pytest.raises(InputError, match=r"recipe 'float' has an override for `Linear`\n.*it quantises nothing"):
        Recipe("float", overrides=(Override(nn.Linear, quantise=False),))
    Recipe("auto", overrides=(Override("fc", activation="entropy"),))  # may become int8


def test_an_override_for_an_empty_path_is_an_error() -> None:
    with pytest.raises(InputError, match="an override is for ''"):
        Override("", quantise=False)


def test_what_was_fused_goes_by_its_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    for where, wanted in (("1", "did you mean|known: '0'"), (nn.Conv1d, "did you mean 'Conv2d'")):
        recipe = fxq.Recipe(overrides=(fxq.Override(where, quantise=False),))
        with pytest.raises(InputError, match=rf"goes by that layer\n.*({wanted})"):
            fxq.compile(model, x, calibration=[x], recipe=recipe)
