from __future__ import annotations

import dataclasses
import gc
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import Rewriter, Stage, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.ir.snapshot import GraphSnapshot, _digests, argument_text, kind_text
from fxq.tracing import trace


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + self.offset)


def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Model().eval())


def digests(gm: fx.GraphModule) -> dict[str, int]:
    return {n.name: n.digest for n in take_snapshot(gm).nodes}


def changed(gm: fx.GraphModule, before: dict[str, int]) -> list[str]:
    return [name for name, digest in digests(gm).items() if digest != before[name]]


def test_what_a_record_holds() -> None:
    gm = traced()
    run_recorded(gm, (torch.randn(2, 2, 5, 5),))
    snapshot = take_snapshot(gm)
    conv = snapshot.nodes[1]
    assert (conv.id, conv.name, conv.op, conv.kind, conv.target) == (1, "conv", "call_module", "conv2d", "conv")
    assert (conv.inputs, conv.args, conv.value, conv.module_path) == ((0,), "%x", "f32[2, 3, 3, 3]", "conv")
    assert conv.details == "2, 3, kernel_size=(3, 3), stride=(1, 1)"
    assert snapshot.by_id()[1] is conv
    assert len(snapshot) == 7
    assert snapshot.stage is Stage.FLOAT


def test_the_digest_follows_every_weight_and_buffer() -> None:
    gm = traced()
    before = digests(gm)
    assert changed(gm, before) == []
    with torch.no_grad():
        gm.get_submodule("conv").weight[0, 0, 0, 0] += 1.0
        gm.get_submodule("norm").running_var[1] = 7.0
        gm.offset += 1.0
    assert changed(gm, before) == ["conv", "norm", "offset"]


def test_the_digest_follows_another_tensor_of_the_same_module() -> None:
    gm = traced()
    before = digests(gm)
    gm.get_submodule("conv").bias = nn.Parameter(torch.zeros(3))
    assert changed(gm, before) == ["conv"]


def test_equal_weights_have_equal_digests() -> None:
    assert digests(traced()) == digests(traced())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_digests_of_other_dtypes_and_layouts(dtype: torch.dtype) -> None:
    gm = traced().to(dtype).to(memory_format=torch.channels_last)
    assert digests(gm)["conv"] != 0
    assert digests(gm)["relu"] == 0


def test_scalars_and_empty_tensors_have_digests() -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scalar", torch.tensor(2.0))
            self.register_buffer("empty", torch.empty(0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scalar + self.empty.sum()

    assert digests(fx.symbolic_trace(Constants()))["scalar"] != 0


def test_a_snapshot_does_not_change_with_the_graph() -> None:
    gm = traced()
    snapshot = take_snapshot(gm)
    copy = dataclasses.replace(snapshot)
    rw = Rewriter(gm)
    relu = next(n for n in rw.graph.nodes if n.name == "relu")
    rw.update(relu, target=torch.tanh)
    rw.finish()
    for node in gm.graph.nodes:
        node.meta.clear()
    assert snapshot == copy
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.stage = Stage.INT8  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.nodes[0].name = "y"  # type: ignore[misc]


def test_json() -> None:
    data = json.loads(json.dumps(take_snapshot(traced()).to_dict()))
    assert data["stage"] == "FLOAT"
    assert [n["kind"] for n in data["nodes"]] == [
        "placeholder",
        "conv2d",
        "batch_norm",
        "get_attr",
        "add",
        "relu",
        "output",
    ]
    assert data["nodes"][1]["origins"] == []


def test_source_lines_come_from_the_tracer() -> None:
    source = take_snapshot(trace(Model())).nodes[1].source
    assert source is not None
    assert "test_snapshot.py:" in source


def test_text_of_arguments() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert argument_text((x, [1, 2.5], {"k": (x,)}, slice(None, 3), torch.float32, None, True)) == (
        "(%x, [1, 2.5], {'k': (%x,)}, slice(None, 3, None), torch.float32, None, True)"
    )
    assert kind_text(F.relu) == "relu"
    assert kind_text(nn.Conv2d) == "Conv2d"
    assert kind_text("method:sin") == "sin"


def test_an_empty_graph() -> None:
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    assert isinstance(take_snapshot(fx.GraphModule(nn.Module(), graph)), GraphSnapshot)


def test_digests_of_tensors_that_are_gone_are_forgotten() -> None:
    gm = traced()
    take_snapshot(gm)
    ids = [id(p) for p in gm.parameters()]
    assert all(i in _digests for i in ids)
    del gm
    gc.collect()
    assert not any(i in _digests for i in ids)


def test_a_snapshot_seen_again_has_the_shapes_of_the_last_run() -> None:
    gm = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    run_recorded(gm, (torch.randn(2, 4),))
    first = take_snapshot(gm)
    assert first.seen_now(gm) is first
    run_recorded(gm, (torch.randn(3, 4),))
    assert first.seen_now(gm) == take_snapshot(gm)
    assert {n.value for n in first.nodes} == {"f32[2, 4]"}
