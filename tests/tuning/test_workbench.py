from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.passes import EqualiseLayers
from fxq.quant.calibration import Calibration
from fxq.tuning.layers import int8_layers
from fxq.tuning.workbench import Workbench

#: With the correction that looks at one layer alone, so that variants take over the others.
QUICK = fxq.Recipe("int8", corrections=("bias",))
RECIPES = [
    QUICK,
    fxq.Recipe("int8"),
    fxq.Recipe("int8", activation="mse", weight_range="mse"),
    fxq.Recipe(
        "int8", activation="percentile", percentile=99.0, overrides=(fxq.Override("back", weight="per_tensor"),)
    ),
    fxq.Recipe("int8", activation="auto"),
]


class Residuals(nn.Module):
    """Two blocks with skips and a pooling that shares its scale with what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (self.first(x) + x).relu()
        x = (self.second(x) + x).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.activation}-{r.corrections[0]}")
def test_quantises_as_compile_does(hard_task, recipe, histograms):
    bench = Workbench(hard_task.model, None, hard_task.loader, "reference", histograms=histograms)
    ours, _ = bench.lower(bench.quantise(recipe))
    theirs = fxq.compile(hard_task.model, calibration=hard_task.loader, recipe=recipe, target="reference")
    assert torch.equal(ours(hard_task.images), theirs(hard_task.images))


def test_recipes_of_one_float_graph_measure_mean_errors_once(hard_task, monkeypatch):
    runs = []
    again = Calibration.again
    monkeypatch.setattr(Calibration, "again", lambda self: runs.append(self) or again(self))
    bench = Workbench(hard_task.model, None, hard_task.loader, "reference", histograms=True)
    for activation in ("mse", "percentile", "minmax"):
        bench.quantise(fxq.Recipe("int8", activation=activation, corrections=("bias",)))
    assert len(runs) == 1
    wider = fxq.Recipe("int8", weight_range="mse", corrections=("bias",))  # other weights have other errors
    ours, _ = bench.lower(bench.quantise(wider))
    assert len(runs) == 2
    theirs = fxq.compile(hard_task.model, calibration=hard_task.loader, recipe=wider, target="reference")
    assert torch.equal(ours(hard_task.images), theirs(hard_task.images))


@pytest.mark.parametrize("corrections", [("split_inputs", "bias"), ("equalise", "bias"), ("bias", "batch_norm")])
def test_corrected_weights_are_not_taken_for_the_model_s(hard_task, corrections):
    bench = Workbench(hard_task.model, None, hard_task.loader, "reference")
    bench.quantise(QUICK)
    recipe = fxq.Recipe("int8", corrections=corrections)
    ours, _ = bench.lower(bench.quantise(recipe))
    theirs = fxq.compile(hard_task.model, calibration=hard_task.loader, recipe=recipe, target="reference")
    assert torch.equal(ours(hard_task.images), theirs(hard_task.images))


def test_recipes_with_other_corrections_behind_the_observers_equalise_once(hard_task, monkeypatch):
    runs = []
    rewrite = EqualiseLayers.rewrite
    monkeypatch.setattr(EqualiseLayers, "rewrite", lambda self, *args: runs.append(self) or rewrite(self, *args))
    bench = Workbench(hard_task.model, None, hard_task.loader, "reference")
    for corrections in (("equalise", "bias"), ("equalise", "bias_accurate")):
        recipe = fxq.Recipe("int8", corrections=corrections)
        ours, _ = bench.lower(bench.quantise(recipe))
    assert len(runs) == 1
    theirs = fxq.compile(hard_task.model, calibration=hard_task.loader, recipe=recipe, target="reference")
    assert torch.equal(ours(hard_task.images), theirs(hard_task.images))


class Branches(nn.Module):
    """Two layers that read one int8 value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.left(x).relu() * self.right(x)


@pytest.mark.parametrize("corrections", [(), ("bias",), ("bias_accurate",)])
def test_a_variant_keeps_a_layer_in_float_that_reads_an_int8_value(corrections):
    torch.manual_seed(0)
    model, loader = Branches().eval(), [torch.randn(4, 3, 8, 8) for _ in range(3)]
    recipe, kept = fxq.Recipe("int8", corrections=corrections), fxq.Override("left", quantise=False)
    bench = Workbench(model, None, loader, "reference")
    ours, _ = bench.lower(bench.variant(bench.quantise(recipe), [kept]))
    theirs = fxq.compile(
        model, calibration=loader, recipe=fxq.Recipe("int8", corrections=corrections, overrides=(kept,)),
        target="reference",
    )  # fmt: skip
    assert torch.equal(ours(loader[0]), theirs(loader[0]))


@pytest.mark.parametrize("where", ["stem.0", "first.0", "second.0", "head", "mean"])
@pytest.mark.parametrize("alone", [False, True])
def test_a_variant_is_what_compile_gives_under_its_overrides(where, alone):
    torch.manual_seed(0)
    model, loader = Residuals().eval(), [torch.randn(4, 3, 8, 8) for _ in range(3)]
    bench = Workbench(model, None, loader, "reference")
    base = bench.quantise(QUICK)
    assert where in {layer.name for layer in int8_layers(base.float_graph, base.recipe, bench.inputs)}
    changes = (fxq.Override("*", quantise=False), fxq.Override(where)) if alone else (fxq.Override(where, False),)
    ours, _ = bench.lower(bench.variant(base, changes))
    # example inputs of the loader's batch size, as nothing may be left to quantise
    recipe = fxq.Recipe("int8", overrides=changes, corrections=("bias",))
    theirs = fxq.compile(model, loader[0], calibration=loader, recipe=recipe, target="reference")
    assert torch.equal(ours(loader[0]), theirs(loader[0]))


def test_the_data_runs_once_for_all_calibrators(hard_task):
    passes = 0

    class Counting:
        def __iter__(self):
            nonlocal passes
            passes += 1
            return iter(hard_task.loader)

    bench = Workbench(hard_task.model, hard_task.loader[0], Counting(), "reference", histograms=True)
    begun = passes
    for activation in ("minmax", "mse", "entropy", "percentile", "auto"):
        base = bench.quantise(fxq.Recipe("int8", activation=activation, corrections=("bias",)))
        bench.variant(base, (fxq.Override("hard", quantise=False),))
    assert passes - begun <= 1


def test_the_digest_of_the_data_knows_samples_and_not_their_order(hard_task):
    def digest(batches: list[Tensor]) -> str:
        bench = Workbench(hard_task.model, hard_task.loader[0], batches, "reference")
        base = bench.quantise(QUICK)
        return bench.statistics(base.float_graph).digest

    samples = torch.cat(hard_task.loader)
    assert digest(list(samples.split(8))) == digest(list(samples.flip(0).split(5)))
    assert digest(list(samples.split(8))) != digest(list((samples + 1e-3).split(8)))


def test_layers_have_costs_that_do_not_depend_on_the_machine(hard_task):
    bench = Workbench(hard_task.model, None, hard_task.loader, "reference")
    base = bench.quantise(QUICK)
    layers = {layer.name: layer for layer in int8_layers(base.float_graph, base.recipe, bench.inputs)}
    assert layers["front"].macs == 2 * 12 * 12 * 9 * 64  # two samples
    assert layers["front"].penalty_s > layers["head"].penalty_s > 0
    assert isinstance(bench.data, Calibration)
