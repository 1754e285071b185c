from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import PassError, VerifyError
from fxq.ir import Stage, diff, stage_of, take_snapshot
from fxq.ir.stage import set_graph_state
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.nn import FUSED_LAYERS, Epilogue
from fxq.passes.fuse_activation import FuseActivation
from fxq.tracing import TracedModule, trace


def canonical(model: nn.Module, x: Tensor | None = None) -> TracedModule:
    """Trace a model that is written in canonical form already."""
    gm = trace(model.eval(), x)
    set_graph_state(gm, stage=Stage.CANONICAL)
    return gm


def fuse(model: nn.Module, x: Tensor | None = None) -> PassResult:
    """Run the pass on the traced model; the graph that went in must stay as it was."""
    gm = canonical(model, x)
    before = take_snapshot(gm)
    result = FuseActivation()(gm, x)
    assert not diff(before, take_snapshot(gm)).modified
    assert stage_of(gm) is Stage.CANONICAL
    return result


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


class Then(nn.Module):
    """A layer, then a function."""

    def __init__(self, layer: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Epilogue]] = {
    "relu": (F.relu, Epilogue("relu")),
    "relu method": (lambda y: y.relu(), Epilogue("relu")),
    "relu in place": (lambda y: F.relu(y, inplace=True), Epilogue("relu")),
    "relu6": (F.relu6, Epilogue("relu6")),
    "hardtanh": (lambda y: F.hardtanh(y, -0.5, 0.5), Epilogue("hardtanh", (-0.5, 0.5))),
    "clamp": (lambda y: torch.clamp(y, 0, 6), Epilogue("hardtanh", (0, 6))),
    "clamp method": (lambda y: y.clamp(min=-1.0, max=0.25), Epilogue("hardtanh", (-1.0, 0.25))),
    "hardswish": (F.hardswish, Epilogue("hardswish")),
    "silu": (F.silu, Epilogue("silu")),
    "gelu": (F.gelu, Epilogue("gelu", ("none",))),
    "gelu tanh": (lambda y: F.gelu(y, approximate="tanh"), Epilogue("gelu", ("tanh",))),
    "leaky_relu": (lambda y: F.leaky_relu(y, 0.1), Epilogue("leaky_relu", (0.1,))),
    "sigmoid": (torch.sigmoid, Epilogue("sigmoid")),
    "tanh": (torch.tanh, Epilogue("tanh")),
    "hardsigmoid": (F.hardsigmoid, Epilogue("hardsigmoid")),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_bit_for_bit(name: str) -> None:
    function, epilogue = ACTIVATIONS[name]
    torch.manual_seed(0)
    model = Then(nn.Conv2d(3, 6, 3), function)
    x = torch.randn(2, 3, 8, 8) * 4
    out = fuse(model, x).graph_module
    layer = out.get_submodule("layer")
    assert layer.epilogue == epilogue
    assert [n.op for n in out.graph.nodes] == ["placeholder", "call_module", "output"]
    for batch in (x, torch.randn(5, 3, 8, 8) * 4):
        assert torch.equal(out(batch), model(batch))


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="reflect"), (4, 9, 9)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 5, 5, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3), (4, 9)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (4, 9, 9)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 4, 2), (2, 4, 4, 4)),
    "linear": (nn.Linear(5, 7), (5,)),
    "linear of a sequence": (nn.Linear(5, 7, bias=False), (3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_bit_for_bit(name: str) -> None:
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.SiLU())
    result = fuse(model, torch.randn(2, *shape))
    assert type(result.graph_module.get_submodule("0")) is FUSED_LAYERS[type(layer)]
    for n in (2, 5):
        x = torch.randn(n, *shape)
        assert torch.equal(result.graph_module(x), model(x))


def test_the_layer_keeps_its_node_and_its_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    out, record = fuse(model)
    before, after = record.before.nodes[1], record.after.nodes[1]
    assert (after.id, after.name, after.target, after.module_path) == (before.id, before.name, "0", "0")
    assert [(o.pass_name, o.rule) for o in after.origins] == [("fuse_activation", "fuse_relu")]
    assert out.get_submodule("0").weight is model[0].weight
    assert type(model[0]) is nn.Conv2d
    assert record.summary() == "1 fuse_relu"


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.c(torch.flatten(self.b(F.relu(self.a(x))), 1)))


