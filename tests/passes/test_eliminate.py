from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import VerifyError
from fxq.ir import graph_text, take_snapshot
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.passes import eliminate
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.eliminate import Eliminate
from fxq.tracing import trace
from tests.conftest import Golden
from tests.passes.conftest import RunPass

X, LARGER = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 8, 8)


class Applies(nn.Module):
    """Runs a function between two layers, so that its value is neither an input nor returned."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(4, 4, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.function(self, self.first(x))
        return y * 3 if isinstance(y, Tensor | fx.Proxy) else y


def rules(result: PassResult) -> list[str]:
    return [m.rule for m in result.matched]


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


NOTHING: dict[str, tuple[Callable[..., Any], str]] = {
    "identity": (lambda m, x: m.identity(x), "identity"),
    "dropout": (lambda m, x: m.dropout(x), "dropout"),
    "dropout function": (lambda m, x: F.dropout(x, training=False), "dropout"),
    "dropout2d": (lambda m, x: m.dropout2d(x), "dropout"),
    "alpha dropout": (lambda m, x: F.alpha_dropout(x), "dropout"),
    "permute": (lambda m, x: x.permute(0, 1, -2, 3), "no_op_move"),
    "transpose": (lambda m, x: x.transpose(1, 1), "no_op_move"),
    "transpose counted from behind": (lambda m, x: x.transpose(1, -3), "no_op_move"),
    "flatten one dimension": (lambda m, x: x.flatten(1, 1), "no_op_move"),
    "flatten the last dimension": (lambda m, x: x.flatten(3), "no_op_move"),
    "contiguous twice": (lambda m, x: x.transpose(1, 2).contiguous().contiguous(), "no_op_move"),
    "contiguous after linear": (lambda m, x: m.linear(x).contiguous(), "no_op_move"),
    "cat of one": (lambda m, x: torch.cat([x], 1), "no_op_move"),
    "max pool": (lambda m, x: F.max_pool2d(x, 1), "no_op_pool"),
    "times one": (lambda m, x: x * 1, "no_op_arithmetic"),
    "one times": (lambda m, x: 1 * x, "no_op_arithmetic"),
    "by one": (lambda m, x: x / 1, "no_op_arithmetic"),
    "minus nothing": (lambda m, x: x - 0, "no_op_arithmetic"),
    "relu of relu": (lambda m, x: F.relu(F.relu(x)), "settled_activation"),
    "relu of relu6": (lambda m, x: m.relu(F.relu6(x)), "settled_activation"),
    "relu6 of relu": (lambda m, x: F.relu6(F.relu(x)), "settled_activation"),
    "relu6 of relu6": (lambda m, x: F.relu6(F.relu6(x)), "settled_activation"),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("canonical", [True, False])
def test_what_does_nothing_goes(name: str, canonical: bool, run_pass: RunPass) -> None:
    function, rule = NOTHING[name]
    model = Applies(function, identity=nn.Identity(), dropout=nn.Dropout(), dropout2d=nn.Dropout2d(), relu=nn.ReLU(),
                    linear=nn.Linear(6, 6))  # fmt: skip
    others = () if "linear" in name else (LARGER,)
    result = run_pass(Eliminate(), model, X, *others, first=(Canonicalise(),) if canonical else ())
    assert rules(result) == [rule]
    assert not result.record.diff.added
    assert len(result.record.diff.removed) == 1


def test_golden(golden: Golden, run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor) -> Any:
        y = m.drop(m.identity(x))
        y = F.relu(F.relu(F.relu6(F.relu(y))))
        _ = m.unused(y).sum()  # nobody uses this
        return torch.cat([y.flatten(1).flatten(1)]) * 1 + 0

    model = Applies(function, drop=nn.Dropout(), identity=nn.Identity(), unused=nn.Conv2d(4, 2, 1))
    result = run_pass(Eliminate(), model, X, LARGER, first=(Canonicalise(),))
    golden("eliminate", graph_text(take_snapshot(result.graph_module)))
    assert rules(result) == [
        "dead_code", "dead_code", "identity", "dropout", "settled_activation", "settled_activation",
        "settled_activation", "no_op_move", "no_op_move", "no_op_arithmetic",
    ]  # fmt: skip
    assert reasons(result) == ["adding 0 turns -0.0 into 0.0"]


def test_removed_modules_leave_the_module_tree(run_pass: RunPass) -> None:
    result = run_pass(Eliminate(), Applies(lambda m, x: m.drop(x), drop=nn.Dropout()), X)
    assert [name for name, _ in result.graph_module.named_children()] == ["first"]


# -- what looks like nothing --------------------------------------------------------------------------------------

SOMETHING: dict[str, Callable[..., Any]] = {
    "flatten": lambda m, x: x.flatten(1),
    "permute": lambda m, x: x.permute(0, 2, 1, 3),
    "reshape to the same shape": lambda m, x: x.reshape(2, 4, 6, 6),
    "cat of two": lambda m, x: torch.cat([x, x]),
    "strided pool": lambda m, x: F.max_pool2d(x, 1, 2),
    "pool": lambda m, x: F.max_pool2d(x, 2, 1),
    "relu6 of relu used twice": lambda m, x: F.relu6(y := F.relu(x)) + y,
    "relu of leaky": lambda m, x: F.relu(F.leaky_relu(x)),
    "abs of relu": lambda m, x: torch.abs(F.relu(x)),
    "one minus": lambda m, x: 1 - x,
    "times true": lambda m, x: x * True,
    "added tensor": lambda m, x: x + m.count,
}


@pytest.mark.parametrize("name", SOMETHING)
def test_what_only_looks_like_nothing_stays(name: str, run_pass: RunPass) -> None:
    result = run_pass(Eliminate(), Applies(SOMETHING[name]), X)
    assert not result.modified
    assert not result.refused


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def copy_written(m: Any, x: Tensor) -> Any:
    y = x * 1
    y.relu_()
    return x


def source_written(m: Any, x: Tensor) -> Any:
    y = x * 1
    x.relu_()
    return y


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "plus nothing": (lambda m, x: x + 0, "adding 0 turns -0.0 into 0.0"),
    "average of one": (lambda m, x: F.avg_pool2d(x, 1), "the average of -0.0 alone is 0.0"),
    "rounding": (lambda m, x: torch.div(x, 1, rounding_mode="floor"), "it rounds"),
    "integers": (lambda m, x: (x > 0) * 1, "its input is torch.bool, its result may not be"),
    "hooks": (lambda m, x: m.hooked(x), "it has hooks, or is a subclass"),
    "layout": (lambda m, x: x.transpose(1, 2).contiguous(),
               "its input may lie in memory in another order, in which later kernels may round otherwise"),
    "channels last": (lambda m, x: x.contiguous(memory_format=torch.channels_last),
                      "it asks for another memory format"),
    "written later": (copy_written, "`relu_` may write into the tensor that would be shared"),
    "source written later": (source_written, "`relu_` may write into the tensor that would be shared"),
    "read by opaque code": (lambda m, x: F.relu(m.opaque(F.relu(F.relu(x)))),
                            "`opaque` may write into the tensor that would be shared"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, run_pass: RunPass) -> None:
    function, reason = REFUSED[name]
    result = run_pass(Eliminate(), Applies(function, hooked=hooked(nn.Identity()), opaque=hooked(nn.Tanh())), X)
    assert reason in reasons(result)
    assert not result.modified


def test_dropout_in_training_mode_is_refused() -> None:
    model = Applies(lambda m, x: m.drop(F.dropout(x, 0.5)), drop=nn.Dropout()).train()
    result = Eliminate()(trace(model, X))
    assert reasons(result) == ["it is in training mode"] * 2
    assert not result.modified


def test_one_tensor_is_not_returned_for_two() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = torch.relu(x)
            return y, torch.relu(y), torch.cat([x])

    result = Eliminate()(trace(Both(), X))
    assert reasons(result) == ["the caller would get one tensor where it gets two"] * 2
    assert not result.modified


def test_integers_need_a_recorded_run() -> None:
    result = Eliminate()(fx.symbolic_trace(lambda x: x * 1 + 1))
    assert reasons(result) == ["the dtype of its input is not known without example inputs"]


def test_minus_zero_keeps_its_sign() -> None:
    """Why `x - 0` goes and `x + 0` stays."""
    zero = torch.tensor([-0.0])
    assert math.copysign(1, float(zero - 0)) == math.copysign(1, float(zero * 1)) == -1
    assert math.copysign(1, float(zero + 0)) == math.copysign(1, float(F.avg_pool1d(zero[None], 1))) == 1


# -- dead code ----------------------------------------------------------------------------------------------------


class Counts(nn.Module):
    """Has a side effect that its value does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.calls.add_(1)


