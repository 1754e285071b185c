"""The LASSO meets its optimality conditions, and keeps as many units as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.lasso import Lasso, lasso, lasso_choice, lasso_scores
from fxq.pruning.unit_moments import UnitMoments


def problem(size: int = 12, rows: int = 60, seed: int = 0, rank: int | None = None) -> tuple[Tensor, UnitMoments]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or size, size, generator=generator, dtype=torch.float64)
    z = torch.randn(rows, rank or size, generator=generator, dtype=torch.float64) @ mixing
    z = z * torch.linspace(0.2, 2, size, dtype=torch.float64)
    y = z.sum(1)
    return z, UnitMoments(z.T @ z, z.T @ y, float(y @ y), rows)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.0])
@pytest.mark.parametrize("rank", [None, 5], ids=["full", "deficient"])
def test_optimality_conditions(seed: int, share: float, rank: int | None) -> None:
    """b - G beta is penalty * sign(beta) where beta is not 0, and at most the penalty elsewhere."""
    _, moments = problem(seed=seed, rank=rank)
    gram, cross = moments.gram.numpy() / moments.count, moments.cross.numpy() / moments.count
    top = float(np.abs(cross).max())
    penalty = share * top
    beta = lasso(gram, cross, penalty)
    gradient = cross - gram @ beta
    active = beta != 0
    assert np.abs(gradient - penalty * np.sign(beta))[active].max(initial=0) <= 1e-8 * top
    assert (np.abs(gradient) - penalty)[~active].max(initial=-1) <= 1e-8 * top
    assert active.any()


def test_one_unit_is_soft_thresholded() -> None:
    assert lasso(np.array([[2.0]]), np.array([3.0]), 1.0) == pytest.approx([1.0])
    assert lasso(np.array([[2.0]]), np.array([-3.0]), 1.0) == pytest.approx([-1.0])
    assert lasso(np.array([[2.0]]), np.array([0.5]), 1.0) == pytest.approx([0.0])


def test_the_largest_penalty_removes_all_and_none_is_least_squares() -> None:
    z, moments = problem()
    gram, cross = moments.gram.numpy() / moments.count, moments.cross.numpy() / moments.count
    assert not lasso(gram, cross, float(np.abs(cross).max())).any()
    expected = torch.linalg.lstsq(z, z.sum(1)).solution.numpy()
    np.testing.assert_allclose(lasso(gram, cross, 0.0), expected, rtol=1e-6)


def test_the_start_does_not_change_the_solution() -> None:
    _, moments = problem()
    gram, cross = moments.gram.numpy() / moments.count, moments.cross.numpy() / moments.count
    penalty = 0.1 * float(np.abs(cross).max())
    np.testing.assert_allclose(
        lasso(gram, cross, penalty, np.full(12, 3.0)), lasso(gram, cross, penalty), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("rank", [None, 5], ids=["full", "deficient"])
def test_exactly_as_many_units_stay_as_asked(rank: int | None) -> None:
    _, moments = problem(rank=rank)
    for keep in range(1, 13):
        choice = lasso_choice(moments, keep)
        assert int(choice.kept.sum()) == keep
        assert not choice.beta[~choice.kept].any()


def test_the_choice_is_a_lasso_solution_where_one_has_so_many() -> None:
    _, moments = problem(seed=1)
    gram, cross = moments.gram.numpy() / moments.count, moments.cross.numpy() / moments.count
    choice = lasso_choice(moments, 6)
    solution = lasso(gram, cross, choice.penalty * float(np.abs(cross).max()))
    assert np.count_nonzero(solution) == 6
    np.testing.assert_allclose(choice.beta, solution, rtol=1e-5)


def test_units_that_contribute_nothing_fill_up_last() -> None:
    z, _ = problem()
    z[:, [0, 5]] = 0
    moments = UnitMoments(z.T @ z, z.T @ z.sum(1), float(z.sum(1).square().sum()), 60)
    assert (~lasso_choice(moments, 10).kept).nonzero()[0].tolist() == [0, 5]
    assert (~lasso_choice(moments, 11).kept).nonzero()[0].tolist() == [5]
    nothing = UnitMoments(torch.zeros(3, 3).double(), torch.zeros(3).double(), 0.0, 9)
    assert lasso_choice(nothing, 1).kept.tolist() == [True, False, False]
    assert torch.equal(lasso_scores(nothing), torch.zeros(3).double())


def test_scores_follow_the_order_of_entry() -> None:
    """Orthogonal units enter at the penalty |b_j|."""
    z = torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.5], dtype=torch.float64))
    moments = UnitMoments(z.T @ z, z.T @ z.sum(1), 14.25, 4)
    scores = lasso_scores(moments)
    assert scores.argsort(descending=True).tolist() == [1, 2, 0, 3]
    torch.testing.assert_close(scores, torch.tensor([1.0, 9, 4, 0.25]).double() / 9, rtol=0.16, atol=0)


def test_scores_of_a_small_keep_agree_with_the_choice() -> None:
    _, moments = problem(seed=2)
    first = int(lasso_scores(moments).argmax())
    assert lasso_choice(moments, 1).kept.nonzero()[0].tolist() == [first]


def test_a_keep_out_of_range_is_refused() -> None:
    _, moments = problem()
    for keep in (0, 13):
        with pytest.raises(InputError, match=f"keep={keep} of 12 units"):
            lasso_choice(moments, keep)


def test_the_criterion_gives_the_scores() -> None:
    _, moments = problem()

    class View:
        name = "g"

    assert torch.equal(Lasso(moments={"g": moments})(View()), lasso_scores(moments))
