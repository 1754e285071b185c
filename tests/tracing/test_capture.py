from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import InputError, TraceError
from fxq.tracing import TraceRecord, trace

Same = Callable[..., None]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(self.conv(x)))
        out += x
        return self.relu(out)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.register_buffer("shift", torch.randn(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.blocks(x) * self.scale + self.shift, 1)


@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_bit_identical_at_other_sizes_in_both_modes(same: Same, training: bool) -> None:
    model = Net().train(training)
    model.blocks[1].norm.eval()
    gm = trace(model, torch.randn(2, 3, 8, 8))
    assert gm.training is training
    for path, module in gm.named_modules():
        assert module.training is model.get_submodule(path).training, path
    same(model, gm, torch.randn(2, 3, 8, 8))
    same(model, gm, torch.randn(5, 3, 6, 10))


def test_layers_keep_their_paths_and_a_layer_called_twice_is_called_twice() -> None:
    gm = trace(Net(), torch.randn(2, 3, 8, 8))
    calls = [node.target for node in gm.graph.nodes if node.op == "call_module"]
    block = ["conv", "norm", "relu", "relu"]
    assert calls == [f"blocks.{i}.{name}" for i in (0, 1) for name in block]


def test_in_place_addition_is_recorded_as_such() -> None:
    gm = trace(Net(), torch.randn(2, 3, 8, 8))
    assert sum(node.target is operator.iadd for node in gm.graph.nodes) == 2


def test_layers_are_shared_with_the_model() -> None:
    model = Net()
    gm = trace(model)
    assert gm.get_submodule("blocks.0.conv") is model.blocks[0].conv
    assert gm.scale is model.scale
    assert gm.state_dict().keys() == model.state_dict().keys()


def test_every_node_says_where_it_comes_from() -> None:
    gm = trace(Net(), torch.randn(2, 3, 8, 8))
    lines = Path(__file__).read_text().splitlines()
    for node in gm.graph.nodes:
        name, _, line = node.meta["fxq_source"].partition(":")
        assert name == Path(__file__).name
        assert 0 < int(line) <= len(lines)
        if node.op == "call_module":
            assert node.meta["fxq_module"] == node.target
    added = next(node for node in gm.graph.nodes if node.target is operator.iadd)
    assert added.meta["fxq_module"] == "blocks.0"
    assert lines[int(added.meta["fxq_source"].split(":")[1]) - 1].strip() == "out += x"
    assert list(added.meta["nn_module_stack"]) == ["blocks", "blocks.0"]


class Aliased(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        before = y
        y += 1
        y *= 2
        return before - x


def test_another_name_of_the_same_tensor_sees_an_in_place_operation(same: Same) -> None:
    model = Aliased()
    same(model, trace(model), torch.randn(4))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x)) + self.again(self.embed(x)) + F.linear(self.embed(x), self.embed.weight)


def test_tied_weights_and_modules_under_two_names(same: Same) -> None:
    model = Tied()
    gm = trace(model, torch.arange(5)[None])
    same(model, gm, torch.arange(6)[None])
    twin = copy.deepcopy(gm)
    assert twin.head.weight is twin.embed.weight


class Gelu(nn.GELU):
    pass


class CosineLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


class Subclasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = Gelu()
        self.fc = CosineLinear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(x))


def test_a_subclass_is_a_leaf_only_if_it_keeps_torchs_forward(same: Same) -> None:
    model = Subclasses()
    gm = trace(model)
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["act"]
    same(model, gm, torch.randn(3, 4))


def test_forward_replaced_on_the_instance_is_the_one_traced(same: Same) -> None:
    model = Aliased()
    model.forward = lambda x: torch.relu(x)  # type: ignore[method-assign]
    gm = trace(model)
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [torch.relu]


def test_a_sequential_root(same: Same) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    gm = trace(model, torch.randn(2, 3))
    same(model, gm, torch.randn(5, 3))
    assert all(node.meta["fxq_source"].startswith("container.py:") for node in gm.graph.nodes)


def test_without_remarks_the_record_is_empty() -> None:
    assert trace(Net()).meta["fxq_trace"] == TraceRecord()


def test_what_is_not_a_python_module_is_refused() -> None:
    with pytest.raises(InputError, match="not a function"):
        trace(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="give the module before it was compiled"):
        trace(torch.compile(nn.Linear(2, 2)))
