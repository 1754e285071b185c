"""``fxq.prepare_qat``: what it places where, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxq
from fxq.errors import CalibrationError, InputError
from fxq.nn.fake_quantisers import FakeQuantise, LearnedFakeQuantise
from fxq.nn.trainable import TrainableLayer, TrainableNorm
from fxq.qat.switches import is_prepared
from tests.qat.networks import Residual, images, loss, prepared, residual, train


def test_the_graph_is_the_fused_one_with_a_fake_quantiser_where_compile_observes() -> None:
    model = prepared()
    assert [n.name for n in model.graph.nodes] == [
        "x", "x_observer", "conv1", "conv1_observer", "conv2", "conv2_observer", "mean", "mean_observer", "drop", "fc",
        "output",
    ]  # fmt: skip
    kinds = {n: type(m).__name__ for n, m in model.named_modules() if n in ("conv1", "conv2", "fc", "drop")}
    assert kinds == {"conv1": "TrainableLayer", "conv2": "TrainableLayer", "fc": "TrainableLayer", "drop": "Dropout"}
    assert isinstance(model.get_submodule("conv1.norm"), nn.BatchNorm2d)
    assert "4 fake quantisers of activations, 3 of weights; 2 batch norms train folded" in str(fxq.report(model))


def test_the_callers_model_is_neither_shared_nor_changed() -> None:
    for mode in (False, True):
        original = residual().train(mode)
        before = copy.deepcopy(original.state_dict())
        model = fxq.prepare_qat(original, images())
        assert model.training is mode
        assert {id(t) for t in original.state_dict(keep_vars=True).values()}.isdisjoint(
            id(t) for t in model.state_dict(keep_vars=True).values()
        )
        train(model.train())
        assert original.training is mode
        assert all(torch.equal(t, before[k]) for k, t in original.state_dict().items())


def test_training_starts_from_the_weights_that_were_given() -> None:
    original, model = residual(), prepared().eval()
    for name in ("conv1", "conv2", "fc"):
        assert torch.equal(model.get_parameter(f"{name}.weight"), original.get_parameter(f"{name}.weight"))
    fxq.qat.disable_fake_quant(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), original(images()), rtol=1e-4, atol=1e-5)


def test_without_fake_quantisation_it_trains_as_the_float_model_does() -> None:
    original, model = residual().train(), prepared()
    original.drop.p = model.drop.p = 0.0  # type: ignore[union-attr, assignment]
    fxq.qat.disable_fake_quant(model)
    train(original)
    train(model)
    for name in ("conv1.weight", "fc.weight"):
        torch.testing.assert_close(model.get_parameter(name), original.get_parameter(name), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.get_buffer("conv2.norm.running_var"), original.bn2.running_var)  # type: ignore[arg-type]


def test_frozen_parameters_stay_frozen() -> None:
    original = residual()
    original.conv1.weight.requires_grad_(False)
    model = fxq.prepare_qat(original, images()).train()
    before = original.conv1.weight.clone()
    train(model)
    assert not model.get_parameter("conv1.weight").requires_grad
    assert torch.equal(model.get_parameter("conv1.weight"), before)


def test_overrides_leave_layers_in_float_where_they_train_as_before() -> None:
    recipe = fxq.Recipe("int8", overrides=(fxq.Override("conv2", quantise=False), fxq.Override("conv1", momentum=0.5)))
    model = prepared(recipe)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, TrainableLayer)}
    assert layers["conv2"].quantiser is None
    assert layers["conv2"].norm is not None
    assert layers["conv1"].quantiser is not None
    train(model)
    int8 = fxq.compile(model.eval(), images(), target="reference")
    assert type(int8.get_submodule("conv2")).__name__ == "FusedConv2d"
    with torch.no_grad():
        torch.testing.assert_close(int8(images()), model(images()), rtol=1e-5, atol=1e-5)


def test_calibration_data_gives_the_ranges_to_start_from() -> None:
    recipe = fxq.Recipe("int8", activation="percentile", percentile=90.0, corrections=())
    batches = [images(i) for i in range(3)]
    model = prepared(recipe, calibration=batches)
    ptq = fxq.compile(residual(), calibration=batches, recipe=recipe, target="reference")
    quantiser = model.get_submodule("observers.x")
    assert isinstance(quantiser, FakeQuantise)
    assert quantiser.qparams().scale == pytest.approx(ptq.get_submodule("x_quantize").output.scale, rel=1e-3)  # type: ignore[union-attr]
    int8 = fxq.compile(model.eval(), images())  # never trained
    assert int8(images()).shape == (6, 5)


def test_the_first_calibration_batch_serves_as_example() -> None:
    model = fxq.prepare_qat(residual(), calibration=[images(i) for i in range(2)])
    assert is_prepared(model)


@pytest.mark.parametrize("scales", ["observed", "learned"])
def test_values_of_one_group_share_a_fake_quantiser(scales: str) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.cat([self.a(x), 5 * self.b(x)], 1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = fxq.prepare_qat(Joined(), images(), scales=scales).train()
    calls = [n for n in model.graph.nodes if n.op == "call_module" and str(n.target).startswith("observers.")]
    shared = max((str(n.target) for n in calls), key=[str(n.target) for n in calls].count)
    assert [n.args[1:] for n in calls if n.target == shared] == [(), (1,), (2,)]
    train(model, 2)
    quantiser = model.get_submodule(shared)
    assert isinstance(quantiser, LearnedFakeQuantise if scales == "learned" else FakeQuantise)
    assert float(quantiser.maximum[1]) > 2 * float(quantiser.maximum[0])  # type: ignore[index, arg-type]
    assert quantiser.qparams().range[1] > 2 * float(quantiser.maximum[0])  # type: ignore[operator, union-attr, index, arg-type]


def test_batch_norms_that_cannot_be_folded_train_by_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    ready = fxq.prepare_qat(model, images()).train()
    norms = [m for m in ready.modules() if isinstance(m, TrainableNorm)]
    assert len(norms) == 2
    before = norms[0].norm.running_mean.clone()  # type: ignore[union-attr]
    loss(ready(images())).backward()  # type: ignore[no-untyped-call]
    assert not torch.equal(norms[0].norm.running_mean, before)  # type: ignore[arg-type]
    int8 = fxq.compile(ready.eval(), images(), target="reference")
    assert sum(type(m).__name__ == "QBatchNorm" for m in int8.modules()) == 1  # the other has a float input
    with torch.no_grad():
        assert torch.equal(int8(images(1)), ready(images(1)))


def test_a_layer_that_is_called_twice_trains_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(F.relu(self.shared(self.stem(x))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    ready = fxq.prepare_qat(Twice(), images()).train()
    assert sum(isinstance(m, TrainableLayer) for m in ready.modules()) == 2
    train(ready)
    int8 = fxq.compile(ready.eval(), images(), target="reference")
    with torch.no_grad():
        assert torch.equal(int8(images(1)), ready(images(1)))


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(self.body(self.embedding(tokens))))  # type: ignore[no-any-return]

    tokens = torch.arange(8).view(2, 4)
    ready = fxq.prepare_qat(Tied(), tokens).train()
    assert ready.get_parameter("head.weight") is ready.get_parameter("embedding.weight")
    train(ready, batch=lambda i: tokens)
    int8 = fxq.compile(ready.eval(), tokens, target="reference")
    with torch.no_grad():
        assert torch.equal(int8(tokens), ready(tokens))


def test_models_that_int8_does_nothing_for_say_so() -> None:
    ready = fxq.prepare_qat(nn.Sequential(nn.LayerNorm(4), nn.Softmax(-1)), torch.randn(2, 4))
    assert "nothing is fake-quantised" in str(fxq.report(ready))
    doubled = fxq.prepare_qat(residual().double(), images().double())
    assert [note for note in fxq.report(doubled).notes if "weights are float64" in note and "model.float()" in note]


def test_a_computed_weight_trains_as_it_is() -> None:
    torch.manual_seed(0)
    frozen = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)).requires_grad_(False)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(
        8 * 36, 8), frozen)  # fmt: skip
    ready = fxq.prepare_qat(model, images()).train()
    assert [name for name, p in ready.named_parameters() if not p.requires_grad] == ["4.weight", "4.bias"]
    assert "`0.weight` is computed by _WeightNorm: its value was taken, and trains as it is" in fxq.report(ready).notes
    train(ready)
    int8 = fxq.compile(ready.eval(), images(), target="reference")
    with torch.no_grad():
        assert torch.equal(int8(images()), ready(images()))
    assert "parametrizations" in dict(model[0].named_children())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"recipe": "dynamic"}, r"the recipe 'dynamic' does not train(.|\n)*recipe='int8'"),
    ({"recipe": "in8"}, r"unknown recipe 'in8'(.|\n)*'int8'"),
    ({"scales": "lerned"}, r"unknown scales 'lerned'(.|\n)*'learned'"),
    ({"example_inputs": None}, "there are no example inputs"),
    ({"recipe": fxq.Recipe(overrides=(fxq.Override("conv3"),))}, r"matches no layer(.|\n)*'conv1'"),
    ({"model": print}, "the model is a builtin_function_or_method"),
    ({"example_inputs": torch.randn(1, 4, 8, 8)}, "does not run on the example inputs"),
])  # fmt: skip
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fxq.prepare_qat(**{"model": residual(), "example_inputs": images(), **arguments})  # type: ignore[arg-type]


def test_bad_models_and_data() -> None:
    with pytest.raises(InputError, match="prepared already"):
        fxq.prepare_qat(prepared(), images())
    broken = residual()
    with torch.no_grad():
        broken.fc.bias[2] = float("nan")
    with pytest.raises(InputError, match=r"holds NaN(.|\n)*layer `fc`"):
        fxq.prepare_qat(broken, images())
    with pytest.raises(CalibrationError):
        fxq.prepare_qat(residual(), images(), calibration=[])
    assert isinstance(residual(), Residual)
