"""Dropout stays active while a prepared model trains, wherever the fusing passes have been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.nn.dropping_attention import DroppingAttention
from fxq.nn.fake_quantisers import FakeQuantise
from fxq.nn.trainable import TrainableLayer
from tests.qat.networks import train
from tests.targets.blocks import Apply, with_layers

_X = (4, 6, 8)


def prepare(function: Callable[[Any, Tensor], Tensor], **layers: Callable[[], nn.Module]) -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.prepare_qat(with_layers(function, **layers)(), torch.randn(_X)).train()


def all_dropped(model: fx.GraphModule) -> Tensor:
    """What the model gives where every dropout drops everything, unquantised."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1.0
    fxq.qat.disable_fake_quant(model)
    out: Tensor = model(torch.randn(_X))
    return out


def finishes(model: fx.GraphModule) -> None:
    x = torch.randn(_X)
    train(model, 1, batch=lambda i: x)
    int8 = fxq.compile(model.eval(), x, target="reference")
    assert not any(isinstance(m, nn.Dropout | DroppingAttention) for m in int8.modules())
    with torch.no_grad():
        assert torch.equal(int8(x), model(x))


def fc() -> nn.Module:
    return nn.Linear(8, 8)


def drop() -> nn.Module:
    return nn.Dropout(0.3)


def test_between_a_value_and_its_reader_it_stands_behind_the_fake_quantiser() -> None:
    model = prepare(lambda m, x: m.b(m.drop(F.relu(m.a(x)))), a=fc, b=fc, drop=drop)
    (node,) = (n for n in model.graph.nodes if n.target == "drop")
    assert isinstance(model.get_submodule(str(node.args[0].target)), FakeQuantise)  # type: ignore[union-attr]
    bias = model.get_parameter("b.bias")
    assert torch.equal(all_dropped(model), bias.expand(4, 6, 8))
    finishes(prepare(lambda m, x: m.b(m.drop(F.relu(m.a(x)))), a=fc, b=fc, drop=drop))


def test_before_an_activation_it_goes_into_the_layer() -> None:
    model = prepare(lambda m, x: m.b(F.gelu(m.drop(m.a(x)))), a=fc, b=fc, drop=drop)
    layer = model.get_submodule("a")
    assert isinstance(layer, TrainableLayer)
    assert isinstance(layer.dropout, nn.Dropout)
    assert layer.dropout.p == 0.3
    assert torch.equal(all_dropped(model), model.get_parameter("b.bias").expand(4, 6, 8))
    finishes(prepare(lambda m, x: m.b(F.gelu(m.drop(m.a(x)))), a=fc, b=fc, drop=drop))


def test_before_a_residual_addition_only_the_branch_is_dropped() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x)
        y: Tensor = m.head(F.relu(h + m.drop(m.a(h))))
        return y

    model = prepare(block, stem=fc, a=fc, head=fc, drop=drop)
    dropped = all_dropped(model)
    layers = {name: model.get_submodule(name) for name in ("stem", "head")}
    torch.manual_seed(3)
    x = torch.randn(_X)
    torch.testing.assert_close(model(x), layers["head"](F.relu(layers["stem"](x))), rtol=1e-4, atol=1e-5)
    assert dropped.shape == _X
    finishes(prepare(block, stem=fc, a=fc, head=fc, drop=drop))


def test_functional_dropout_follows_the_mode_of_the_model() -> None:
    model = prepare(lambda m, x: m.b(F.dropout(m.a(x), 0.4, m.training)), a=fc, b=fc)
    (module,) = (m for m in model.modules() if isinstance(m, nn.Dropout))
    assert module.p == 0.4
    assert module.training
    assert not model.eval() or not module.training


def test_two_in_a_row_and_one_in_front_of_the_output() -> None:
    model = prepare(lambda m, x: m.d3(m.b(m.d2(m.d1(m.a(x))))), a=fc, b=fc, d1=drop, d2=drop, d3=drop)
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 3
    assert not all_dropped(model).any()


def test_attention_and_encoder_layers_keep_all_of_theirs() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.25, batch_first=True), 2, enable_nested_tensor=False
    )
    model = fxq.prepare_qat(Apply(lambda m, x: m.head(m.encoder(x)), encoder=encoder, head=fc()), torch.randn(_X))
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 6
    assert sum(isinstance(m, DroppingAttention) for m in model.modules()) == 2
    assert not fxq.report(model).notes
    model.train()
    x = torch.randn(_X)
    assert not torch.equal(model(x), model(x))
    finishes(model)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_a_whole_transformer_keeps_all_of_its_dropouts() -> None:
    torch.manual_seed(0)
    whole = nn.Transformer(8, 2, 1, 2, 16, dropout=0.25, batch_first=True, norm_first=True)
    model = fxq.prepare_qat(Apply(lambda m, x: m.whole(x, m.stem(x)), whole=whole, stem=fc()), torch.randn(_X))
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 3 + 2 * 4
    assert sum(isinstance(m, DroppingAttention) for m in model.modules()) == 1 + 2 * 2
    assert not fxq.report(model).notes
    finishes(model.train())


def test_behind_an_attention_module() -> None:
    def block(m: Any, x: Tensor) -> Tensor:
        y, _ = m.attention(x, x, x, need_weights=False)
        out: Tensor = m.head(x + m.drop(y))
        return out

    model = prepare(
        block, attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True), head=fc, drop=drop
    )  # fmt: skip
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 1
    assert not fxq.report(model).notes
    fxq.qat.disable_fake_quant(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1.0
    x = torch.randn(_X)
    torch.testing.assert_close(model(x), model.get_submodule("head")(x), rtol=1e-4, atol=1e-5)


def test_attention_drops_weights_in_training_mode_alone() -> None:
    torch.manual_seed(0)
    attention, q = DroppingAttention(0.5), torch.randn(2, 3, 5, 4)
    assert not torch.equal(attention(q, q, q), attention(q, q, q))
    assert torch.equal(attention.eval()(q, q, q), F.scaled_dot_product_attention(q, q, q))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_stochastic_depth_of_torchvision(p: float) -> None:
    shim = pytest.importorskip("benchmarks.torchvision_shim")
    try:
        torchvision = shim.import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed")
    from fxq.nn.stochastic_depth import StochasticDepth

    model = prepare(
        lambda m, x: m.head(x + m.depth(m.a(x))), a=fc, head=fc,
        depth=lambda: torchvision.ops.StochasticDepth(p, "row"),
    )  # fmt: skip
    (module,) = (m for m in model.modules() if isinstance(m, StochasticDepth))
    assert (module.p, module.mode, module.training) == (p, "row", True)
    finishes(model)
