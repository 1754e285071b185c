"""Rounding for the output: the quadratic form, a case by hand, codes that stay, brute force on a small layer."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fxq.progress import checked_by
from fxq.quant.corrections.rounding import Codes, OutputError, learned, settled


def _problem(x: Tensor, y: Tensor) -> OutputError:
    """Samples (n, width) and wanted outputs (n, rows) of a layer with one part."""
    x, y = x.double(), y.double()
    return OutputError((x.T @ x).unsqueeze(0), (x.T @ y).unsqueeze(0))


def _nearest(weight: Tensor, scale: float = 1.0, shared: bool = False) -> Codes:
    scales = torch.full((*weight.shape[:2], 1), scale, dtype=torch.float64)
    return Codes.of(torch.round(weight / scales), scales, shared)


def test_the_form_is_the_squared_error_up_to_a_constant() -> None:
    torch.manual_seed(0)
    x, w, other = torch.randn(50, 4), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    y = torch.randn(50, 3)
    error = _problem(x, y)
    direct = [(x.double() @ q.T - y.double()).square().sum(0) for q in (w, other)]
    torch.testing.assert_close(error.of(w[None])[0] - error.of(other[None])[0], direct[0] - direct[1])
    torch.testing.assert_close(error.slope(w[None])[0], (x.double() @ w.T - y.double()).T @ x.double())


def test_two_inputs_that_go_together_are_not_both_rounded_down() -> None:
    """Weights of 0.45 and 0.35 on equal inputs make 0.8: codes of 1 and 0 are nearer than 0 and 0."""
    x = torch.tensor([[1.0, 1.0, 0.0], [-2.0, -2.0, 0.0], [0.0, 0.0, 1.0]])
    weight = torch.tensor([[[0.45, 0.35, 5.0]]]).double()
    error = _problem(x, x.double() @ weight[0].T)
    nearest = _nearest(weight)
    assert nearest.values.tolist() == [[[0.0, 0.0, 5.0]]]
    for codes in (settled(nearest, error), learned(weight, nearest, error, 200)):
        assert codes.values.tolist() == [[[1.0, 0.0, 5.0]]]


def test_settled_codes_make_up_for_inputs_that_are_rounded() -> None:
    """Inputs that arrive as 0.8 of themselves are met by 5/4 of the weight, further than one step away."""
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    weight = torch.tensor([[[8.0, 20.0]]]).double()
    lost = x * torch.tensor([0.8, 1.0])
    codes = settled(_nearest(weight), _problem(lost, x.double() @ weight[0].T))
    assert codes.values.tolist() == [[[10.0, 20.0]]]


def test_codes_end_near_the_best_that_there_are() -> None:
    """Against all codes from -3 to 3, over 20 rows: none worse than nearest, most of the gap closed."""
    torch.manual_seed(0)
    x = torch.randn(40, 1) + 0.4 * torch.randn(40, 4)
    weight = torch.cat([3 * torch.rand(1, 20, 3) - 1.5, torch.full((1, 20, 1), 6.0)], 2).double()
    error = _problem(x, x.double() @ weight[0].T)
    nearest = _nearest(weight)
    found = settled(nearest, error).better_rows(settled(learned(weight, nearest, error, 100), error), error)
    grid = [torch.tensor([*k, 6.0]).double().expand(1, 20, 4) for k in itertools.product(range(-3, 4), repeat=3)]
    best = torch.stack([error.of(k)[0] for k in grid]).amin(0)
    before, after = error.of(nearest.weight)[0], error.of(found.weight)[0]
    assert bool((after <= before + 1e-9).all())
    assert bool((best <= after + 1e-9).all())
    assert float((after - best).sum()) < 0.3 * float((before - best).sum())


@pytest.mark.parametrize("shared", [False, True])
def test_the_largest_code_of_each_scale_stays_and_none_gets_larger(shared: bool) -> None:
    torch.manual_seed(1)
    weight = 5 * torch.randn(2, 3, 6).double()
    x = torch.randn(30, 6) @ torch.randn(6, 6)
    gram = (x.T @ x).double().expand(2, 6, 6)
    error = OutputError(gram, gram @ (3 * weight.transpose(1, 2)))  # wants weights thrice as large
    nearest = _nearest(weight, shared=shared)
    for codes in (settled(nearest, error), learned(weight, nearest, error, 30)):
        dims: tuple[int, ...] = (0, 1, 2) if shared else (2,)
        assert torch.equal(codes.values.abs().amax(dims), nearest.values.abs().amax(dims))
        assert torch.equal(codes.values[nearest.fixed], nearest.values[nearest.fixed])
    assert int(nearest.fixed.sum()) >= (1 if shared else 6)


def test_damping_keeps_the_weights_where_no_sample_speaks() -> None:
    weight = torch.tensor([[[3.0, -2.0, 9.0]]]).double()
    nothing = OutputError(torch.zeros(1, 3, 3).double(), torch.zeros(1, 3, 1).double())
    codes = _nearest(weight)
    assert torch.equal(settled(codes, nothing).values, codes.values)
    x = torch.tensor([[1.0, 1.0, 0.0]])
    wild = _problem(x, torch.tensor([[5.0]]))  # one sample that wants other weights
    free, held = (settled(codes, e).values[0, 0, :2] for e in (wild, wild.damped(weight, 10.0)))
    assert float((held - weight[0, 0, :2]).abs().sum()) < float((free - weight[0, 0, :2]).abs().sum())


def test_learning_is_deterministic_and_can_be_ended_between_its_steps() -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(1, 4, 8).double() * 4, torch.randn(64, 8)
    error = _problem(x, x.double() @ weight[0].T)
    steps: list[None] = []
    with checked_by(lambda: steps.append(None)):
        first, second = (learned(weight, _nearest(weight), error, 20) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert len(steps) == 40
