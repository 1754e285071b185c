from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import VerifyError
from fxq.ir import diff, take_snapshot
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.passes.recognise_activations import RecogniseActivations

Function = Callable[[Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def recognise(function: Function, x: Tensor | None = None) -> PassResult:
    """Run the pass on the traced model; the graph that went in must stay as it was."""
    torch.manual_seed(0)
    gm = fx.symbolic_trace(Model(function).eval())
    before = take_snapshot(gm)
    result = RecogniseActivations()(gm, x)
    assert not diff(before, take_snapshot(gm)).modified
    return result


def cube(x: Tensor) -> Tensor:
    return x + 0.044715 * torch.pow(x, 3.0)


WRITTEN: dict[str, tuple[Function, str]] = {
    "x sigmoid(x)": (lambda x: x * torch.sigmoid(x), "silu"),
    "sigmoid(x) x": (lambda x: x.sigmoid().mul(x), "silu"),
    "hardsigmoid": (lambda x: F.relu6(x + 3) / 6, "hardsigmoid"),
    "hardsigmoid, factor": (lambda x: F.hardtanh(3 + x, 0.0, 6.0) * (1 / 6), "hardsigmoid"),
    "hardswish": (lambda x: x * F.relu6(x + 3.0) / 6.0, "hardswish"),
    "hardswish, factor": (lambda x: x * (F.relu6(x + 3) * 0.16666667), "hardswish"),
    "hardswish, clamp": (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, "hardswish"),
    "hardswish of hardsigmoid": (lambda x: F.hardsigmoid(x) * x, "hardswish"),
    "gelu": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), "gelu"),
    "gelu, other order": (lambda x: 0.5 * x * (torch.erf(x * 0.70710678) + 1), "gelu"),
    "gelu, half last": (lambda x: (x * (1 + torch.erf(x / 1.41421356))) * 0.5, "gelu"),
    "gelu, half inside": (lambda x: x * (0.5 * (1 + torch.special.erf(x / math.sqrt(2)))), "gelu"),
    "gelu, tanh": (lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * cube(x))), "gelu"),
    "gelu, tanh, operator": (lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))), "gelu"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_recognised(name: str) -> None:
    function, kind = WRITTEN[name]
    result = recognise(function)
    out = result.graph_module
    assert [n.kind for n in result.record.after.nodes] == ["placeholder", "linear", kind, "output"]
    assert not result.refused
    for n in (2, 7):
        x = 3 * torch.randn(n, 6)
        torch.testing.assert_close(out(x), function(out.linear(x)), rtol=1e-5, atol=1e-6)
    assert result.record.after.nodes[2].origins[-1].pass_name == "recognise_activations"


def test_both_gelus_are_told_apart() -> None:
    for name, approximate in (("gelu", "none"), ("gelu, tanh", "tanh")):
        result = recognise(WRITTEN[name][0])
        assert result.record.after.nodes[2].args == f"%linear, approximate='{approximate}'"


OTHERS: dict[str, Function] = {
    "another value": lambda x: x[:, :3] * torch.sigmoid(x[:, 3:]),
    "another slope": lambda x: F.relu6(x + 3) / 5,
    "another shift": lambda x: F.relu6(x + 2) / 6,
    "other bounds": lambda x: torch.clamp(x + 3, 0, 5) / 6,
    "another exponent": lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2))),
    "another factor": lambda x: x * 0.4 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "a tensor for a number": lambda x: F.relu6(x + x) / 6,
    "a quotient the other way": lambda x: 6 / F.relu6(x + 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_are_no_candidates(name: str) -> None:
    result = recognise(OTHERS[name])
    assert not result.refused
    assert not result.record.diff.modified


def used_elsewhere(x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return x * y + y


REFUSED: dict[str, tuple[Function, str]] = {
    "used": (used_elsewhere, "the value of `sigmoid` is also used by `add`"),
    "in place": (lambda x: x.mul_(torch.sigmoid(x)), "`mul_` writes in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    result = recognise(function)
    assert [r.reason for r in result.refused] == [reason]
    assert not result.record.diff.modified


def test_close_and_idempotent() -> None:
    x = 3 * torch.randn(4, 6)
    gm, report = PassManager([RecogniseActivations()])(fx.symbolic_trace(Model(WRITTEN["gelu"][0])), x)
    assert report["recognise_activations"].step is not None
    again = RecogniseActivations()(gm, x)
    assert not again.modified
    assert not again.refused


def test_a_wrong_replacement_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RecogniseActivations.rules.__globals__, "_become", lambda kind, **_: _relu)
    with pytest.raises(VerifyError, match="promises CLOSE and changed the output"):
        PassManager([RecogniseActivations()])(fx.symbolic_trace(Model(WRITTEN["gelu"][0])), torch.randn(4, 6))


def _relu(match: object, rw: object) -> str | None:
    from fxq.passes import recognise_activations as module

    return module._replace(match, rw, F.relu, {})  # type: ignore[arg-type]
