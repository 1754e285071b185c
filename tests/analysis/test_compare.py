"""fxq.compare: known errors come out exactly, values are matched through rewrites, nothing is changed."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.analysis import Comparison, compare
from fxq.analysis.error_sums import ErrorSums
from fxq.errors import CalibrationError, InputError
from fxq.ir.rewriter import Rewriter
from fxq.nn import Epilogue, QLinear, dequantize, fuse_layer, quantize, quantize_layer
from fxq.quant.qparams import QParams
from fxq.tracing import trace

STEP = 1 + 2**-4  # an error of one sixteenth: exact in float32 on small integers
SQNR = 10 * math.log10(2**8)


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


class Net(nn.Module):
    """Three linear layers on small integers, so that every sum is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, bias=False)
        self.act = nn.ReLU()
        self.second = nn.Linear(6, 6, bias=False)
        self.third = nn.Linear(6, 3, bias=False)
        for i, layer in enumerate((self.first, self.second, self.third)):
            layer.weight.data = integers(*layer.weight.shape, seed=i + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.act(self.first(x))))  # type: ignore[no-any-return]


def scaled(model: nn.Module, name: str, factor: float = STEP) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_submodule(name).weight.mul_(factor)  # type: ignore[operator]
    return twin


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    return integers(8, 4)


def errors(comparison: Comparison) -> dict[str, float]:
    return {layer.module_path: layer.sqnr_db for layer in comparison.layers}


def test_equal_models_have_an_infinite_ratio(net: nn.Module, x: Tensor) -> None:
    found = compare(net, trace(net, x), x)
    assert list(errors(found)) == ["first", "act", "second", "third"]
    assert set(errors(found).values()) == {math.inf}
    assert (found.output.sqnr_db, found.output.cosine, found.output.max_abs) == (math.inf, 1.0, 0.0)
    assert found.uncompared == ()


def test_a_known_error_is_measured_exactly_where_it_enters(net: nn.Module, x: Tensor) -> None:
    found = compare(net, trace(scaled(net, "second"), x), x)
    assert errors(found) == {"first": math.inf, "act": math.inf, "second": pytest.approx(SQNR, abs=1e-12),
                             "third": pytest.approx(SQNR, abs=1e-12)}  # fmt: skip
    expected = net(x).detach()
    assert found.output.max_abs == float(expected.abs().max()) / 16
    assert found.output.scale == float(expected.abs().max())
    assert found.output.cosine == pytest.approx(1.0, abs=1e-15)


def test_the_worst_layer_stands_first(net: nn.Module, x: Tensor) -> None:
    worse = scaled(scaled(net, "first", 1 + 2**-6), "second")
    names = list(errors(compare(net, trace(worse, x), x)))
    assert names[2:] == ["first", "act"]
    assert set(names[:2]) == {"second", "third"}


def test_batches_add_up_to_one_large_batch(net: nn.Module) -> None:
    x, worse = integers(12, 4), scaled(net, "second", 1.5)
    whole, parts = compare(net, worse, x), compare(net, worse, [x[:5], x[5:10], x[10:]])
    assert (whole.batches, parts.batches) == (1, 3)
    assert whole.layers == parts.layers
    assert whole.output == parts.output


def test_labels_beside_the_input_are_left_out(net: nn.Module, x: Tensor) -> None:
    plain = compare(net, scaled(net, "first"), [x])
    labels = torch.zeros(8, dtype=torch.long)
    assert compare(net, scaled(net, "first"), [(x, labels)]).output == plain.output
    assert compare(net, scaled(net, "first"), (x, labels)).output == plain.output
    assert compare(net, trace(net, x), {"x": x}).output.sqnr_db == math.inf


# -- values through rewrites ------------------------------------------------------------------------------------------


def node_named(rw: Rewriter, name: str) -> fx.Node:
    (node,) = (n for n in rw.graph.nodes if n.name == name)
    assert isinstance(node, fx.Node)
    return node


def fused(gm: fx.GraphModule) -> fx.GraphModule:
    """Fuse the ReLU into the first layer, as a pass does it."""
    rw = Rewriter(gm, "fuse")
    layer, act = node_named(rw, "first"), node_named(rw, "act")
    with rw.rule("linear_relu", act, layer):
        rw.set_module(layer, fuse_layer(rw.gm.get_submodule("first"), Epilogue("relu")))
        rw.replace(act, layer)
    return rw.finish()


