from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir.meta import meta_twin, record_on_meta
from fxq.ir.shapes import recorded_value, run_recorded
from fxq.tracing import trace


class Own(nn.Module):
    """A layer that remembers what it was shown."""

    seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x if x.sum() > 0 else -x


class Derived(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 3)


class Changed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.sum() > 0 else 3)


class Model(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def traced(function: Callable[[Any, Tensor], Any], x: Tensor, **layers: nn.Module) -> fx.GraphModule:
    return trace(Model(function, **layers).eval(), x)


IMAGE = torch.randn(2, 3, 8, 8)
RUN: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, nn.Module]]] = {
    "layers": (lambda m, x: F.gelu(m.norm(m.conv(x))) * 2, {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4)}),
    "a sum that broadcasts": (lambda m, x: x + x[:, :, :1], {}),
    "a sum of two alike": (lambda m, x: x + x.flip(0), {}),
    "sizes": (lambda m, x: x.view(x.size(0), -1)[:, : x.shape[1]], {}),
    "a norm of the last dimension": (lambda m, x: m.norm(x), {"norm": nn.LayerNorm(8)}),
    "two outputs": (lambda m, x: torch.split(m.act(x), 1, 1), {"act": nn.ReLU(inplace=True)}),
    "a larger image": (lambda m, x: F.interpolate(x, (5, 9), mode="bilinear", align_corners=False), {}),
    "an image twice as large": (lambda m, x: F.interpolate(x, scale_factor=2.5, mode="bicubic"), {}),
    "layers in a layer": (lambda m, x: m.attend(x[:, 0], x[:, 0], x[:, 0]), {"attend": nn.MultiheadAttention(8, 2)}),
    "a class that only adds a constructor": (lambda m, x: m.conv(x), {"conv": Derived()}),
}


@pytest.mark.parametrize("case", RUN)
def test_what_is_recorded_is_what_a_run_records(case: str) -> None:
    function, layers = RUN[case]
    gm = traced(function, IMAGE, **layers)
    assert record_on_meta(gm, (IMAGE,), {})
    found = [recorded_value(n) for n in gm.graph.nodes]
    run_recorded(gm, (IMAGE.clone(),))
    assert found == [recorded_value(n) for n in gm.graph.nodes]


DOUBTFUL: dict[str, tuple[Callable[[Any, Tensor], Any], Tensor, dict[str, nn.Module]]] = {
    "integers may be out of range": (lambda m, x: m.e(x), torch.tensor([[99]]), {"e": nn.Embedding(4, 2)}),
    "weights of another dtype": (lambda m, x: m.fc(x), torch.ones(1, 2, dtype=torch.float64), {"fc": nn.Linear(2, 2)}),
    "a dtype on the way": (lambda m, x: m.fc(x.half()).float(), torch.ones(1, 2), {"fc": nn.Linear(2, 2).half()}),
    "integers on the way": (lambda m, x: x.argmax(1), torch.ones(1, 2), {"fc": nn.Linear(2, 2)}),
    "a dtype that few kernels have": (lambda m, x: m.fc(x), torch.ones(1, 2).half(), {"fc": nn.Linear(2, 2).half()}),
    "another number of channels": (lambda m, x: m.n(x), IMAGE, {"n": nn.BatchNorm2d(5)}),
    "a norm of another size": (lambda m, x: m.n(x), IMAGE, {"n": nn.LayerNorm(5)}),
    "a layer of one's own": (lambda m, x: m.own(x), IMAGE, {"own": Own()}),
    "a layer that was changed": (lambda m, x: m.conv(x), IMAGE, {"conv": Changed(3, 4, 3)}),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_where_a_run_has_to_say(case: str) -> None:
    function, x, layers = DOUBTFUL[case]
    gm = traced(function, x, **layers)
    for node in gm.graph.nodes:
        node.meta.pop("fxq_tensor", None)
    assert not record_on_meta(gm, (x,), {})


def test_a_layer_with_a_hook_is_not_called() -> None:
    calls: list[Tensor] = []
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda m, args, out: calls.append(out))
    gm = traced(lambda m, x: m.fc(x), IMAGE, fc=layer)
    calls.clear()
    assert not record_on_meta(gm, (IMAGE,), {})
    assert not calls


def test_a_twin_shares_nothing_that_can_be_written() -> None:
    layer = nn.BatchNorm2d(3)
    twin = meta_twin(layer)
    twin.running_mean = None
    assert layer.running_mean is not None
    assert layer.weight.device.type == "cpu"
    assert twin.weight.is_meta
