from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.ir import graph_text, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.passes import Canonicalise, FoldBatchNorm, FoldScale
from fxq.tracing import trace
from tests.passes.conftest import RunPass


class Scaled(nn.Module):
    """A layer with a parameter ``s`` and a buffer ``t``, and what to do with them."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.function = layer, function
        self.s = nn.Parameter(torch.rand(shape) + 0.5)
        self.register_buffer("t", torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(4, 6, 3, padding=1, **options)


IMAGE, ROWS = torch.randn(2, 4, 5, 5), torch.randn(2, 5, 4)
FOLDED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "channels": (lambda: Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x) * m.s), IMAGE),
    "factor first": (lambda: Scaled(conv(), (1, 6, 1, 1), lambda m, x: m.s * m.layer(x)), IMAGE),
    "buffer": (lambda: Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x) * m.t), IMAGE),
    "number": (lambda: Scaled(conv(), (1,), lambda m, x: 0.17 * m.layer(x)), IMAGE),
    "division": (lambda: Scaled(conv(), (1,), lambda m, x: m.layer(x) / 8), IMAGE),
    "division by channels": (lambda: Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x) / m.s), IMAGE),
    "one value": (lambda: Scaled(conv(), (1,), lambda m, x: m.layer(x) * m.s), IMAGE),
    "without bias": (lambda: Scaled(conv(bias=False), (6, 1, 1), lambda m, x: m.layer(x) * m.s), IMAGE),
    "transposed": (
        lambda: Scaled(nn.ConvTranspose2d(4, 6, 2, groups=2), (6, 1, 1), lambda m, x: m.layer(x) * m.s), IMAGE,
    ),
    "linear": (lambda: Scaled(nn.Linear(4, 6), (6,), lambda m, x: m.layer(x) * m.s), ROWS),
    "behind a permutation": (
        lambda: Scaled(nn.Linear(4, 6), (6, 1), lambda m, x: m.s * m.layer(x).permute(0, 2, 1)), ROWS,
    ),
    "behind a transposition": (
        lambda: Scaled(nn.Linear(4, 6), (6, 1), lambda m, x: m.layer(x).transpose(-1, 1).contiguous() * m.s), ROWS,
    ),
    "behind ReLU": (lambda: Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x).relu() * m.s), IMAGE),
    "behind leaky ReLU": (lambda: Scaled(conv(), (1,), lambda m, x: F.leaky_relu(m.layer(x)) * 3.0), IMAGE),
    "twice": (lambda: Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x) * m.s * 2.0), IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name: str, run_pass: RunPass) -> None:
    make, x = FOLDED[name]
    result = run_pass(FoldScale(), make(), x, torch.cat([x, x]), first=(Canonicalise(),))
    assert len(result.matched) == (2 if name == "twice" else 1)
    assert not result.refused
    kinds = {n.kind for n in result.record.after.nodes}
    assert not kinds & {"mul", "div"}
    layer = result.graph_module.get_submodule("layer")
    assert (layer.bias is None) == (name == "without bias")
    assert not layer.weight.requires_grad


def test_behind_a_batch_norm_both_fold() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6)).eval()
    whole = Scaled(model, (6, 1, 1), lambda m, x: m.layer(x) * m.s).eval()
    gm, report = PassManager([Canonicalise(), FoldBatchNorm(), FoldScale()])(trace(whole, IMAGE), IMAGE)
    assert [len(report[p].matched) for p in ("fold_batch_norm", "fold_scale")] == [1, 1]
    assert [n.kind for n in take_snapshot(gm).nodes] == ["placeholder", "conv2d", "output"]


def run(function: Callable[[Any, Tensor], Any], layer: nn.Module, shape: tuple[int, ...], x: Tensor) -> PassResult:
    gm = Canonicalise()(trace(Scaled(layer, shape, function).eval(), x)).graph_module
    run_recorded(gm, (x,))
    before = graph_text(take_snapshot(gm))
    result = FoldScale()(gm)
    assert graph_text(take_snapshot(result.graph_module)) == before
    assert not result.modified
    return result


def used_elsewhere(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y * m.s + y.relu()


Refused = tuple[Callable[[Any, Tensor], Any], Callable[[], nn.Module], tuple[int, ...], str]
REFUSED: dict[str, Refused] = {
    "another dimension": (
        lambda m, x: m.layer(x) * m.s, conv, (5,), "differs along another dimension than the channels of `layer`",
    ),
    "two dimensions": (lambda m, x: m.layer(x) * m.s, conv, (6, 5, 1), "differs along more than one dimension"),
    "broadcasts": (lambda m, x: m.layer(x) * m.s, lambda: nn.Linear(5, 6), (2, 1, 1, 1, 1), "the factor makes f32"),
    "used elsewhere": (used_elsewhere, conv, (6, 1, 1), "is used elsewhere, too"),
    "called twice": (lambda m, x: m.layer(x) * m.s + m.layer(x + 1), conv, (6, 1, 1), "`layer` is called twice"),
    "behind an activation": (lambda m, x: m.layer(x).tanh() * m.s, conv, (6, 1, 1), "but behind tanh"),
    "negative behind ReLU": (lambda m, x: m.layer(x).relu() * -2.0, conv, (1,), "but behind relu"),
    "no layer": (lambda m, x: x * 2.0, conv, (1,), "but behind an input"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, make, shape, reason = REFUSED[name]
    refused = [r.reason for r in run(function, make(), shape, IMAGE).refused]
    assert len(refused) == 1
    assert reason in refused[0]


def test_weights_that_would_not_be_finite_are_refused() -> None:
    layer = nn.Conv2d(4, 6, 1)
    nn.init.constant_(layer.weight, 1e3)
    assert "not finite" in run(lambda m, x: m.layer(x) * 3e38, layer, (1,), IMAGE).refused[0].reason


def test_shared_weights_are_refused() -> None:
    class Tied(Scaled):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 4), (4,), lambda m, x: m.other(m.layer(x) * m.s))
            self.other = nn.Linear(4, 4)
            self.other.weight = self.layer.weight

    gm = Canonicalise()(trace(Tied().eval(), ROWS)).graph_module
    run_recorded(gm, (ROWS,))
    assert "shares its weight" in FoldScale()(gm).refused[0].reason


def test_what_is_no_constant_is_no_candidate() -> None:
    def written(m: Any, x: Tensor) -> Tensor:
        m.t.add_(1)
        out: Tensor = m.layer(x) * m.t
        return out

    for function in (written, lambda m, x: m.layer(x) * x.mean(), lambda m, x: m.layer(x) * x.shape[0]):
        result = run(function, conv(), (6, 1, 1), IMAGE)
        assert not result.refused


def test_layer_scale_leaves_one_segment_of_int8() -> None:
    model = Scaled(nn.Linear(4, 6), (6, 1), lambda m, x: m.s * m.layer(x).permute(0, 2, 1)).eval()
    gm = fxq.compile(model, ROWS, calibration=[ROWS], target="reference")
    assert not any("constant" in layer.why_float for layer in fxq.report(gm).layers)


def test_the_caller_s_weights_stay() -> None:
    model = Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x) * m.s).eval()
    before = model.layer.weight.clone()
    fxq.compile(model, IMAGE, recipe="float")
    assert torch.equal(model.layer.weight, before)


def test_training_with_quantisation_keeps_the_factor_trainable() -> None:
    model = Scaled(conv(), (6, 1, 1), lambda m, x: m.layer(x) * m.s).eval()
    prepared = fxq.prepare_qat(model, IMAGE)
    assert "s" in dict(prepared.named_parameters())


@dataclasses.dataclass
class Result:
    value: Tensor


def test_a_result_of_a_class_writes_nothing() -> None:
    model = Scaled(conv(), (6, 1, 1), lambda m, x: Result(m.layer(x) * m.s)).eval()
    gm = fxq.compile(model, IMAGE, recipe="float")
    assert not any(n.target is torch.mul for n in gm.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(gm(IMAGE).value, model(IMAGE).value, rtol=1e-4, atol=1e-5)