OUTPUT = QParams.from_range(-160.0, 160.0)


def with_qdq(gm: fx.GraphModule) -> fx.GraphModule:
    """Quantise the weight of the second layer, and its result."""
    rw = Rewriter(gm, "quantise")
    layer = node_named(rw, "second")
    with rw.rule("weights", layer):
        rw.set_module(layer, quantize_layer(rw.gm.get_submodule("second")))
    literals = (OUTPUT.scale, OUTPUT.zero_point)
    with rw.rule("activations", layer):
        codes = rw.call_function(quantize, (layer, *literals), after=layer, like=layer, name="codes")
        real = rw.call_function(dequantize, (codes, *literals), after=codes, like=layer, name="real")
        rw.replace_uses(layer, real, only=lambda user: user not in (codes, real))
    return rw.finish()


def lowered(gm: fx.GraphModule, source: QParams) -> fx.GraphModule:
    """Let an int8 module compute the second layer, with a view of its codes behind it."""
    rw = Rewriter(gm, "lower")
    layer, old = node_named(rw, "second"), node_named(rw, "codes")
    (value,) = layer.all_input_nodes
    with rw.rule("int8", layer, old):
        codes = rw.call_function(quantize, (value, source.scale, source.zero_point), before=layer, like=value)
        rw.set_module(layer, QLinear.from_qdq(rw.gm.get_submodule("second"), source, OUTPUT))  # type: ignore[arg-type]
        rw.update(layer, args=(codes,))
        view = rw.call_function(torch.flatten, (layer, 1), after=layer, like=layer)
        rw.replace(old, view)
    return rw.finish()


def test_a_fused_layer_is_compared_with_the_last_operation_in_it(net: nn.Module, x: Tensor) -> None:
    found = compare(net, fused(trace(scaled(net, "first"), x)), x)
    assert found["first"].reference == "act"
    assert found["first"].kind == "FusedLinear"
    assert found["first"].sqnr_db == pytest.approx(SQNR, abs=1e-12)
    assert list(errors(found).values()) == [pytest.approx(SQNR, abs=1e-12)] * 3


def test_quantised_values_are_compared_as_their_readers_see_them(net: nn.Module, x: Tensor) -> None:
    qdq = with_qdq(fused(trace(net, x)))
    found = compare(net, qdq, x)
    assert [layer.name for layer in found.layers if layer.sqnr_db == math.inf] == ["first"]
    hidden = net.act(net.first(x)).detach()  # type: ignore[operator]
    expected = net.second(hidden).detach()  # type: ignore[operator]
    codes = quantize(qdq.get_submodule("second")(hidden), OUTPUT.scale, OUTPUT.zero_point)
    error = expected - dequantize(codes, OUTPUT.scale, OUTPUT.zero_point)
    assert found["second"].max_abs == float(error.abs().max())
    ratio = float(expected.double().square().sum() / error.double().square().sum())
    assert found["second"].sqnr_db == pytest.approx(10 * math.log10(ratio), abs=1e-9)


def test_int8_and_qdq_graphs_compare_alike(net: nn.Module, x: Tensor) -> None:
    qdq = with_qdq(fused(trace(net, x)))
    int8 = lowered(qdq, QParams(1.0, 0))  # the hidden values are small whole numbers: their codes lose nothing
    before, after = compare(net, qdq, x), compare(net, int8, x)
    assert after["second"].kind == "QLinear"
    assert after["second"].reference == "second"
    assert errors(after) == errors(before)
    assert after.uncompared == ()


