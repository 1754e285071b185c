"""From the scores of several layers to one score a unit."""

from __future__ import annotations

import pytest
import torch

from fxq.errors import InputError
from fxq.pruning.criteria import COUPLINGS, combine

INF, NAN = torch.inf, torch.nan
TWO = torch.tensor([[1.0, 2.0, 3.0, 4.0], [80.0, 60.0, 40.0, 20.0]])


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("sum", [81.0, 62.0, 43.0, 24.0]),
        ("mean", [40.5, 31.0, 21.5, 12.0]),
        ("max", [80.0, 60.0, 40.0, 20.0]),
        ("leader", [1.0, 2.0, 3.0, 4.0]),
        ("union", [1.0, 0.75, 0.75, 1.0]),
        ("none", [INF, INF, INF, INF]),
    ],
)
def test_two_layers(how: str, wanted: list[float]) -> None:
    assert combine(TWO, how).tolist() == wanted


@pytest.mark.parametrize("how", [how for how in COUPLINGS if how != "union"])
def test_one_layer_speaks_for_itself(how: str) -> None:
    assert combine(TWO[:1], how).tolist() == TWO[0].tolist()


def test_a_union_keeps_what_any_layer_would_keep() -> None:
    kept = combine(TWO, "union").argsort(descending=True, stable=True)[:2]
    assert set(kept.tolist()) == {0, 3}  # each layer's best


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("sum", [1.0, 12.0, 20.0, INF]),
        ("mean", [1.0, 6.0, 20.0, INF]),
        ("max", [1.0, 10.0, 20.0, INF]),
        ("leader", [1.0, 2.0, 20.0, INF]),
        ("union", [0.5, 1.0, 1.0, INF]),
    ],
)
def test_layers_that_have_some_of_the_units(how: str, wanted: list[float]) -> None:
    values = torch.tensor([[1.0, 2.0, NAN, NAN], [NAN, 10.0, 20.0, NAN]])
    assert combine(values, how).tolist() == wanted


def test_an_unknown_coupling_is_refused() -> None:
    with pytest.raises(InputError, match=r"no coupling is called 'median'\n  fix: .*'mean'"):
        combine(TWO, "median")
