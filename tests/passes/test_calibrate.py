from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from fxq.errors import CalibrationError, PassError
from fxq.ir import diff, take_snapshot
from fxq.ir.identify import get_module
from fxq.manager import PassContext
from fxq.passes.calibrate import Calibrate
from fxq.passes.insert_observers import InsertObservers
from fxq.quant.calibration import Calibration
from fxq.quant.observers import Observer
from fxq.tracing import normalise_inputs
from tests.targets.lowering import fuse

X = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def observed(model: nn.Module, x: torch.Tensor = X) -> fx.GraphModule:
    return InsertObservers()(fuse(model.eval(), x), x).graph_module


def observer(gm: fx.GraphModule, name: str) -> Observer:
    found = get_module(gm, next(n for n in gm.graph.nodes if n.name == name))
    assert isinstance(found, Observer)
    return found


def test_ranges_of_every_batch() -> None:
    gm = observed(nn.Linear(2, 2))
    before = take_snapshot(gm)
    out, record = Calibrate([X, X * 2, (X * 0, "label")])(gm, X)
    found = observer(out, "input_1_observer")
    assert (float(found.minimum), float(found.maximum)) == (-4.0, 6.0)
    assert not found.active
    assert record.modified
    assert record.notes == ("1 observers, 3 batches",)
    assert not diff(before, take_snapshot(gm)).modified, "the graph that went in saw nothing"
    assert not observer(gm, "input_1_observer").seen


def test_running_the_result_leaves_the_ranges_alone() -> None:
    out = Calibrate([X])(observed(nn.Linear(2, 2)), X).graph_module
    out(X * 100)
    assert float(observer(out, "input_1_observer").maximum) == 3.0


def test_calibrating_again_goes_on_from_there() -> None:
    once = Calibrate([X])(observed(nn.Linear(2, 2)), X).graph_module
    twice = Calibrate([X * 2])(once, X).graph_module
    assert float(observer(twice, "input_1_observer").maximum) == 6.0
    assert float(observer(once, "input_1_observer").maximum) == 3.0


def test_the_run_s_own_data() -> None:
    gm = observed(nn.Linear(2, 2))
    inputs = normalise_inputs(gm, X)
    context = PassContext(inputs, Calibration(lambda m: m(X * 3), gm, inputs))
    out = Calibrate()(gm, context=context).graph_module
    assert float(observer(out, "input_1_observer").maximum) == 9.0


def test_no_data() -> None:
    with pytest.raises(CalibrationError, match=r"there is no calibration data\n.*`calibrate`\n.*calibration=loader"):
        Calibrate()(observed(nn.Linear(2, 2)), X)


def test_an_overflow_inside_names_layer_and_batch() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.exp(self.first(x)))

    model = Overflows()
    nn.init.constant_(model.first.weight, 50.0)
    with pytest.raises(CalibrationError, match=r"NaN or infinite\n.*`exp`, module `the root`, calibration batch 1"):
        Calibrate([X * 0, X.abs()])(observed(model), X)


def test_a_graph_without_observers_has_another_stage() -> None:
    with pytest.raises(PassError, match="takes a OBSERVED graph"):
        Calibrate([X])(fuse(nn.Linear(2, 2).eval(), X), X)
