"""Least squares from sums against torch.linalg.lstsq on the rows themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxq.pruning.columns import Columns
from fxq.pruning.least_squares import Weights, fit, relative_error, solve, squared_errors
from fxq.pruning.sampling import LayerMoments

Halves = tuple[LayerMoments, LayerMoments]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rows_of(layer: Columns, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs far from the mean 0, and targets that a linear layer explains but for noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 + torch.randn(count, layer.parts, layer.width, generator=generator, dtype=torch.float64)
    w = torch.randn(layer.parts, layer.outputs // layer.parts, layer.width, generator=generator, dtype=torch.float64)
    y = torch.einsum("rpd,pnd->rpn", x, w).flatten(1) + 2
    return x, y + 0.1 * torch.randn(y.shape, generator=generator, dtype=torch.float64)


def halves_of(layer: Columns, x: Tensor, y: Tensor) -> Halves:
    halves = (LayerMoments.empty(layer), LayerMoments.empty(layer))
    for i, half in enumerate(halves):
        half.add(x[i::2], y[i::2])
    return halves


def whole(layer: Columns, x: Tensor, y: Tensor) -> LayerMoments:
    moments = LayerMoments.empty(layer)
    moments.add(x, y)
    return moments


LAYERS = {
    "linear": nn.Linear(6, 4),
    "no bias": nn.Linear(6, 4, bias=False),
    "groups": nn.Conv2d(6, 4, 2, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_without_ridge_the_solution_is_lstsq(name: str) -> None:
    layer = Columns(LAYERS[name], name)
    x, y = rows_of(layer, 200)
    found = solve(whole(layer, x, y), Weights.of(layer), 0.0)
    targets = y.reshape(len(y), layer.parts, -1)
    for part in range(layer.parts):
        ones = [] if layer.bias is None else [torch.ones(len(x), 1, dtype=torch.float64)]
        expected = torch.linalg.lstsq(torch.cat([x[:, part], *ones], 1), targets[:, part]).solution.T
        torch.testing.assert_close(found.matrix[part], expected[:, : layer.width], rtol=1e-7, atol=1e-7)
        if found.bias is not None:
            torch.testing.assert_close(found.bias[part], expected[:, -1], rtol=1e-7, atol=1e-7)


def test_the_ridge_pulls_towards_the_old_weights() -> None:
    layer = Columns(nn.Linear(6, 4, bias=False), "layer")
    x, y = rows_of(layer, 50)
    moments, old = whole(layer, x, y), Weights.of(layer)
    ridge = 0.3
    root = (ridge * moments.xx[0].diagonal().mean()).sqrt()
    # the penalty as rows more: root * (W - W_old) = 0
    padded = torch.cat([x[:, 0], root * torch.eye(6, dtype=torch.float64)]), torch.cat([y, root * old.matrix[0].T])
    expected = torch.linalg.lstsq(*padded).solution.T
    torch.testing.assert_close(solve(moments, old, ridge).matrix[0], expected, rtol=1e-8, atol=1e-8)


def test_errors_are_those_of_the_rows() -> None:
    layer = Columns(nn.Conv2d(6, 4, 2, groups=2), "layer")
    x, y = rows_of(layer, 30)
    weights = Weights.of(layer)
    assert weights.bias is not None
    predicted = torch.einsum("rpd,pnd->rpn", x, weights.matrix) + weights.bias
    expected = (y.reshape(30, 2, 2) - predicted).square().sum(0)
    moments = whole(layer, x, y)
    torch.testing.assert_close(squared_errors(moments, weights), expected, rtol=1e-9, atol=1e-9)
    assert relative_error(moments, weights) == pytest.approx(float((expected.sum() / y.square().sum()).sqrt()))


@pytest.mark.parametrize("count", [4, 20, 400])
@pytest.mark.parametrize("ridge", [None, 0.0, 1e-3, 10.0])
def test_a_fit_is_never_worse_on_the_rows(count: int, ridge: float | None) -> None:
    """Also with fewer rows than columns."""
    torch.manual_seed(0)
    layer = Columns(nn.Linear(12, 5), "layer")
    x, y = rows_of(layer, count)
    halves = halves_of(layer, x, y)
    found = fit(halves, ridge)
    moments, old = whole(layer, x, y), Weights.of(layer)
    assert bool((squared_errors(moments, found.weights) <= squared_errors(moments, old) * (1 + 1e-12)).all())
    assert found.after <= found.before


def test_the_ridge_is_chosen_on_rows_that_were_not_fitted_on() -> None:
    """With targets that the inputs do not explain, the weights stay, though they could fit the rows better."""
    torch.manual_seed(0)
    layer = Columns(nn.Linear(12, 5), "layer")
    x = torch.randn(60, 1, 12, dtype=torch.float64)
    old = Weights.of(layer)
    assert old.bias is not None
    exact = x[:, 0] @ old.matrix[0].T + old.bias[0]
    noisy = exact + torch.randn(exact.shape, dtype=torch.float64)
    kept = fit(halves_of(layer, x, noisy))
    assert kept.ridge is None
    assert torch.equal(kept.weights.matrix, old.matrix)
    forced = fit(halves_of(layer, x, noisy), 1e-4)
    assert forced.after < forced.before
    explained = fit(halves_of(layer, *rows_of(layer, 60)))
    assert explained.ridge is not None
    assert explained.held_out is not None
    assert explained.held_out[1] < 0.1 * explained.held_out[0]


def test_dead_inputs_keep_their_weights() -> None:
    layer = Columns(nn.Linear(6, 4), "layer")
    x, y = rows_of(layer, 50)
    x[:, :, 2] = 0
    old = Weights.of(layer)
    found = solve(whole(layer, x, y), old, 1e-6)
    torch.testing.assert_close(found.matrix[:, :, 2], old.matrix[:, :, 2], rtol=1e-12, atol=1e-12)


def test_all_dead_inputs_do_not_fail() -> None:
    layer = Columns(nn.Linear(3, 2, bias=False), "layer")
    x, y = torch.zeros(9, 1, 3, dtype=torch.float64), torch.ones(9, 2, dtype=torch.float64)
    assert torch.equal(fit(halves_of(layer, x, y), 0.1).weights.matrix, Weights.of(layer).matrix)


def test_an_exact_layer_is_left_alone() -> None:
    layer = Columns(nn.Linear(6, 4), "layer")
    x, _ = rows_of(layer, 50)
    old = Weights.of(layer)
    assert old.bias is not None
    found = fit(halves_of(layer, x, x[:, 0] @ old.matrix[0].T + old.bias[0]))
    assert (found.ridge, found.held_out) == (None, None)
    assert torch.equal(found.weights.matrix, old.matrix)
