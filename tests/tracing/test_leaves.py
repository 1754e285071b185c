from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fxq.tracing import trace

Same = Callable[..., None]
X = torch.randn(2, 4)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return -x


class OverRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row + 1 for row in x])


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0] * 2


class UsesFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Double.apply(x)


class UsesNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.cumsum(x.detach().numpy(), axis=0))


class NumpyByAsarray(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(x) * 2)


class RangeOfSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(x[i] for i in range(x.shape[0]))


class Autocast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x.T


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = (nn.Linear(4, 4),)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.stage = nn.Sequential(nn.ReLU(), nn.Sequential(inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.before(x)) * 2


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Linear(4, 4), reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        out: Tensor = checkpoint(torch.mul, y, x, use_reentrant=self.reentrant)
        return out


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_traced_through(same: Same, reentrant: bool) -> None:
    model = Nested(Checkpointed(reentrant))
    gm = trace(model, X)
    assert gm.meta["fxq_trace"].leaves == ()
    assert "stage.1.0.inner" in [n.target for n in gm.graph.nodes]
    same(model, gm, X)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (DataDependent(), "control flow depends"),
        (OverRows(), "iterated over"),
        (UsesFunction(), "custom autograd function Double"),
        (UsesNumpy(), "converted to numpy"),
        (NumpyByAsarray(), "converted to numpy"),
        (RangeOfSize(), "used as a Python integer"),
        (Autocast(), "autocast is switched"),
        (Unregistered(), "not registered as a submodule"),
    ],
)
@pytest.mark.parametrize("example", [None, X])
def test_the_smallest_module_that_cannot_be_traced_is_opaque(
    same: Same, inner: nn.Module, reason: str, example: Tensor | None
) -> None:
    model = Nested(inner).requires_grad_(False)
    gm = trace(model, example)
    (leaf,) = gm.meta["fxq_trace"].leaves
    assert leaf.path == "stage.1.0"
    assert leaf.type_name == type(inner).__name__
    assert reason in leaf.reason
    assert leaf.source.startswith("test_leaves.py:")
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["before", "stage.0", "stage.1.0"]
    same(model, gm, X)
    same(model, gm, torch.randn(5, 4))


class Unsupported:
    pass


class Taker(nn.Module):
    def forward(self, x: Tensor, thing: Unsupported) -> Tensor:
        return x if x.sum() > 0 else -x


class Giver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.taker = Taker()

    def forward(self, x: Tensor) -> Tensor:
        return self.taker(x, Unsupported())


def test_the_caller_is_opaque_where_the_call_itself_cannot_be_recorded(same: Same) -> None:
    model = Nested(Giver())
    gm = trace(model, X)
    assert [leaf.path for leaf in gm.meta["fxq_trace"].leaves] == ["stage.1.0"]
    same(model, gm, X)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = DataDependent()
        self.c = UsesFunction()
        self.d = Nested(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x))))


def test_several_opaque_modules_are_found_one_after_the_other(same: Same) -> None:
    model = Blocks()
    gm = trace(model, X)
    assert [leaf.path for leaf in gm.meta["fxq_trace"].leaves] == ["b", "c"]
    same(model, gm, X)


def test_hooks_stay_with_their_module_and_never_see_traced_values(same: Same) -> None:
    model = Nested(nn.Sequential(nn.Linear(4, 4)))
    seen: list[object] = []
    model.stage[1].register_forward_hook(lambda m, args, out: seen.append(out) or out + 1)
    gm = trace(model, X)
    assert seen == []
    assert gm.meta["fxq_trace"].leaf("stage.1").reason.startswith("carries hooks")
    assert torch.equal(model(X), gm(X))
    assert len(seen) == 2


def test_hooks_of_the_root_are_noted() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_forward_pre_hook(lambda m, args: None)
    assert trace(model, X).meta["fxq_trace"].notes == ("hooks of the model itself are not part of the graph",)


def test_global_hooks_do_not_run() -> None:
    seen: list[object] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(out))
    try:
        trace(Nested(Blocks()))
    finally:
        handle.remove()
    assert seen == []


def test_parametrised_modules_are_leaves(same: Same) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    gm = trace(model, X)
    assert gm.meta["fxq_trace"].leaf("0").reason.startswith("carries parametrisations")
    same(model, gm, X)


def test_scripted_and_compiled_submodules_are_leaves(same: Same) -> None:
    gm = trace(nn.Sequential(nn.Linear(4, 4), torch.compile(DataDependent())))
    assert gm.meta["fxq_trace"].leaf("1").reason == "is compiled by torch.compile"


def test_an_opaque_module_keeps_working_in_a_deep_copy(same: Same) -> None:
    model = Nested(DataDependent())
    gm = copy.deepcopy(trace(model, X))
    assert gm.stage.get_submodule("1.0") is not model.stage[1][0]
    same(model, gm, -X)


class Halved(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) / 2


def test_a_call_of_its_own_runs_once(same: Same) -> None:
    model = nn.Sequential(Halved(4, 3), nn.ReLU())
    same(model, trace(model, X), X)
