"""``fxq.compile`` of a prepared model: the int8 module computes what the fake-quantised one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import fxq
from fxq.errors import CalibrationError, InputError
from fxq.ir.identify import get_module
from fxq.ir.stage import Stage, stage_of
from fxq.nn import onednn_available
from fxq.passes import InsertObservers
from fxq.pipelines import float_pipeline
from fxq.quant.observers import Observer
from fxq.tracing import trace
from tests.qat.networks import images, prepared, residual, train
from tests.targets.blocks import BLOCKS, Block
from tests.targets.lowering import trained

SCALES = pytest.mark.parametrize("scales", ["observed", "learned"])


def leaves(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def trained_block(block: Block, scales: str) -> fx.GraphModule:
    torch.manual_seed(0)
    model = trained(block.make())
    ready = fxq.prepare_qat(model, block.input(), scales=scales).train()
    train(ready, steps=2, lr=1e-3, batch=lambda i: block.input())
    return ready.eval()


@pytest.mark.parametrize(("name", "scales"), [
    *((name, "observed") for name in BLOCKS),
    *((name, "learned") for name in ("residual", "squeeze_excite", "transformer", "unbind_stack", "called_twice")),
])  # fmt: skip
def test_the_reference_target_gives_the_same_bits(name: str, scales: str) -> None:
    block = BLOCKS[name]
    ready = trained_block(block, scales)
    int8 = fxq.compile(ready, block.input(), target="reference")
    assert stage_of(int8) is Stage.INT8
    with torch.no_grad():
        for x in block.inputs():
            for got, wanted in zip(leaves(int8(x)), leaves(ready(x)), strict=True):
                assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", BLOCKS)
def test_fake_quantisers_stand_where_compile_observes(name: str) -> None:
    block = BLOCKS[name]
    torch.manual_seed(0)
    model, x = trained(block.make()), block.input()
    passes = float_pipeline()
    for name in ("inline_numbers", "fold_scale", "recognise_attention"):  # while a model trains, so do these
        passes = passes.without(name)
    wanted = InsertObservers()(passes(trace(model, x), x).graph_module, x).graph_module
    assert _observed(fxq.prepare_qat(model, x, verify=False)) == _observed(wanted)


def _observed(gm: fx.GraphModule) -> dict[str, str]:
    """Which value is watched by which module, by name."""
    calls = [n for n in gm.graph.nodes if isinstance(get_module(gm, n), Observer)]
    assert calls
    return {n.name: str(n.target) for n in calls}


@SCALES
@pytest.mark.skipif(not onednn_available(), reason="no oneDNN int8 kernels")
def test_the_onednn_target_is_within_one_quantum(scales: str) -> None:
    ready = prepared(scales=scales)
    train(ready)
    int8 = fxq.compile(ready.eval(), images(), target="onednn")
    middle = _codes(int8, images(7), "conv2")
    wanted = _codes(fxq.compile(ready, images(), target="reference"), images(7), "conv2")
    far = (middle.int() - wanted.int()).abs()
    assert int(far.max()) <= 1
    assert float((far > 0).float().mean()) <= 1e-3


def _codes(gm: fx.GraphModule, x: Tensor, name: str) -> Tensor:
    seen: dict[str, Tensor] = {}
    gm.get_submodule(name).register_forward_hook(lambda m, args, out: seen.__setitem__(name, out))
    with torch.no_grad():
        gm(x)
    assert seen[name].dtype is torch.uint8
    return seen[name]


def test_the_prepared_model_goes_on_training_after_it_was_compiled() -> None:
    ready = train(prepared()).eval()
    first = fxq.compile(ready, images(), target="reference")
    before = first(images(3))
    train(ready.train(), lr=0.1)
    second = fxq.compile(ready.eval(), images(), target="reference")
    assert torch.equal(first(images(3)), before)
    assert not torch.equal(second(images(3)), before)
    with torch.no_grad():
        assert torch.equal(second(images(3)), ready(images(3)))


def test_neither_example_inputs_nor_calibration_are_needed() -> None:
    ready = train(prepared()).eval()
    int8 = fxq.compile(ready, target="reference")
    with torch.no_grad():
        assert torch.equal(int8(images()), ready(images()))
    text = str(fxq.report(int8))
    assert "trained with fake quantisation" in text
    assert "3 weights and 4 values take the scales of their fake quantisers" in text
    for target in ("auto", "onednn") if onednn_available() else ("auto",):
        other = fxq.compile(ready, target=target)
        torch.testing.assert_close(other(images(1)), int8(images(1)), rtol=0.05, atol=0.02)
    given = fxq.compile(ready, images(), calibration=[images()], target="reference")
    assert torch.equal(given(images()), int8(images()))
    assert "served for example inputs at most" in str(fxq.report(given))


def test_dropout_and_batch_norm_are_gone() -> None:
    int8 = fxq.compile(train(prepared()).eval(), images(), target="reference")
    assert not any(isinstance(m, nn.Dropout | nn.BatchNorm2d) for m in int8.modules())


@SCALES
def test_a_model_that_saw_nothing_is_an_error(scales: str) -> None:
    ready = prepared(scales=scales).eval()
    with torch.no_grad():
        ready(images())
    with pytest.raises(CalibrationError, match=r"no fake quantiser has seen a value(.|\n)*train the prepared model"):
        fxq.compile(ready, images())


def test_a_model_in_training_mode_is_an_error() -> None:
    with pytest.raises(InputError, match=r"in training mode(.|\n)*model.eval\(\)"):
        fxq.compile(train(prepared()), images())


def test_another_recipe_is_an_error() -> None:
    with pytest.raises(InputError, match=r"the recipe is 'dynamic', and the model was prepared for int8"):
        fxq.compile(train(prepared()).eval(), images(), recipe="dynamic")


def test_a_prepared_model_inside_another_module_is_an_error() -> None:
    with pytest.raises(InputError, match=r"a Sequential has a prepared model inside(.|\n)*attribute `module`"):
        fxq.compile(nn.Sequential(train(prepared())).eval(), images())


def test_weights_that_diverged_are_named() -> None:
    ready = train(prepared()).eval()
    with torch.no_grad():
        ready.get_parameter("conv2.weight")[0] = float("nan")
    with pytest.raises(InputError, match=r"holds NaN(.|\n)*conv2"):
        fxq.compile(ready, images())


def test_training_learns_and_int8_keeps_it() -> None:
    """The labels are a function of the images: a network that trains gets most of them right."""
    torch.manual_seed(0)
    x = torch.randn(256, 3, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long()
    ready = fxq.prepare_qat(residual(), x[:4]).train()
    optimiser = torch.optim.Adam(ready.parameters(), lr=0.01)
    for _ in range(4):
        for i in range(0, 256, 32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(ready(x[i : i + 32]), y[i : i + 32]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    int8 = fxq.compile(ready.eval(), x[:4])
    with torch.no_grad():
        right = float((int8(x).argmax(1) == y).float().mean())
        assert right > 0.85
        assert right == pytest.approx(float((ready(x).argmax(1) == y).float().mean()), abs=0.01)


@pytest.mark.parametrize("scales", ["observed", "learned"])
def test_weights_of_seven_bits_are_trained_as_such(scales: str) -> None:
    ready = train(prepared(fxq.Recipe(reduce_range=True), scales=scales)).eval()
    with torch.no_grad():
        for name, parameter in ready.named_parameters():
            if name.endswith("quantiser.step"):
                parameter.mul_(0.5)  # as if training had made the scales smaller
    int8 = fxq.compile(ready, images(), target="reference")
    assert max(int(int8.get_submodule(n).weight.abs().max()) for n in ("conv1", "conv2", "fc")) == 63  # type: ignore[union-attr, operator, arg-type]
    with torch.no_grad():
        assert torch.equal(int8(images(1)), ready(images(1)))


@pytest.mark.parametrize("target", ["native", "auto"])
def test_every_target_takes_a_trained_model(target: str) -> None:
    ready = train(prepared()).eval()
    try:
        int8 = fxq.compile(ready, images(), target=target)
    except fxq.TargetError:
        pytest.skip(f"no target {target} here")
    with torch.no_grad():
        torch.testing.assert_close(int8(images(1)), ready(images(1)), rtol=0.05, atol=0.02)


def test_mixed_puts_half_precision_between() -> None:
    ready = train(prepared("mixed")).eval()
    int8 = fxq.compile(ready, images(), recipe="mixed")
    assert any(p.name == "lower_half" for p in fxq.report(int8).passes)
    with torch.no_grad():
        torch.testing.assert_close(int8(images(1)), ready(images(1)), rtol=0.05, atol=0.05)