def test_a_chain_and_its_stage() -> None:
    x = torch.randn(2, 3, 8, 8)
    gm, report = PassManager([FuseActivation()])(canonical(Chain(), x), x)
    kinds = [n.kind for n in take_snapshot(gm).nodes if n.op.startswith("call_")]
    assert kinds == ["FusedConv2d", "conv2d", "flatten", "FusedLinear"]
    assert stage_of(gm) is Stage.FUSED
    assert report["fuse_activation"].step is not None
    assert report["fuse_activation"].step.equal


def test_idempotent() -> None:
    once = fuse(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())).graph_module
    again = FuseActivation()(once)
    assert not again.modified
    assert not again.matched
    assert not again.refused


def test_tied_layers_are_fused_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
    model[2].weight = model[0].weight
    out = fuse(model, torch.randn(2, 4)).graph_module
    assert out.get_submodule("0").weight is out.get_submodule("2").weight


def test_fused_module_and_original_share_no_hooks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    out = fuse(model).graph_module
    out.get_submodule("0").register_forward_hook(lambda *_: None)
    assert not model[0]._forward_hooks


# -- refusals ------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2)
        self.register_buffer("low", torch.tensor(0.0))


class Twice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.conv(x)))


class Used(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y) + y


class Returned(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return F.relu(y), y


class TwoActivations(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(F.relu(self.conv(x)))


class OutputSize(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.up(x, output_size=[12, 12]))


class OneBound(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), min=0.0)


class TensorBound(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), self.low, 6.0)


class WrongOrder(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.conv(x), 6.0, 0.0)


class Special(nn.Conv2d):
    pass


def hooked() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    conv.register_forward_hook(lambda *_: None)
    return nn.Sequential(conv, nn.ReLU())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "called twice": (Twice, "`conv` is called twice"),
    "used": (Used, "the value of `conv` is also used by `add`"),
    "returned": (Returned, "the value of `conv` is returned"),
    "output size": (OutputSize, "`up` is called with further arguments, such as output_size"),
    "one bound": (OneBound, "the bounds of `clamp` are not two numbers"),
    "tensor bound": (TensorBound, "the bounds of `clamp` are not two numbers"),
    "wrong order": (WrongOrder, "the bounds of `clamp` are in the wrong order"),
    "subclass": (lambda: nn.Sequential(Special(4, 4, 1), nn.ReLU()), "`0` is an opaque module (Special)"),
    "hooks": (hooked, "`0` is an opaque module (Conv2d, which has hooks)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, reason = REFUSED[name]
    result = fuse(make(), torch.randn(2, 4, 5, 5))
    assert reasons(result) == [reason]
    assert not result.matched
    assert not result.record.diff.modified


def test_refused_behind_an_activation() -> None:
    result = fuse(TwoActivations(), torch.randn(2, 4, 5, 5))
    assert reasons(result) == ["`conv` already ends in relu"]
    assert [m.rule for m in result.matched] == ["fuse_relu"]


def test_no_candidate_behind_anything_else() -> None:
    result = fuse(nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.PReLU()), torch.randn(2, 4, 6, 6))
    assert not result.refused
    assert not result.record.diff.modified


def test_takes_no_graph_that_is_not_canonical() -> None:
    with pytest.raises(PassError, match="takes a CANONICAL or FUSED graph, this one is FLOAT"):
        FuseActivation()(trace(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())))


def test_a_wrong_activation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 6, 6)
    gm = canonical(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 6, 3), nn.SiLU()), x)
    monkeypatch.setattr(
        "fxq.passes.fuse_activation.activation_of",
        lambda call: Epilogue("relu" if call.kind == "relu" else "hardswish"),
    )
    with pytest.raises(VerifyError, match="promises EXACT and changed the output") as caught:
        PassManager([FuseActivation()])(gm, x)
    assert "module `2`" in str(caught.value)
