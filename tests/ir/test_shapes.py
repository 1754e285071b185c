from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fxq.errors import GraphError
from fxq.ir.shapes import (
    TENSOR_KEY,
    TensorSpec,
    bind_placeholders,
    describe_value,
    is_recorded,
    record_missing,
    recorded_value,
    run_recorded,
    tensor_spec,
)
from fxq.tracing import trace


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor, scale: float = 2.0) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self.linear(x) * scale
        return y, y.double().chunk(2, 1)


def test_every_value_is_described() -> None:
    gm = fx.symbolic_trace(Model())
    assert not is_recorded(gm)
    seen = []
    out = run_recorded(gm, (torch.randn(2, 3),), watch=lambda n, v: seen.append(n.name))
    assert out[0].shape == (2, 4)
    described = {n.name: describe_value(n) for n in gm.graph.nodes}
    assert described == {
        "x": "f32[2, 3]",
        "scale": "float",
        "linear": "f32[2, 4]",
        "mul": "f32[2, 4]",
        "double": "f64[2, 4]",
        "chunk": "(f64[2, 2], f64[2, 2])",
        "output": "(f32[2, 4], (f64[2, 2], f64[2, 2]))",
    }
    assert seen == list(described)
    assert is_recorded(gm)
    specs = {n.name: tensor_spec(n) for n in gm.graph.nodes}
    assert specs["mul"] == TensorSpec((2, 4), torch.float32)
    assert specs["chunk"] is None


def test_no_gradients_are_kept() -> None:
    assert not run_recorded(fx.symbolic_trace(Model()), (torch.randn(2, 3),))[0].requires_grad


def test_a_failing_node_is_named() -> None:
    with pytest.raises(GraphError, match=r"fails at node `linear`[\s\S]*where: linear[\s\S]*why: RuntimeError: ") as e:
        run_recorded(fx.symbolic_trace(Model()), (torch.randn(2, 5),))
    assert len(str(e.value)) < 500


def test_placeholders_are_bound_by_position_name_and_default() -> None:
    gm = fx.symbolic_trace(Model())
    x = torch.ones(1, 3)
    assert bind_placeholders(gm, (x,), {}) == (x, 2.0)
    assert bind_placeholders(gm, (x,), {"scale": 3.0}) == (x, 3.0)
    assert bind_placeholders(gm, (), {"scale": 3.0, "x": x}) == (x, 3.0)
    with pytest.raises(GraphError, match=r"no value for the input `x`[\s\S]*the graph takes: x, scale"):
        bind_placeholders(gm, (), {"scale": 3.0})


def test_a_layer_in_training_mode_keeps_its_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    gm = fx.symbolic_trace(nn.Sequential(norm))
    state = {k: v.clone() for k, v in norm.state_dict().items()}
    x = torch.randn(8, 3) + 5
    with torch.no_grad():
        torch.testing.assert_close(run_recorded(gm, (x,)), (x - x.mean(0)) / (x.var(0, False) + norm.eps).sqrt())
    assert all(torch.equal(v, norm.state_dict()[k]) for k, v in state.items())


def test_a_buffer_that_the_graph_writes_into_keeps_its_value() -> None:
    root, graph = nn.Module(), fx.Graph()
    root.register_buffer("count", torch.zeros(1))
    x = graph.placeholder("x")
    count = graph.create_node("get_attr", "count")
    graph.output(graph.call_function(torch.add, (x, graph.call_method("add_", (count, 1)))))
    gm = fx.GraphModule(root, graph)
    assert torch.equal(run_recorded(gm, (torch.zeros(1),)), torch.ones(1))
    assert torch.equal(gm.count, torch.zeros(1))


def test_missing_records_are_filled_without_computing() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    gm = trace(model, torch.randn(3, 4))
    run_recorded(gm, (torch.randn(3, 4),))
    expected = {n.name: recorded_value(n) for n in gm.graph.nodes}
    for node in list(gm.graph.nodes)[2:4]:
        del node.meta[TENSOR_KEY]
    assert record_missing(gm)
    assert {n.name: recorded_value(n) for n in gm.graph.nodes} == expected
    assert type(gm(torch.randn(3, 4))) is Tensor


def test_what_looks_at_data_needs_a_run() -> None:
    class Nonzero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nonzero(x) + 1

    gm = trace(Nonzero(), torch.randn(3, 4))
    run_recorded(gm, (torch.randn(3, 4),))
    for node in gm.graph.nodes:
        if node.op == "call_function":
            del node.meta[TENSOR_KEY]
    assert not record_missing(gm)
