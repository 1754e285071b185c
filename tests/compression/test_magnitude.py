"""Masks by magnitude against their definitions, written naively."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fxq.compression.magnitude import global_masks, lamp_masks, lamp_scores, layer_masks, pattern_mask


def weights(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = (10.0**-i for i in itertools.count())
    return [torch.randn(shape, generator=generator) * next(scales) for shape in shapes]


def naive_lamp(weight: Tensor) -> Tensor:
    """The definition, one weight at a time: O(n^2)."""
    squares = [w * w for w in weight.double().flatten().tolist()]
    scores = [s / sum(v for v in squares if v >= s) if s else 0.0 for s in squares]
    return torch.tensor(scores, dtype=torch.float64).reshape(weight.shape)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (7, 11), (1, 1)])
def test_lamp_is_its_quadratic_form(shape: tuple[int, ...]) -> None:
    (weight,) = weights(shape)
    ascending, scores = lamp_scores(weight)
    assert torch.equal(ascending, weight.abs().flatten().sort().values)
    torch.testing.assert_close(scores, naive_lamp(ascending), rtol=1e-12, atol=0.0)


def test_lamp_of_ties_and_zeros() -> None:
    ascending, scores = lamp_scores(torch.tensor([0.0, -2.0, 2.0, 1.0, 0.0, 2.0]))
    assert ascending.tolist() == [0.0, 0.0, 1.0, 2.0, 2.0, 2.0]
    assert scores.tolist() == naive_lamp(ascending).tolist() == [0.0, 0.0, 1 / 13, 4 / 12, 4 / 12, 4 / 12]
    assert lamp_scores(torch.zeros(3))[1].tolist() == [0.0, 0.0, 0.0]


def test_lamp_keeps_the_order_of_a_million_scores() -> None:
    weight = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) + 0.5
    _, scores = lamp_scores(weight)
    assert bool((scores.diff() >= 0).all())
    assert float(scores[-1]) == 1.0


def test_global_is_a_threshold_over_all() -> None:
    tensors = [*weights((20, 20)), *weights((30, 5), seed=1)]
    masks = global_masks(tensors, 0.6)
    magnitudes = sorted(abs(v) for t in tensors for v in t.flatten().tolist())
    threshold = magnitudes[round(0.6 * 550)]
    for mask, tensor in zip(masks, tensors, strict=True):
        assert torch.equal(mask, tensor.abs() >= threshold)
    assert sum(int(mask.sum()) for mask in masks) == 550 - 330


def test_layer_takes_the_same_share_of_each() -> None:
    tensors = weights((20, 20), (30, 5))
    masks = layer_masks(tensors, 0.6)
    assert [int(mask.sum()) for mask in masks] == [160, 60]
    for mask, tensor in zip(masks, tensors, strict=True):
        assert tensor.abs()[mask].min() > tensor.abs()[~mask].max()


def test_lamp_is_a_threshold_over_all_scores() -> None:
    tensors = weights((20, 20), (30, 5))
    masks = lamp_masks(tensors, 0.6)
    scores = [naive_lamp(tensor) for tensor in tensors]
    threshold = torch.cat([s.flatten() for s in scores]).sort().values[330] * (1 - 1e-12)
    for mask, score in zip(masks, scores, strict=True):
        assert torch.equal(mask, score >= threshold)


@pytest.mark.parametrize("masks", [global_masks, lamp_masks, layer_masks])
@pytest.mark.parametrize("sparsity", [0.99, 0.99999])
def test_no_tensor_goes_empty(masks: object, sparsity: float) -> None:
    tensors = weights((50, 50), (40, 10), (3, 3), (2, 1))  # each ten times smaller than the one before
    assert callable(masks)
    found = masks(tensors, sparsity)
    for mask, tensor in zip(found, tensors, strict=True):
        assert bool(mask.flatten()[tensor.abs().argmax()])
    kept = sum(int(m.sum()) for m in found)
    assert kept <= max(1, round((1 - sparsity) * 2911)) + 4


def test_lamp_at_99_percent_spares_small_layers_where_global_does_not() -> None:
    tensors = weights((100, 100), (40, 40))
    large, small = (int(mask.sum()) for mask in global_masks(tensors, 0.99))
    assert (large, small) == (116, 1)
    assert int(lamp_masks(tensors, 0.99)[1].sum()) > 10


def test_ties_are_kept() -> None:
    assert global_masks([torch.tensor([1.0, -2.0, 2.0, 2.0])], 0.5)[0].tolist() == [False, True, True, True]
    assert bool(lamp_masks([torch.ones(8)], 0.9)[0].all())


def test_nothing_goes_at_zero() -> None:
    assert all(bool(mask.all()) for mask in global_masks(weights((4, 4)), 0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    weight = weights((10, 10))[0].to(dtype)
    for masks in (global_masks, layer_masks, lamp_masks):
        (mask,) = masks([weight], 0.5)
        assert 50 <= int(mask.sum()) <= 52
        assert weight.abs()[mask].min() >= weight.abs()[~mask].max()


def naive_pattern(row: list[float], n: int, m: int) -> list[bool]:
    kept = [False] * len(row)
    for start in range(0, len(row), m):
        group = range(start, min(start + m, len(row)))
        for i in sorted(group, key=lambda i: (-abs(row[i]), i))[:n]:
            kept[i] = True
    return kept


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 5), (4, 8), (1, 2)])
@pytest.mark.parametrize("inputs", [3, 4, 8, 9, 11])
def test_n_of_m(n: int, m: int, inputs: int) -> None:
    (rows,) = weights((2, 3, inputs))
    rows[0, 0] = 1.0  # ties: the first stay
    mask = pattern_mask(rows, n, m)
    wanted = [naive_pattern(row, n, m) for row in rows.reshape(-1, inputs).tolist()]
    assert mask.reshape(-1, inputs).tolist() == wanted


def test_every_group_of_four_keeps_two() -> None:
    (rows,) = weights((16, 32))
    assert bool((pattern_mask(rows, 2, 4).reshape(16, 8, 4).sum(-1) == 2).all())
