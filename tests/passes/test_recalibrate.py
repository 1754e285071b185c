from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq import PassManager
from fxq.errors import CalibrationError, InputError
from fxq.passes import ConvertQDQ, LowerInt8, Recalibrate
from fxq.quant.observers import HistogramObserver, Observer

BATCHES = [torch.randn(16, 6, generator=torch.Generator().manual_seed(i)) ** 3 for i in range(3)]


class Network(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def observed(activation: str = "mse") -> fx.GraphModule:
    steps = fxq.pipeline(fxq.Recipe(activation=activation, corrections=("bias",)), "reference")
    observe = steps.without("convert_qdq").without("lower_int8")
    return fxq.compile(Network().eval(), calibration=BATCHES, passes=observe)


def observers(gm: fx.GraphModule) -> list[Observer]:
    return [m for m in gm.modules() if isinstance(m, Observer)]


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "mse", "entropy", "auto"])
def test_the_result_is_that_of_calibrating_with_the_other_one(calibrator: str) -> None:
    finish = PassManager([Recalibrate(calibrator, 99.0), ConvertQDQ(), LowerInt8("reference")])
    again = finish(observed(), BATCHES[0]).graph_module
    recipe = fxq.Recipe(activation=calibrator, percentile=99.0, corrections=("bias",))
    whole = fxq.compile(Network().eval(), calibration=BATCHES, recipe=recipe, target="reference")
    assert torch.equal(again(BATCHES[1]), whole(BATCHES[1]))


def test_statistics_are_shared_and_nothing_else_is() -> None:
    before = observed()
    ranges = [o.qparams() for o in observers(before)]
    after, record = Recalibrate("percentile", 90.0)(before, BATCHES[0])
    assert record.notes == ("2 ranges taken with 'percentile'",)
    assert [o.qparams() for o in observers(before)] == ranges
    for old, new in zip(observers(before), observers(after), strict=True):
        assert isinstance(old, HistogramObserver)
        assert isinstance(new, HistogramObserver)
        assert new.histogram is old.histogram
        assert new.qparams().scale < old.qparams().scale


@pytest.mark.parametrize("activation", ["minmax", "moving_average"])
def test_two_numbers_are_not_enough(activation: str) -> None:
    with pytest.raises(CalibrationError, match=r"no histogram.*\n.*module `.*\n.*keeps two numbers\n.*'mse', 'auto'"):
        Recalibrate("mse")(observed(activation), BATCHES[0])


def test_bad_options() -> None:
    with pytest.raises(InputError, match="unknown calibrator 'moving_average'"):
        Recalibrate("moving_average")
    with pytest.raises(InputError, match="the percentile is 0"):
        Recalibrate("percentile", 0)
