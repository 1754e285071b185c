from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import TraceError
from fxq.tracing import trace

Same = Callable[..., None]
X = torch.randn(2, 4)


class Running(nn.Module):
    """Adds what it was given the last time."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.last is None else x + self.last
        self.last = x
        return out


class Shows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.relu(x)
        return x * 2


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(4.0)
        return x + self.table


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


def test_a_module_that_keeps_state_is_opaque(same: Same) -> None:
    model = Holder(Running())
    gm = trace(model, X)
    (leaf,) = gm.meta["fxq_trace"].leaves
    assert leaf.path == "inner"
    assert "keeps state in self.last" in leaf.reason
    assert model.inner.last is None
    same(model, gm, X)


class Looks(Holder):
    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + y.view(*y.shape) if isinstance(y, Tensor) else y[0]


def test_looking_up_what_an_opaque_module_returns_is_no_side_effect(same: Same) -> None:
    model = Looks(Running())
    gm = trace(model, X)
    assert [leaf.path for leaf in gm.meta["fxq_trace"].leaves] == ["inner"]
    assert model.inner.last is None
    same(model, gm, X)


def test_a_root_that_keeps_state_cannot_be_traced() -> None:
    with pytest.raises(TraceError, match=r"keeps state in self\.last"):
        trace(Running(), X)


class Delays(nn.Module):
    """Keeps the last batch in a buffer, bound anew by each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        out = x + self.last
        self.last = x
        return out


def test_a_buffer_that_is_bound_anew_is_state() -> None:
    with pytest.raises(TraceError, match=r"keeps state in self\.last(.|\n)*self\.last\.copy_"):
        trace(Delays(), X)
    model = Holder(Delays())
    gm = trace(model, X)
    assert "keeps state in self.last" in gm.meta["fxq_trace"].leaves[0].reason
    assert torch.equal(model.get_buffer("inner.last"), torch.zeros(2, 4))
    for wanted in (X + 1, X + X + 1):
        assert torch.equal(gm(X), wanted)


@pytest.mark.parametrize(("inner", "name"), [(Shows(), "features"), (Caches(), "table")])
def test_values_for_show_and_constant_caches_are_noted(same: Same, inner: nn.Module, name: str) -> None:
    for model, path in ((inner, name), (Holder(inner), f"inner.{name}")):
        gm = trace(model, X)
        assert gm.meta["fxq_trace"].leaves == ()
        assert gm.meta["fxq_trace"].notes == (f"the graph does not assign {path}, which forward sets",)
        same(model, gm, X)
