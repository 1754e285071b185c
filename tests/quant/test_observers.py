from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, InputError
from fxq.quant import observers
from fxq.quant.calibration import Calibration
from fxq.quant.histogram import Histogram
from fxq.quant.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    Observer,
    PerChannelMinMaxObserver,
)
from fxq.quant.qparams import QParams


def active(observer: Observer) -> Observer:
    observer.active = True
    return observer


def limits(observer: Observer) -> tuple[float, float]:
    return float(observer.minimum.min()), float(observer.maximum.max())


def test_min_max_over_batches_in_any_order() -> None:
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([[0.5], [4.0]]), torch.tensor(-3.0)]
    for order in (batches, batches[::-1]):
        observer = active(MinMaxObserver())
        for batch in order:
            assert observer(batch) is batch
        assert limits(observer) == (-3.0, 4.0)
        assert observer.qparams() == QParams.from_range(-3.0, 4.0)


def test_moving_average() -> None:
    observer = active(MovingAverageObserver(momentum=0.25))
    observer(torch.tensor([-4.0, 8.0]))
    observer(torch.tensor([0.0, 4.0]))
    assert limits(observer) == (-3.0, 7.0)


@pytest.mark.parametrize("momentum", [0.0, -1.0, 1.5, float("nan"), "much"])
def test_momentum_out_of_range(momentum: float) -> None:
    with pytest.raises(InputError, match="momentum is"):
        MovingAverageObserver(momentum=momentum)


def test_per_channel() -> None:
    observer = active(PerChannelMinMaxObserver(axis=1))
    assert isinstance(observer, PerChannelMinMaxObserver)
    observer(torch.tensor([[1.0, -6.0], [-2.0, 3.0]]))
    assert torch.equal(observer.minimum, torch.tensor([-2.0, -6.0]))
    assert torch.equal(observer.weight_scale(), torch.tensor([2.0, 6.0]) / 127)
    assert observer.qparams() == QParams.from_range(-6.0, 3.0)
    flat = active(PerChannelMinMaxObserver())
    flat(torch.tensor([1.0, -2.0]))
    assert torch.equal(flat.maximum, torch.tensor([1.0, -2.0]))


def test_nothing_is_observed_while_inactive() -> None:
    observer = MinMaxObserver("`x`, module `stem`")
    observer(torch.ones(3))
    assert not observer.seen
    assert observer.extra_repr() == "nothing seen"
    with pytest.raises(CalibrationError, match=r"(?s)never observed.*`x`, module `stem`.*data that reaches this layer"):
        observer.qparams()


def test_an_empty_batch_is_passed_over() -> None:
    for observer in (MinMaxObserver(), PerChannelMinMaxObserver()):
        assert active(observer)(torch.empty(0, 3)).shape == (0, 3)
        assert not observer.seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types(dtype: torch.dtype) -> None:
    observer = active(MinMaxObserver())
    observer(torch.tensor([-1.5, 2.5], dtype=dtype))
    assert limits(observer) == (-1.5, 2.5)
    assert observer.minimum.dtype == torch.float32


def test_the_graph_is_not_kept() -> None:
    observer = active(MinMaxObserver())
    observer(torch.ones(2, requires_grad=True))
    assert not observer.minimum.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_names_layer_and_batch(bad: float) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.observer = active(MinMaxObserver("`relu`, module `layer1`"))

        def forward(self, x: Tensor) -> Tensor:
            return self.observer(torch.where(x == 7.0, bad, x))

    data = [torch.ones(2), torch.tensor([7.0, 1.0])]
    wanted = r"a value is NaN or infinite\n.*where: `relu`, module `layer1`, calibration batch 1"
    with pytest.raises(CalibrationError, match=wanted):
        Calibration(data, Layer()).run(Layer())
    with pytest.raises(CalibrationError, match=wanted):
        Calibration(lambda model: [model(x) for x in data], Layer()).run(Layer())


def test_state_travels() -> None:
    observer = active(MinMaxObserver())
    observer(torch.tensor([-1.0, 1.0]))
    assert limits(copy.deepcopy(observer)) == (-1.0, 1.0)
    assert observer.extra_repr() == "[-1, 1]"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "operators"])
def test_a_histogram_that_was_read_and_copies_stay_as_they_were(dtype: torch.dtype) -> None:
    observer = HistogramObserver()
    observer.active = True
    observer(torch.tensor([1.0, -2.0], dtype=dtype))
    read, twin, shallow = observer.histogram, copy.deepcopy(observer), copy.copy(observer)
    observer(torch.tensor([3.0, 0.5], dtype=torch.float32))
    observer(torch.tensor([0.25], dtype=dtype))
    assert (read.count, twin.histogram.count, shallow.histogram.count, observer.histogram.count) == (2, 2, 2, 5)
    assert (observer.histogram.minimum, observer.histogram.maximum) == (-2.0, 3.0)
    assert (float(observer.minimum), float(observer.maximum)) == (-2.0, 3.0)
    assert (float(twin.minimum), float(twin.maximum)) == (-2.0, 1.0)


def test_a_range_is_chosen_once_for_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    choose = observers.range_of

    def counted(histogram: Histogram, calibrator: str, percentile: float) -> tuple[float, float]:
        chosen.append(calibrator)
        return choose(histogram, calibrator, percentile)

    monkeypatch.setattr(observers, "range_of", counted)
    observer = active(HistogramObserver(calibrator="minmax"))
    observer(torch.tensor([0.0, 1.0]))
    assert observer.qparams() == observer.qparams() == QParams.from_range(0.0, 1.0)
    observer(torch.tensor([3.0]))
    assert observer.qparams() == QParams.from_range(0.0, 3.0)
    observer.qparams("mse")
    assert observer.qparams() == QParams.from_range(0.0, 3.0)
    assert chosen == ["minmax", "minmax", "mse", "minmax"]
