from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import PassError
from fxq.ir import Stage, diff, graph_text, stage_of, take_snapshot
from fxq.ir.identify import get_module
from fxq.passes.insert_observers import InsertObservers
from fxq.quant.observers import MovingAverageObserver, Observer
from fxq.quant.recipe import Recipe
from tests.targets.blocks import BLOCKS, Residual
from tests.targets.lowering import fuse

GOLDEN = """\
graph OBSERVED:
  %input_1 = placeholder -> f32[2, 4]
  %input_1_observer = HistogramObserver[observers.input_1](%input_1) {nothing seen}
  %_0 = FusedLinear[0](%input_1_observer) {in_features=4, out_features=3, bias=True, epilogue=relu} -> f32[2, 3]
  %_0_observer = HistogramObserver[observers._0](%_0) {nothing seen}
  %_2 = linear[2](%_0_observer) {in_features=3, out_features=2, bias=True} -> f32[2, 2]
  return %_2"""


def observers(gm: fx.GraphModule) -> dict[str, Observer]:
    found = {n.name: get_module(gm, n) for n in gm.graph.nodes}
    return {name: m for name, m in found.items() if isinstance(m, Observer)}


def test_golden() -> None:
    x = torch.randn(2, 4)
    gm = fuse(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), x)
    before = take_snapshot(gm)
    out, record = InsertObservers()(gm, x)
    out(x)
    assert graph_text(record.after) == GOLDEN
    assert not diff(before, take_snapshot(gm)).modified
    assert stage_of(out) is Stage.OBSERVED
    assert [m.rule for m in record.matched] == ["observe", "observe"]


def test_the_output_is_the_same_bit_for_bit_and_nothing_is_observed() -> None:
    torch.manual_seed(0)
    block = BLOCKS["dense"]
    x = block.input()
    gm = fuse(block.make().eval(), x)
    out = InsertObservers()(gm, x).graph_module
    assert torch.equal(out(x), gm(x))
    assert not any(o.seen for o in observers(out).values())


def test_values_of_a_group_share_one_observer() -> None:
    block = BLOCKS["dense"]
    x = block.input()
    out = InsertObservers()(fuse(block.make().eval(), x), x).graph_module
    found = observers(out)
    assert found["stem_observer"] is found["conv1_observer"] is found["cat_1_observer"]
    assert found["x_observer"] is not found["stem_observer"]


def test_the_recipe_chooses_the_observer() -> None:
    x = torch.randn(2, 3, 8, 8)
    recipe = Recipe(activation="moving_average", momentum=0.5)
    out = InsertObservers(recipe)(fuse(Residual().eval(), x), x).graph_module
    for observer in observers(out).values():
        assert isinstance(observer, MovingAverageObserver)
        assert observer.momentum == 0.5


def test_observers_say_what_they_watch() -> None:
    x = torch.randn(2, 3, 8, 8)
    out = InsertObservers()(fuse(Residual().eval(), x), x).graph_module
    assert observers(out)["stem_observer"].label == "`stem`, module `stem`"


def test_what_stays_in_float_is_refused_with_a_reason() -> None:
    block = BLOCKS["heads"]
    x = block.input()
    record = InsertObservers()(fuse(block.make().eval(), x), x).record
    assert [(r.rule, r.node, r.reason) for r in record.refused] == [
        ("int8", "softmax", "no int8 kernel for softmax"),
    ]


def test_a_graph_without_layers_stays_in_float() -> None:
    x = torch.randn(2, 4)
    out, record = InsertObservers()(fuse(nn.ReLU().eval(), x), x)
    assert not observers(out)
    assert [r.reason for r in record.refused] == ["its result is used in float"]


def test_example_inputs_are_needed() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(PassError, match=r"needs example inputs\n.*shapes and dtypes\n.*pass example_inputs"):
        InsertObservers()(fuse(nn.Linear(4, 2).eval(), x))


@pytest.mark.parametrize("residual_first", [False, True])
def test_an_addition_that_stays_in_float_keeps_the_order_of_its_sides(residual_first: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y, residual = self.fc(x.sin()), x.cos()
            return F.layer_norm(residual + y if residual_first else y + residual, (4,))

    x = torch.randn(2, 4)
    out = InsertObservers()(fuse(Model().eval(), x), x).graph_module
    (added,) = [n for n in out.graph.nodes if n.target is torch.add]
    assert [str(side) for side in added.args] == (["cos", "fc"] if residual_first else ["fc", "cos"])
