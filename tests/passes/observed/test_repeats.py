"""Values that one observer sees at several places are counted once."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxq.ir.identify import get_module
from fxq.ir.rewriter import Rewriter
from fxq.passes import Calibrate, InsertObservers
from fxq.passes.observed.repeats import repeats, without
from fxq.quant.observers import HistogramObserver, Observer
from fxq.quant.recipe import Recipe
from tests.targets.lowering import fuse


class Watched(nn.Module):
    """Channels are put together, shuffled and halved, watched at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = HistogramObserver("one"), HistogramObserver("other")

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        x, y = self.one(x), self.one(y)
        both = self.one(torch.cat([x, y], 1))
        shuffled = self.one(both.view(2, 2, 3, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4))
        left, right = shuffled.chunk(2, 1)
        pooled = torch.max_pool2d(left, 2)
        return self.one(left), self.other(right), self.one(torch.cat([left, right.relu()], 1)), self.one(pooled)


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Observer)


class Shuffled(nn.Module):
    """As a block of ShuffleNet: one half is convolved, both are put together and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).relu().chunk(2, 1)
        both = torch.cat([left, self.branch(right).relu()], 1)
        n, c, h, w = both.shape
        y: Tensor = self.last(both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
        return y


def test_what_was_only_moved_holds_nothing_new() -> None:
    model = Watched()
    gm = fx.GraphModule(model, Tracer().trace(model))
    rw = Rewriter(gm)
    again = repeats(rw)
    assert {n.name for n in again} == {"one_2", "one_3", "one_4"}
    assert [n.name for n in rw.gm.graph.nodes if n.op == "call_module" and n not in again] == [
        "one", "one_1", "other", "one_5", "one_6",
    ]  # fmt: skip
    lean = without(rw.gm, again)
    assert len(lean.graph.nodes) == len(gm.graph.nodes) - 3
    x, y = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(lean(x, y), gm(x, y), strict=True))


def test_calibration_counts_every_value_once() -> None:
    x = torch.randn(2, 3, 6, 6)
    model = fuse(Shuffled().eval(), x)
    gm = InsertObservers(Recipe(activation="auto"))(model, x).graph_module
    out = Calibrate([x])(gm, x).graph_module
    calls = [n for n in out.graph.nodes if isinstance(get_module(out, n), Observer)]
    found = {str(n.target): get_module(out, n) for n in calls}
    assert len(calls) > len(found) == 2, "the graph that is converted has all calls"
    counts = [o.histogram.count for o in found.values() if isinstance(o, HistogramObserver)]
    assert counts == [2 * 3 * 36, 2 * (8 + 4) * 36], "the input, and what both convolutions gave"
