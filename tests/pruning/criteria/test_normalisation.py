"""Scores of different groups on one scale."""

from __future__ import annotations

import pytest
import torch

from fxq.errors import InputError
from fxq.pruning.criteria import NORMALISATIONS, normalise

SCORES = torch.tensor([3.0, 4.0, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("none", [3.0, 4.0, 0.0, 1.0]),
        ("mean", [1.5, 2.0, 0.0, 0.5]),
        ("sum", [0.375, 0.5, 0.0, 0.125]),
        ("max", [0.75, 1.0, 0.0, 0.25]),
        ("rank", [0.75, 1.0, 0.25, 0.5]),
    ],
)
def test_by_hand(how: str, wanted: list[float]) -> None:
    assert normalise(SCORES, how).tolist() == wanted


def test_l2_gives_a_unit_vector() -> None:
    scaled = normalise(SCORES, "l2")
    assert float(scaled.square().sum()) == pytest.approx(1.0, rel=1e-15)
    torch.testing.assert_close(scaled * 26**0.5, SCORES)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_the_order_of_units_stays(how: str) -> None:
    scores = torch.tensor([-2.0, 5.0, 0.5, -7.0, 5.0], dtype=torch.float64)
    scaled = normalise(scores, how)
    assert torch.equal(scaled.argsort(stable=True), scores.argsort(stable=True))
    assert scaled[1] == scaled[4]


@pytest.mark.parametrize("how", [how for how in NORMALISATIONS if how != "rank"])
def test_units_that_must_stay_do_not_count(how: str) -> None:
    with_fixed = torch.cat([SCORES, torch.tensor([torch.inf], dtype=torch.float64)])
    scaled = normalise(with_fixed, how)
    assert torch.equal(scaled[:4], normalise(SCORES, how))
    assert scaled[4] == torch.inf


@pytest.mark.parametrize("how", [how for how in NORMALISATIONS if how != "rank"])
def test_a_group_of_zeros_stays_zero(how: str) -> None:
    assert torch.equal(normalise(torch.zeros(3), how), torch.zeros(3))


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(InputError, match=r"no normalisation is called 'l1'\n  fix: did you mean 'l2'"):
        normalise(SCORES, "l1")