class Residual(nn.Module):
    """A transformer's block in small: its residual stream stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.last = (
            nn.LayerNorm(16),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x))  # type: ignore[no-any-return]


def test_a_residual_in_float_is_compared_with_the_sum_and_its_layer_with_the_layer() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(8, 5, 16)
    int8 = fxq.compile(model, x, calibration=[x], target="reference")
    found = compare(model, int8, [x], attribute=True)
    pairs = {layer.name: layer.reference for layer in found.layers}
    assert (pairs["down"], pairs["down_add"]) == ("down", "add")
    assert all(layer.sqnr_db > 30 for layer in found.layers), found
    assert not found.uncompared


def test_operations_without_a_counterpart_are_listed(net: nn.Module, x: Tensor) -> None:
    rw = Rewriter(trace(net, x), "insert")
    third = node_named(rw, "third")
    extra = rw.call_function(torch.mul, (third.all_input_nodes[0], 2.0), before=third, name="doubled")
    rw.update(third, args=(extra,))
    found = compare(net, rw.finish(), x)
    assert [(u.name, u.reason) for u in found.uncompared] == [
        ("doubled", "not made from an operation of the reference")
    ]
    assert "not compared: third (mul): not made from an operation" in str(found)


def test_graphs_of_two_histories_are_matched_by_module(net: nn.Module, x: Tensor) -> None:
    class Wider(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0)

    other = Wider().eval()
    found = compare(net, trace(scaled(other, "third"), x), x)
    assert errors(found)["second"] == math.inf
    assert errors(found)["third"] == pytest.approx(SQNR, abs=1e-12)
    strange = compare(net, fused(trace(other, x)), x)
    assert [u.module_path for u in strange.uncompared] == ["", "first"]


def test_two_compiled_graphs_can_be_compared(net: nn.Module, x: Tensor) -> None:
    found = compare(fused(trace(net, x)), with_qdq(fused(trace(net, x))), x)
    assert found["first"].sqnr_db == math.inf
    assert found["second"].reference == "second"
    assert 20 < found["second"].sqnr_db < 80
    int8 = lowered(with_qdq(fused(trace(net, x))), QParams(1.0, 0))
    assert set(errors(compare(int8, copy.deepcopy(int8), x)).values()) == {math.inf}


# -- limits ------------------------------------------------------------------------------------------------------------


def test_models_of_different_outputs_are_refused(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"outputs of the two models differ.*shapes \(8, 3\) and \(8, 6\)"):
        compare(net, nn.Sequential(nn.Linear(4, 6)).eval(), x)


def test_data_that_cannot_be_used_is_refused(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        compare(net, net, [])
    with pytest.raises(InputError, match="the data to compare on is a callable"):
        compare(net, net, lambda model: model(x))
    with pytest.raises(CalibrationError, match="batch 1 holds NaN"):
        compare(net, net, [x, x * math.nan])


class Counting(nn.Module):
    """Holds a buffer that it writes to, and branches on its data."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x.relu_() if float(x.sum()) else x


def test_models_and_inputs_stay_as_they_are(x: Tensor) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), Counting(), nn.BatchNorm1d(4), nn.Dropout()).train()
    kept, state, random = x.clone(), copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    assert compare(model, copy.deepcopy(model), x).output.sqnr_db == math.inf
    assert torch.equal(x, kept)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_values_written_in_place_are_compared_as_they_were(x: Tensor) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mul_(0)  # type: ignore[no-any-return]

    model = InPlace().eval()
    model.layer.weight.data = integers(4, 4, seed=5)
    found = compare(model, scaled(model, "layer"), x)
    assert found["layer"].sqnr_db == pytest.approx(SQNR, abs=1e-12)


def test_print_and_dict(net: nn.Module, x: Tensor) -> None:
    found = compare(net, trace(scaled(net, "second"), x), [x, x])
    lines = str(found).splitlines()
    assert lines[0] == "Error against the reference over 2 batches, worst layers first"
    assert [line.split()[0] for line in lines[4:8]] == ["second", "third", "first", "act"]
    assert lines[-1].split()[:3] == ["output", "24.1", "dB"]
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["layers"][-1]["sqnr_db"] is None
    assert plain["batches"] == 2


@pytest.mark.parametrize(
    ("reference", "actual", "sqnr_db", "max_abs"),
    [
        ([1.0, math.inf, math.nan], [1.0, math.inf, math.nan], math.inf, 0.0),
        ([1.0, 2.0], [1.0, math.nan], -math.inf, math.inf),
        ([0.0, 0.0], [0.0, 1.0], -math.inf, 1.0),
        ([], [], math.inf, 0.0),
    ],
)
def test_not_finite_values(reference: list[float], actual: list[float], sqnr_db: float, max_abs: float) -> None:
    sums = ErrorSums()
    sums.add(torch.tensor(reference), torch.tensor(actual))
    found: Any = sums.distance()
    assert (found.sqnr_db, found.max_abs) == (sqnr_db, max_abs)
