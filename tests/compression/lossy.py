"""What every test of a pass that compresses weights checks, whatever the pass is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fxq.ir import diff, graph_text, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.manager import Pass
from fxq.manager.base import PassResult
from fxq.passes.canonicalise import Canonicalise
from fxq.tracing import trace


class Twice(nn.Module):
    """Calls one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.conv(x))
        return y


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y


class Read(nn.Module):
    """A layer whose weight the graph also reads by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x) * self.fc.weight.sum()
        return y


class Special(nn.Linear):
    """A subclass that redefines something: fxq does not know what it does."""

    def extra_repr(self) -> str:
        return "special"


def not_finite() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 32))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 32))
    model[0].register_forward_hook(lambda *_: None)
    return model


#: Models of one candidate layer of 32 features each, and why each pass must leave it alone.
UNFIT = {
    "tied": (Tied, "`a` shares its weight with another module"),
    "read": (Read, "`fc.weight` is also read by `fc_weight`"),
    "subclass": (lambda: nn.Sequential(Special(32, 32)), "`0` is an opaque module (Special)"),
    "hooks": (hooked, "`0` is an opaque module (Linear, which has hooks)"),
    "not finite": (not_finite, "`0.weight` is not finite"),
}


def run_lossy(p: Pass, model: nn.Module, x: Tensor, first: tuple[Pass, ...] = (Canonicalise(),)) -> PassResult:
    """Trace ``model``, run the passes ``first``, then ``p``, and return what ``p`` did.

    The model and the graph that goes in must stay as they were, a second run must find nothing to do, the result must
    run at another batch size, and the random state must not move.
    """
    model.eval()
    state = copy.deepcopy(model.state_dict())
    gm = trace(model, x)
    run_recorded(gm, (x,))
    for before in first:
        gm = before(gm).graph_module
    snapshot, text, random = take_snapshot(gm), graph_text(take_snapshot(gm)), torch.get_rng_state()
    result = p(gm, x)
    assert torch.equal(torch.get_rng_state(), random), "the pass drew random numbers"
    assert graph_text(take_snapshot(gm)) == text, "the pass changed the graph that went in"
    assert not diff(snapshot, take_snapshot(gm)).modified, "the pass changed weights of the graph that went in"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7.0), state[name].nan_to_num(7.0)), f"the pass changed `{name}`"
    again = p(result.graph_module, x)
    assert not again.modified, f"the second run changed the graph: {again.record.summary()}"
    assert not again.matched
    result.graph_module(torch.cat([x, x]))
    return result


def reasons(result: PassResult) -> list[str]:
    """The reasons of all refusals, in order."""
    return [r.reason for r in result.refused]
