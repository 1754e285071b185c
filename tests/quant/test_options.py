from __future__ import annotations

import pytest
import torch

from fxq.errors import InputError
from fxq.quant.observers import HistogramObserver, MinMaxObserver, MovingAverageObserver
from fxq.quant.options import Options


def test_observers() -> None:
    assert type(Options(activation="minmax").observer("x")) is MinMaxObserver
    usual = Options().observer("x")
    assert isinstance(usual, HistogramObserver)
    assert usual.calibrator == "mse"
    moving = Options(activation="moving_average", momentum=0.5).observer("x")
    assert isinstance(moving, MovingAverageObserver)
    assert moving.momentum == 0.5
    histogram = Options(activation="percentile", percentile=99.0).observer("x")
    assert isinstance(histogram, HistogramObserver)
    assert (histogram.calibrator, histogram.percentile) == ("percentile", 99.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "entropie"}, "unknown activation observer 'entropie'\n.*did you mean 'entropy'"),
        ({"weight_range": "mes"}, "unknown weight range 'mes'\n.*did you mean 'mse'"),
        ({"percentile": 0}, "the percentile is 0\n.*above 0 and at most 100"),
    ],
)
def test_unknown_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options(**options)  # type: ignore[arg-type]


def test_weight_scales_are_one_a_channel_or_one_for_all() -> None:
    rows = torch.tensor([[1.0, -2.0], [0.5, 0.25], [0.0, 0.0]])
    assert torch.equal(Options().weight_scale(rows), torch.tensor([2.0 / 127, 0.5 / 127, 1.0]))
    assert torch.equal(Options(weight="per_tensor").weight_scale(rows), torch.tensor([2.0 / 127]))
