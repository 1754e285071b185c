"""A trained graph becomes one with explicit quantisation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fxq.errors import CalibrationError
from fxq.ir.stage import Stage, stage_of
from fxq.manager.stages import stage_violation
from fxq.nn import QDQ_LAYERS, dequantize, quantize
from fxq.nn.fake_quantisers import FakeQuantise
from fxq.passes.convert_fake_quant import ConvertFakeQuant
from tests.qat.networks import images, prepared, train


@pytest.mark.parametrize("scales", ["observed", "learned"])
def test_the_graph_has_literals_int8_weights_and_nothing_that_trains(scales: str) -> None:
    model = train(prepared(scales=scales)).eval()
    state = copy.deepcopy(model.state_dict())
    out, record = ConvertFakeQuant()(model)  # type: ignore[arg-type]
    assert stage_of(out) is Stage.QDQ
    assert stage_violation(out) is None
    assert sum(n.target is quantize for n in out.graph.nodes) == 4
    assert next(n.name for n in out.graph.nodes if n.target is dequantize) == "x_dequantize"
    assert all(type(out.get_submodule(name)) in QDQ_LAYERS.values() for name in ("conv1", "conv2", "fc"))
    assert not list(out.parameters())
    assert {m.rule for m in record.matched} == {"activations", "weights", "dropout"}
    assert all(str(v) == str(state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("scales", ["observed", "learned"])
def test_weights_get_the_codes_of_their_fake_quantisers(scales: str) -> None:
    model = train(prepared(scales=scales)).eval()
    out = ConvertFakeQuant()(model).graph_module  # type: ignore[arg-type]
    layer, trained = out.get_submodule("conv1"), model.get_submodule("conv1")
    rows, _ = trained.folded()  # type: ignore[operator]
    wanted = trained.quantiser(rows, trained.gain_size())  # type: ignore[operator, union-attr]
    assert torch.equal(layer.dequantized_weight(), wanted.detach())  # type: ignore[operator]


def test_float_arithmetic_is_the_same_up_to_the_order_of_sums() -> None:
    model = train(prepared()).eval()
    out = ConvertFakeQuant()(model).graph_module  # type: ignore[arg-type]
    torch.testing.assert_close(out(images(3)), model(images(3)).detach(), rtol=1e-4, atol=1e-5)


def test_one_value_that_was_never_seen_is_named() -> None:
    model = train(prepared()).eval()
    quantiser = model.get_submodule("observers.conv2")
    assert isinstance(quantiser, FakeQuantise)
    quantiser.set_switches([True, True, False])
    with pytest.raises(CalibrationError, match=r"1 of 4 fake quantisers have seen no value(.|\n)*`conv2`"):
        ConvertFakeQuant()(model)  # type: ignore[arg-type]
    assert isinstance(model, nn.Module)