def dead(function: Callable[..., Any], *, training: bool = False, **layers: nn.Module) -> PassResult:
    def forward(m: Any, x: Tensor) -> Tensor:
        function(m, x)
        return x

    return Eliminate()(trace(Applies(forward, **layers).train(training), X))


DEAD: dict[str, Callable[..., Any]] = {
    "operation": lambda m, x: F.relu(x),
    "layer": lambda m, x: m.norm(m.first(x)),
    "chain": lambda m, x: torch.where(x > 0, x, x).sum(),
    "method": lambda m, x: x.exp().t,
    "sizes": lambda m, x: x.size(0) * 2 + x.shape[1],
    "attribute": lambda m, x: m.count + 1,
}


@pytest.mark.parametrize("name", DEAD)
def test_dead_code_goes(name: str) -> None:
    result = dead(DEAD[name], norm=nn.BatchNorm2d(4))
    assert set(rules(result)) == {"dead_code"}
    assert [n.target for n in result.graph_module.graph.nodes][:2] == ["x", "first"]
    assert len(result.graph_module.graph.nodes) == 4


def test_what_acts_stays() -> None:
    result = dead(lambda m, x: x.relu_())
    assert not result.modified
    assert not result.refused
    result = dead(lambda m, x: torch._assert(x.size(0) > 0, "empty"))
    assert not result.modified
    assert not result.refused


def test_dead_code_that_may_act_is_refused() -> None:
    assert reasons(dead(lambda m, x: torch.rand_like(x))) == ["it draws random numbers"]
    assert reasons(dead(lambda m, x: m.counts(x), counts=hooked(Counts()))) == ["its code may have side effects"]
    result = dead(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(4), training=True)
    assert reasons(result) == ["it may update statistics or draw random numbers, in training mode"]
    rescaled = nn.Embedding(9, 4, max_norm=1.0)
    assert reasons(dead(lambda m, x: m.table(x.long()), table=rescaled)) == ["it rescales its weight"]


def test_an_unused_input_stays() -> None:
    gm = fx.symbolic_trace(lambda x, y: x + 1)
    assert [n.name for n in Eliminate()(gm).graph_module.graph.nodes] == ["x", "y", "add", "output"]


# -- a control ----------------------------------------------------------------------------------------------------


def test_a_wrong_verdict_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = trace(Applies(lambda m, x: x + 0.5), X)
    PassManager([Eliminate()])(gm, X)
    monkeypatch.setattr(eliminate, "_NEUTRAL", {"sub": 0, "mul": 3})
    with pytest.raises(VerifyError, match="`eliminate` promises EXACT and changed the output"):
        PassManager([Eliminate()])(trace(Applies(lambda m, x: F.relu(x)), X), X)
